"""Prepare tasks on sounds."""
