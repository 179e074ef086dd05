"""Wrap models of the transformers library so that one output holds all that a metric judges."""
