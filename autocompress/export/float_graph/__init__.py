"""Export a PyTorch model as a clean float ONNX graph."""
