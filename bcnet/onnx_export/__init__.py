"""Networks as ONNX files: exported once, sliced to any widths, in the precision and opset of the target."""
