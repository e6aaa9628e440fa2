"""Graph to graph transformations: each takes an ONNX model, leaves a valid ONNX model, and reports."""
