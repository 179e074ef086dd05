"""Make decoders with a cache, as onnxruntime-genai runs them."""
