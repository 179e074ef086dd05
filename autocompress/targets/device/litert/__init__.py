"""Write .tflite files, run them in LiteRT, and time their operators."""
