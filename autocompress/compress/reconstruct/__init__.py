"""Reconstruct a compressed model block by block from the float model's hidden outputs."""
