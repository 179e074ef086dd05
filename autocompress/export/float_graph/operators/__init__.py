"""Tell the exporter which ONNX operators compute those of PyTorch."""
