"""What a graph is made of: values, shapes, the checks of them that ONNX leaves out, and what the graph costs."""
