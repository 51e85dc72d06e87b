"""ONNX models for ONNX Runtime GenAI: one model (`write`), and one base with adapters to switch between (`multi`)."""
