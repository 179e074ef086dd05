"""Export a PyTorch model as a clean float ONNX graph, the input of the lowering."""
