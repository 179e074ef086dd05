"""Prepare tasks on pictures."""
