"""Measure this project: `python -m benchmarks.NAME [--json FILE] [--quick]`.

Each prints a table of ratios that are measured in one run. Only `bench.py` imports inner modules.
"""
