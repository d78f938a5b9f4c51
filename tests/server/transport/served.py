"""A real server on a real socket, on its own thread, stopped and checked at the end of each test."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from forwardpass_server.transport.call import StreamFactory, UnaryHandler
from forwardpass_server.transport.completion_queue import CompletionQueueServer
from forwardpass_server.transport.options import TransportOptions
from forwardpass_server.transport.stop import StopReport

WAIT_S = 10.0


def code_and_text(error: BaseException) -> tuple[int, str]:
    return 13, f"on_error saw {type(error).__name__}: {error}"


class Served:
    """One running server and channels to it."""

    def __init__(
        self,
        unary: dict[str, UnaryHandler] | None = None,
        streams: dict[str, StreamFactory] | None = None,
        on_idle: Callable[[], bool] | None = None,
        on_error: Callable[[BaseException], tuple[int, str]] = code_and_text,
        **options: Any,
    ) -> None:
        self.server = CompletionQueueServer(
            TransportOptions(**({"port": 0} | options)), unary or {}, streams or {}, on_error=on_error
        )
        self.server.on_idle = on_idle
        self.port = self.server.bind()
        self.thread = threading.Thread(target=self.server.run, name="loop")
        self.thread.start()
        self._channels: list[grpc.Channel] = []
        self.report: StopReport | None = None
        self.cancelled = 0
        """Calls that the test means to be left unanswered when it ends."""

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def channel(self, *options: tuple[str, Any], compression: grpc.Compression | None = None) -> grpc.Channel:
        unshared = ("grpc.use_local_subchannel_pool", 1)
        made = grpc.insecure_channel(self.target, options=(unshared, *options), compression=compression)
        self._channels.append(made)
        return made

    def unary(self, method: str, *options: tuple[str, Any]) -> grpc.UnaryUnaryMultiCallable:
        return self.channel(*options).unary_unary(method)

    def stream(self, method: str, *options: tuple[str, Any]) -> grpc.StreamStreamMultiCallable:
        return self.channel(*options).stream_stream(method)

    def on_loop(self, function: Callable[[], Any]) -> Any:
        """The result of `function`, run on the loop thread."""
        done = threading.Event()
        results: list[Any] = []

        def run() -> None:
            results.append(function())
            done.set()

        self.server.call_soon(run)
        assert done.wait(WAIT_S)
        return results[0]

    def quiet(self) -> bool:
        """Whether the loop finds nothing in flight within a bounded number of looks."""
        return wait_until(lambda: self.server.stats.calls_in_flight == 0)

    def stop(self, drain_s: float = 0.0, grace_s: float = WAIT_S) -> StopReport:
        if self.report is None:
            self.report = self.server.stop(drain_s=drain_s, grace_s=grace_s)
            self.thread.join(WAIT_S)
            assert not self.thread.is_alive()
        return self.report

    def __enter__(self) -> "Served":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()
        report = self.stop(grace_s=2.0)
        if error is None:
            assert report.cancelled == self.cancelled, f"{report.cancelled} calls were never answered"
            assert self.server.stats.calls_in_flight == 0


def wait_until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
    """Whether `condition` came true in time."""
    never = threading.Event()
    for _ in range(int(timeout_s / 0.001)):
        if condition():
            return True
        never.wait(0.001)
    return condition()
