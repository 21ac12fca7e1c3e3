"""A palettized weight as data: layout, bit packing, look-up tables, decoding, distortion."""
