"""Describe the trials that were told, and learn from them what recovery brings back."""
