"""The ONNX Runtime target: float programs in two profiles, their session and their checker."""
