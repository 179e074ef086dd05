"""Assemble a compressed model: make variants of modules, simulate them, and swap them in."""
