"""LogSettings and TraceSetting: what they say is so, and what they change takes effect."""

import io
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server import logs
from forwardpass_server.access.gate import Credentials, Gate
from forwardpass_server.rpc.status import Code

if TYPE_CHECKING:
    from tests.server.rpc.conftest import Server

LOG = "/inference.GRPCInferenceService/LogSettings"
TRACE = "/inference.GRPCInferenceService/TraceSetting"

log = logging.getLogger("forwardpass_server.test")


class Held:
    def holds(self, token: str) -> bool:
        return token == "admin"


ADMIN = {"metadata": (("authorization", "Bearer admin"),)}


@pytest.fixture
def server(server_with: Callable[..., "Server"]) -> "Server":
    return server_with(gate=Gate(admin=Credentials(tokens=Held())))


@pytest.fixture
def written() -> Iterator[Callable[..., Callable[[], list[str]]]]:
    """Begins a log, and tells its lines."""
    handlers = []

    def start(form: str = "text", level: str = "info") -> Callable[[], list[str]]:
        stream = io.StringIO()
        handlers.append(logs.configure(form, level, stream))
        return lambda: stream.getvalue().splitlines()

    yield start
    for handler in handlers:
        logs.remove(handler)


def request(**settings: Any) -> pb.LogSettingsRequest:
    message = pb.LogSettingsRequest()
    for key, value in settings.items():
        field = {bool: "bool_param", int: "uint32_param", str: "string_param"}[type(value)]
        setattr(message.settings[key], field, value)
    return message


def told(server: "Server", **settings: Any) -> dict[str, Any]:
    result = server.ask(LOG, request(**settings), **ADMIN)
    assert (result.code, result.message) == (0, "")
    assert result.body is not None
    reply = pb.LogSettingsResponse.FromString(result.body).settings
    return {key: getattr(value, value.WhichOneof("parameter_choice")) for key, value in reply.items()}


def log_all() -> None:
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "at %s", logging.getLevelName(level))


@pytest.mark.parametrize(
    ("settings", "code", "part"),
    [
        ({"log_info": "yes"}, Code.INVALID_ARGUMENT, "'log_info' is a bool_param, got string_param"),
        ({"log_info": 1}, Code.INVALID_ARGUMENT, "got uint32_param"),
        ({"log_verbose_level": True}, Code.INVALID_ARGUMENT, "'log_verbose_level' is a uint32_param"),
        ({"log_format": "xml"}, Code.INVALID_ARGUMENT, "'default' or 'ISO8601'"),
        ({"log_colour": True}, Code.INVALID_ARGUMENT, "unknown log setting 'log_colour'; there are log_file"),
        ({"log_file": "/etc/passwd"}, Code.UNIMPLEMENTED, "standard error"),
        ({"log_error": False, "log_file": "x"}, Code.UNIMPLEMENTED, "standard error"),
    ],
)
def test_what_cannot_take_effect_is_refused_and_changes_nothing(
    server: "Server", written: Any, settings: dict[str, Any], code: Code, part: str
) -> None:
    written()
    before = told(server)
    result = server.ask(LOG, request(**settings), **ADMIN)
    assert result.code == code
    assert part in result.message
    assert told(server) == before


@pytest.mark.parametrize(("method", "message"), [(LOG, request(log_info=False)), (TRACE, None)])
def test_who_is_no_admin_may_read_and_not_change(server: "Server", written: Any, method: str, message: Any) -> None:
    written()
    if message is None:
        message = pb.TraceSettingRequest()
        message.settings["trace_level"].value.append("OFF")
    before = told(server)
    assert server.ask(method, message).code == Code.UNAUTHENTICATED
    assert server.fake.unary(method, b"").code == 0
    assert told(server) == before


def test_the_settings_of_the_start_are_told(server: "Server", written: Any) -> None:
    written(level="warning")
    assert told(server) == {
        "log_file": "",
        "log_info": False,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }


def test_each_level_goes_off_and_on_by_itself(server: "Server", written: Any) -> None:
    lines = written()
    log_all()
    assert [line.split()[-1] for line in lines()] == ["INFO", "WARNING", "ERROR", "CRITICAL"]
    assert told(server, log_warning=False)["log_warning"] is False
    log_all()
    assert [line.split()[-1] for line in lines()[4:]] == ["INFO", "ERROR", "CRITICAL"]
    told(server, log_warning=True, log_info=False, log_error=False)
    log_all()
    assert [line.split()[-1] for line in lines()[7:]] == ["WARNING"]
    told(server, log_info=True, log_error=True, log_verbose_level=2)
    assert told(server)["log_verbose_level"] == 1
    log_all()
    assert [line.split()[-1] for line in lines()[8:]] == ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


def test_everything_off_is_silent(server: "Server", written: Any) -> None:
    lines = written()
    told(server, log_info=False, log_warning=False, log_error=False)
    log_all()
    assert lines() == []


def test_times_by_iso_8601_and_back(server: "Server", written: Any) -> None:
    lines = written()
    assert told(server, log_format="ISO8601")["log_format"] == "ISO8601"
    log.info("now")
    told(server, log_format="default")
    log.info("then")
    first, second = lines()
    assert first[10] == "T"
    assert first.split()[0].endswith("Z")
    assert second[2] == ":"


def test_json_lines_keep_their_times(server: "Server", written: Any) -> None:
    written("json")
    assert told(server)["log_format"] == "ISO8601"
    result = server.ask(LOG, request(log_format="default"), **ADMIN)
    assert result.code == Code.UNIMPLEMENTED
    assert "--log-format=json" in result.message


def test_a_trace_is_off_and_cannot_be_begun(server: "Server") -> None:
    reply = server.get(pb.TraceSettingResponse, TRACE, pb.TraceSettingRequest(model_name="m"))
    assert {key: [*value.value] for key, value in reply.settings.items()} == {"trace_level": ["OFF"]}
    for key, values in (("trace_level", ["TIMESTAMPS"]), ("trace_rate", ["1"]), ("trace_file", ["/etc/passwd"])):
        message = pb.TraceSettingRequest()
        message.settings[key].value.extend(values)
        result = server.ask(TRACE, message, **ADMIN)
        assert result.code == Code.UNIMPLEMENTED
        assert "forwardpass-timing" in result.message
    off = pb.TraceSettingRequest()
    off.settings["trace_level"].value.append("OFF")
    assert server.ask(TRACE, off, **ADMIN).code == 0
