"""Translate nodes of graphs into operators of .tflite files."""
