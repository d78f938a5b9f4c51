"""The error of a configuration that cannot be obeyed."""

from forwardpass_server.errors import LoadFailed


class UnsupportedConfig(LoadFailed):
    """A configuration cannot be read, contradicts the model, or asks for something that would have to be obeyed."""
