"""Benchmarks: `python -m benchmarks.NAME [--json FILE] [--quick]` prints a table of ratios measured
in one run.
"""
