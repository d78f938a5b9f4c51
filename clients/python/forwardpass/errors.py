"""Everything that can go wrong with a call, as one small tree. Imports nothing.

    ForwardpassError
    ├── ClientMisused             a bad address, file or setting; a closed client; a client carried across a fork
    ├── CallRefused               asking again unchanged gets the same answer
    │   ├── InvalidRequest          malformed, or not what the model takes; also found here, before anything is sent
    │   ├── TooLarge                a message beyond the limit of either side
    │   ├── ModelNotFound           no such model or version
    │   ├── Unsupported             the server has no such rpc or feature
    │   ├── Unauthenticated         no credentials, or wrong ones
    │   └── PermissionDenied        good credentials, forbidden rpc
    ├── TryAgain                  the same call may succeed later, or elsewhere
    │   ├── ServerUnavailable       unreachable, stopping, or the model is not ready
    │   ├── Overloaded              full; says when to retry, where the server said so
    │   ├── DeadlineExceeded        no answer in the time the caller gave (also a `TimeoutError`)
    │   └── CallCancelled           the client was closed, or the server gave up the call
    └── ServerFault               the server's own failure
        └── MalformedReply          an answer that does not add up

A refused or failed call was already retried as far as the client's `RetryPolicy` goes when its error is raised.
"""


class ForwardpassError(Exception):
    """Base of all.

    Args:
        reason: what happened, with values; the server's own words where it sent some.
        code: name of the gRPC status code, for instance "NOT_FOUND"; "" when nothing was sent.
        model: the model asked, with its version where one was named ("mnist_cnn", "mnist_cnn/3"); "" for server rpcs.
        address: the server's address, as given to the client.

    `str(error)` joins them in one line. Instances survive pickling, so they can cross process pools.
    """

    def __init__(self, reason: str, *, code: str = "", model: str = "", address: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.model = model
        self.address = address

    def __str__(self) -> str:
        context = [f"model '{self.model}'"] if self.model else []
        context += [f"server {self.address}"] if self.address else []
        context += [self.code] if self.code else []
        return f"{self.reason} [{', '.join(context)}]" if context else self.reason

    def __reduce__(self) -> tuple[object, ...]:
        # NOTE: BaseException pickles `args` alone, which would drop everything that is keyword-only.
        return _rebuild, (type(self), self.__dict__)


def _rebuild(kind: type[ForwardpassError], fields: dict[str, object]) -> ForwardpassError:
    error = kind.__new__(kind, fields["reason"])
    error.__dict__.update(fields)
    return error


class ClientMisused(ForwardpassError):
    """A bad address, file or setting; a closed client; a client carried across a fork."""


class CallRefused(ForwardpassError):
    """Asking again unchanged gets the same answer."""


class InvalidRequest(CallRefused):
    """Malformed, or not what the model takes."""


class TooLarge(CallRefused):
    """A message beyond the limit of either side."""


class ModelNotFound(CallRefused):
    """No such model or version."""


class Unsupported(CallRefused):
    """The server has no such rpc or feature."""


class Unauthenticated(CallRefused):
    """No credentials, or wrong ones."""


class PermissionDenied(CallRefused):
    """Good credentials, forbidden rpc."""


class TryAgain(ForwardpassError):
    """The same call may succeed later, or elsewhere."""


class ServerUnavailable(TryAgain):
    """Unreachable, stopping, or the model is not ready."""


class Overloaded(TryAgain):
    """Full.

    Args:
        retry_after_s: when a retry may succeed, in seconds; None when the server did not say.
    """

    def __init__(
        self, reason: str, *, code: str = "", model: str = "", address: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(reason, code=code, model=model, address=address)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(TryAgain, TimeoutError):
    """No answer in the time the caller gave."""


class CallCancelled(TryAgain):
    """The client was closed, or the server gave up the call."""


class ServerFault(ForwardpassError):
    """The server's own failure; its log has the details."""


class MalformedReply(ServerFault):
    """An answer that does not add up."""
