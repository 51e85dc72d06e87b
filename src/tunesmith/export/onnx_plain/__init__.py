"""Plain ONNX of standard operators for any runtime, and OpenVINO's form of it."""
