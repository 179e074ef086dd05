"""Write graphs as .tflite files, as LiteRT runs them."""
