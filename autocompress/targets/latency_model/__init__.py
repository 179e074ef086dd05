"""Measure a latency table, and predict the latency of candidates from it."""
