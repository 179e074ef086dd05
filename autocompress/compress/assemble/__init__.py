"""Assemble a compressed model: variants of each module, their simulation, and the swap into a copy of the model."""
