"""From a candidate to one ONNX file, and back to its numbers."""
