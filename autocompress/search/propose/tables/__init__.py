"""Tabulate costs and losses of every choice, and translate choices to knobs."""
