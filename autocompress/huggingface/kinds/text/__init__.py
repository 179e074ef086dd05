"""Prepare tasks on texts."""
