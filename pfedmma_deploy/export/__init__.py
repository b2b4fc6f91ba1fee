"""From a run to a verified ONNX bundle."""
