"""A budget of bits: which tensor gets which candidate spec."""
