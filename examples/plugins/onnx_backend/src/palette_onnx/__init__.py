"""An ONNX export backend for palette_core: indices and look-up tables as nodes of the graph."""
