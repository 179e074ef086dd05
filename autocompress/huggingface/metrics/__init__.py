"""Compute the metrics that a model folder is judged by."""
