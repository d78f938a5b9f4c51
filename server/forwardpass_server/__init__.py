"""The model server. Importing it imports no room of it.

So training can read `lifecycle.repository` without ONNX Runtime or gRPC.
"""

__version__ = "0.1.0"
"""Of the distribution `forwardpass`, which holds server, training and clients; the build reads it here. Asking the
installed distribution costs every start 45 ms of its second."""
