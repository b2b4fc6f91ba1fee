"""Prediction from an exported bundle: numpy and ONNX Runtime, never torch."""
