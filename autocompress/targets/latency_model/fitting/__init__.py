"""Fit a latency model to measured runs: kernels, surroundings, rooflines and uncertainty."""
