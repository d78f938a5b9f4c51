"""The model server. Importing it imports no room of it.

So training can read `lifecycle.repository` without ONNX Runtime or gRPC.
"""

from importlib.metadata import version

__version__ = version("forwardpass")
"""Of the installed distribution `forwardpass`, which holds server, training and clients."""
