"""Run autocompress from the command line: arguments, commands and tables."""
