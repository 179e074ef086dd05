"""Rewrite operators of a program as operators that are plain modules."""
