"""Describe targets: what a runtime can execute, and how long files take on it."""
