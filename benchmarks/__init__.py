"""Measure this project: `python -m benchmarks.NAME [--json FILE] [--quick]`.

Each prints a table of ratios that are measured in one run. Only the files named bench import
inner modules.
"""
