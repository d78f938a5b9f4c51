"""LogSettings and TraceSetting: what is in force, and changes that take effect; whatever would not is refused.

Reading takes what data rpcs take; changing is for admins (`guarded.guarded_change`). No trace is switched
on here: OpenTelemetry's are a matter of the start (`--trace-endpoint`), and where the time of one request went is told
to whoever asks with it (metadata `forwardpass-timing: 1`).
"""

from collections.abc import Mapping

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest, NotImplementedHere
from forwardpass_server.logs import LogControl, LogState

VERBOSE_MAX = 1

_Setting = pb.LogSettingsResponse.SettingValue


class LogSettings:
    """The log of the process. Loop thread.

    Args:
        log: what can be changed.
    """

    def __init__(self, log: LogControl) -> None:
        self._log = log

    def log_settings(self, request: pb.LogSettingsRequest) -> pb.LogSettingsResponse:
        """All of them or none are changed.

        Raises:
            InvalidRequest: an unknown key, or a value of another type.
            NotImplementedHere: a setting that takes no effect at run time.
        """
        if request.settings:
            self._log.set(_changed(self._log.get(), request.settings))
        return pb.LogSettingsResponse(settings=_told(self._log.get()))


def trace_setting(request: pb.TraceSettingRequest) -> pb.TraceSettingResponse:
    """No trace of Triton's kind. Raises NotImplementedHere for whatever would begin one."""
    for key in sorted(request.settings):
        values = [*request.settings[key].value]
        if key != "trace_level" or values not in ([], ["OFF"]):
            raise NotImplementedHere(
                f"trace setting {key!r:.160}: this server writes no trace files; start it with --trace-endpoint, or "
                "send the metadata 'forwardpass-timing: 1' with a request to hear where its time went"
            )
    off = pb.TraceSettingResponse.SettingValue(value=["OFF"])
    return pb.TraceSettingResponse(settings={"trace_level": off})


def _told(state: LogState) -> dict[str, pb.LogSettingsResponse.SettingValue]:
    return {
        "log_file": _Setting(string_param=""),
        "log_info": _Setting(bool_param=state.info),
        "log_warning": _Setting(bool_param=state.warning),
        "log_error": _Setting(bool_param=state.error),
        "log_verbose_level": _Setting(uint32_param=VERBOSE_MAX if state.verbose else 0),
        "log_format": _Setting(string_param="ISO8601" if state.iso_time else "default"),
    }


def _changed(state: LogState, settings: Mapping[str, pb.LogSettingsRequest.SettingValue]) -> LogState:
    changes: dict[str, bool] = {}
    for key in sorted(settings):
        value = settings[key]
        match key:
            case "log_info" | "log_warning" | "log_error":
                changes[key.removeprefix("log_")] = bool(_value(key, value, "bool_param"))
            case "log_verbose_level":
                changes["verbose"] = bool(_value(key, value, "uint32_param"))
            case "log_format":
                changes["iso_time"] = _format(str(_value(key, value, "string_param"))) == "ISO8601"
            case "log_file":
                if _value(key, value, "string_param"):
                    raise NotImplementedHere("log_file: the log goes to standard error; send it on from there")
            case _:
                raise InvalidRequest(f"unknown log setting {key!r:.160}; there are {', '.join(_told(state))}")
    return state.but(**changes)


def _format(name: str) -> str:
    if name not in ("default", "ISO8601"):
        raise InvalidRequest(f"log_format is {name!r:.160}; it is 'default' or 'ISO8601'")
    return name


def _value(key: str, value: pb.LogSettingsRequest.SettingValue, field: str) -> object:
    given = value.WhichOneof("parameter_choice")
    if given != field:
        raise InvalidRequest(f"log setting {key!r} is a {field}, got {given or 'nothing'}")
    return getattr(value, field)
