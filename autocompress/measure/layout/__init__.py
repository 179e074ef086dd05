"""Bring outputs and targets into one layout, with the dimension that counts samples in front."""
