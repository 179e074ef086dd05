"""Collect statistics of activations and gradients from calibration batches."""
