"""Weights in 4 and 8 bits: the methods that find them, the formats that servers read, and which layers may be cut."""
