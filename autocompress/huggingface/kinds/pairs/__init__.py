"""Prepare tasks on pictures with texts."""
