"""Estimate what files take in memory while they run."""
