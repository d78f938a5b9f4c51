"""The model server. Importing it imports nothing else: training reads `lifecycle.repository` without ONNX Runtime."""
