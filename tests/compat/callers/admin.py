"""A plugin of tritonclient that sends an admin's token with every call."""

from tritonclient.grpc import InferenceServerClientPlugin


class Admin(InferenceServerClientPlugin):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request) -> None:
        request.headers["authorization"] = f"Bearer {self._token}"
