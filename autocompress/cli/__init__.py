"""The command line: its arguments, its commands and its tables."""
