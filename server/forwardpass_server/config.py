"""Every setting of the server: one frozen dataclass, read from flags and from `FORWARDPASS_SERVER_…`.

The one thing to know: a field of `ServerConfig` is the only place where a setting exists. Its flag, its environment
variable, its line in `--help` and its row in `server/README.md` are made from it.
"""

import argparse
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from forwardpass_server import __version__
from forwardpass_server.errors import StartFailed
from forwardpass_server.lifecycle.repository import is_model_name

ENVIRONMENT_PREFIX = "FORWARDPASS_SERVER_"

# Kubernetes puts the address of every Service of the namespace into the environment. A Service called
# `forwardpass-server` yields FORWARDPASS_SERVER_SERVICE_HOST, …_PORT_8001_TCP_ADDR and so on: not ours, and no mistake.
_SERVICE_LINK = re.compile(r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)")

_TRUE, _FALSE = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


@dataclass(frozen=True)
class About:
    """What a field of `ServerConfig` means.

    Args:
        meaning: one line, with the unit.
        low: smallest value allowed.
        high: largest value allowed.
        opens: the heading that this field and those after it stand under.
    """

    meaning: str
    low: float | None = None
    high: float | None = None
    opens: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """The settings, checked once.

    Raises:
        StartFailed: a value is out of range, or two settings contradict each other; the message names the flag.
    """

    model_repository: Annotated[Path, About("folder that holds `<model>/<version>/model.onnx`", opens="Repository")]
    model_name: Annotated[
        str | None,
        About(
            "name of the model where that folder is itself one version (`model.onnx`) or one model "
            "(`<version>/model.onnx`), as KServe mounts it; not used where it holds models"
        ),
    ] = None
    model_control_mode: Annotated[
        Literal["poll", "none", "explicit"],
        About(
            "poll: follow what is published; none: load once what is there at start; "
            "explicit: load the models that --load-model names, then obey RepositoryModelLoad and …Unload"
        ),
    ] = "poll"
    load_model: Annotated[tuple[str, ...], About("a model to load in mode explicit; repeatable; `*`: all")] = ()
    repository_poll_secs: Annotated[
        float,
        About(
            "seconds between two looks at the repository; a version without a manifest is loaded after it has not "
            "changed for as long",
            low=0.05,
            high=86400,
        ),
    ] = 2.0
    require_manifest: Annotated[bool, About("refuse versions without manifest.json: nothing proves them")] = False
    exit_on_error: Annotated[
        bool, About("refuse to start when a model found at start cannot be served; otherwise the others are served")
    ] = False
    strict_readiness: Annotated[
        bool, About("ready only while every model has a version that serves; otherwise while one has")
    ] = False
    load_timeout_s: Annotated[
        float,
        About("seconds for the trial load of a version without manifest in a child process", low=0.1, high=86400),
    ] = 120.0
    max_version_gib: Annotated[float, About("GiB that the files of one version may have together", low=1e-6)] = 64.0
    scratch_dir: Annotated[
        Path | None, About("folder for the private copy that a version is loaded from; none: the system's own")
    ] = None

    device: Annotated[
        str,
        About("auto, cpu, cuda, cuda:1, tensorrt …; auto may fall back to the CPU, and says so", opens="Running"),
    ] = "auto"
    processes: Annotated[
        int,
        About("processes that share the port, each serving every model; about one per CPU core", low=1, high=1024),
    ] = 1
    process_silence_s: Annotated[
        float | None,
        About(
            "seconds after which a process that does not answer its supervisor is killed and replaced; none: never",
            low=0.1,
        ),
    ] = 30.0
    intra_op_threads: Annotated[int, About("threads of ONNX Runtime within one run", low=1, high=1024)] = 1
    max_batch_size: Annotated[
        int, About("rows of one run, for models whose config.pbtxt does not say", low=1, high=65536)
    ] = 64

    host: Annotated[
        str, About("address to listen on; 0.0.0.0: every IPv4 address; `::`: every address", opens="Network")
    ] = "127.0.0.1"
    grpc_port: Annotated[int, About("port of gRPC; 0: any free one", low=0, high=65535)] = 8001
    metrics_port: Annotated[
        int | None, About("port of the Prometheus page; 0: any free one; none: no page", low=0, high=65535)
    ] = 8002
    enable_reflection: Annotated[bool, About("serve grpc.reflection.v1, for clients without our .proto files")] = False
    triton_status_codes: Annotated[
        bool,
        About("answer UNAVAILABLE, as Triton does, to what is full, late or not allowed, for clients that rely on it"),
    ] = False
    triton_metrics: Annotated[
        bool, About("show what Triton's metrics page has too, by Triton's names (nv_…), for dashboards made for it")
    ] = False
    tls_cert: Annotated[Path | None, About("PEM file, the server's certificate chain; none: plaintext")] = None
    tls_key: Annotated[Path | None, About("PEM file, its private key")] = None
    tls_client_ca: Annotated[
        Path | None, About("PEM file, who signs clients' certificates (mTLS); none: clients need no certificate")
    ] = None
    max_connection_age_s: Annotated[
        float | None,
        About("seconds after which a connection is asked to reconnect, so that load spreads; none: never", low=0.1),
    ] = None
    max_connection_age_grace_s: Annotated[
        float | None, About("seconds that its calls have to finish after that; none: as long as they need", low=0.1)
    ] = None
    max_connections: Annotated[int | None, About("connections at a time; none: no limit", low=1)] = None

    enable_admin: Annotated[
        bool,
        About(
            "let admins load and unload models and change settings; needs --admin-token-file or --admin-subject",
            opens="Access",
        ),
    ] = False
    admin_token_file: Annotated[
        Path | None, About("file of bearer tokens that are good for everything, one a line; read again when it changes")
    ] = None
    admin_subject: Annotated[
        tuple[str, ...],
        About("a name in a client certificate (common or alternative name) that is good for everything; repeatable"),
    ] = ()
    data_token_file: Annotated[
        Path | None, About("file of bearer tokens that are good for all but admin rpcs; likewise")
    ] = None
    data_subject: Annotated[
        tuple[str, ...],
        About(
            "a name in a client certificate that is good for all but admin rpcs; repeatable; with neither this nor "
            "--data-token-file they are open to everybody"
        ),
    ] = ()
    enable_shared_memory: Annotated[
        bool,
        About(
            "let clients of this machine and user pass tensors in POSIX shared memory; every client may use a region"
        ),
    ] = False

    response_compression: Annotated[
        Literal["none", "gzip", "deflate"],
        About("how answers are compressed for clients that can read it; compressed requests are always read"),
    ] = "none"

    max_message_mib: Annotated[
        float, About("MiB of one message, received or sent", low=0.001, high=2047, opens="Limits")
    ] = 64.0
    max_metadata_kib: Annotated[
        int, About("KiB of the metadata of one call, gRPC's own (about 500 bytes) included", low=1, high=1024)
    ] = 16
    max_queue_requests: Annotated[
        int, About("requests that may wait for one version; the next gets RESOURCE_EXHAUSTED", low=1)
    ] = 1024
    max_queue_mib: Annotated[
        float, About("MiB of tensors that may wait for one version; likewise", low=0.001, high=2**20)
    ] = 256.0

    response_cache_mib: Annotated[
        float,
        About("MiB of answers kept for models whose config.pbtxt enables response_cache; 0: none", low=0, high=2**20),
    ] = 64.0
    max_run_s: Annotated[
        float | None,
        About("seconds that one run of a model may take before it is ended, and its requests fail; none: any", low=0.1),
    ] = 60.0

    drain_s: Annotated[
        float,
        About("seconds to keep serving, as NOT_SERVING, after SIGTERM, so that clients leave", 0, 3600, "Stopping"),
    ] = 0.0
    grace_s: Annotated[float, About("seconds that admitted calls have to finish after that", low=0, high=3600)] = 20.0

    trace_endpoint: Annotated[
        str | None,
        About(
            "where traces go by OTLP over HTTP, as http://collector:4318/v1/traces; needs the extra `tracing`; "
            "none: off",
            opens="Traces",
        ),
    ] = None
    trace_sample_ratio: Annotated[
        float,
        About("share of the requests that are traced among those whose caller has not decided", low=0, high=1),
    ] = 0.01

    log_format: Annotated[Literal["text", "json"], About("for people, or for machines", opens="Logs")] = "text"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], About("the least that is logged; info has no line per request")
    ] = "info"

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            setting.check(getattr(self, setting.name))
        if (self.tls_cert is None) != (self.tls_key is None):
            raise StartFailed("--tls-cert and --tls-key go together; give both or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise StartFailed("--tls-client-ca needs --tls-cert and --tls-key")
        if self.enable_admin and self.admin_token_file is None and not self.admin_subject:
            raise StartFailed("--enable-admin needs --admin-token-file or --admin-subject: who is an admin?")
        if (self.admin_token_file is not None or self.admin_subject) and not self.enable_admin:
            raise StartFailed("--admin-token-file and --admin-subject need --enable-admin")
        if (self.admin_subject or self.data_subject) and self.tls_client_ca is None:
            raise StartFailed("--admin-subject and --data-subject need --tls-client-ca, which vouches for the names")
        if self.model_name is not None and not is_model_name(self.model_name):
            raise StartFailed(
                f"--model-name must be 1 to 128 letters, digits, '_', '.', '-', beginning with a letter, a digit or "
                f"'_'; got {self.model_name!r:.160}"
            )
        if self.load_model and self.model_control_mode != "explicit":
            raise StartFailed(f"--load-model needs --model-control-mode=explicit, got {self.model_control_mode}")
        if self.trace_endpoint is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", self.trace_endpoint):
            raise StartFailed(
                "--trace-endpoint must be a URL such as http://collector:4318/v1/traces, "
                f"got {self.trace_endpoint!r:.160}"
            )
        if self.processes > 1:
            self._check_processes()
        if self.grpc_port == self.metrics_port != 0:
            raise StartFailed(f"--grpc-port and --metrics-port are both {self.grpc_port}; they need one each")

    def _check_processes(self) -> None:
        """Refuse what one process would know and the others would not."""
        if self.enable_shared_memory:
            raise StartFailed(
                f"--enable-shared-memory needs --processes=1, got {self.processes}: "
                "a region is registered with one process, and requests go to any"
            )


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> ServerConfig:
    """The settings: defaults, over them the environment, over it the flags.

    Args:
        arguments: of the command line, without the program's name.
        environment: variables that do not begin with `FORWARDPASS_SERVER_` are ignored.

    Raises:
        StartFailed: an unknown variable, a value that cannot be read or is out of range, a setting that is missing.
        SystemExit: `--help`, `--version`, or a flag that does not exist.
    """
    values = _from_environment(environment) | _from_flags(arguments)
    if "model_repository" not in values:
        raise StartFailed(f"which folder to serve? Give --model-repository or {ENVIRONMENT_PREFIX}MODEL_REPOSITORY")
    return ServerConfig(**values)


def table() -> str:
    """Every setting as a Markdown table, in order; `server/README.md` contains it word for word."""
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    rows += [f"| `{each.flag}` | {each.default_text} | {each.about.meaning} |" for each in SETTINGS]
    return "\n".join(rows) + "\n"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A field of `ServerConfig` as flag and variable."""

    name: str
    kind: type
    optional: bool
    choices: tuple[str, ...]
    default: Any
    group: str
    about: About

    @property
    def flag(self) -> str:
        """`--grpc-port`."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """`FORWARDPASS_SERVER_GRPC_PORT`."""
        return f"{ENVIRONMENT_PREFIX}{self.name.upper()}"

    @property
    def takes(self) -> str:
        """What a value looks like: `NUMBER|none`."""
        name = {bool: "true|false", int: "INTEGER", float: "NUMBER", Path: "PATH", tuple: "NAME", str: "TEXT"}[
            self.kind
        ]
        return "|".join(self.choices or (name,)) + ("|none" if self.optional else "")

    @property
    def default_text(self) -> str:
        """The default as one would write it."""
        if self.default is MISSING:
            return "required"
        if self.default is None or self.default == ():
            return "none"
        if isinstance(self.default, bool):
            return str(self.default).lower()
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def read(self, texts: Sequence[str], source: str) -> Any:
        """The value that was written.

        Args:
            texts: every occurrence; the last one counts, except for tuples, which take them all.
            source: the flag or variable, for the message.

        Raises:
            StartFailed: it cannot be read.
        """
        text = texts[-1].strip()
        if self.kind is tuple:
            return tuple(part.strip() for each in texts for part in each.split(",") if part.strip())
        if self.optional and text.lower() == "none":
            return None
        try:
            if self.kind is bool:
                return _boolean(text)
            if self.kind in (int, float):
                return self.kind(text)
        except ValueError as exc:
            raise StartFailed(f"{source} must be {self.takes}, got {text!r}") from exc
        if not text:
            raise StartFailed(f"{source} must be {self.takes}, and is empty")
        return Path(text).expanduser() if self.kind is Path else text

    def check(self, value: object) -> None:
        """Raises:
        StartFailed: not one of the choices, or out of range.
        """
        if self.choices and value not in self.choices:
            raise StartFailed(f"{self.flag} must be one of {', '.join(self.choices)}, got {value!r}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return
        low, high = self.about.low, self.about.high
        if not (low is None or value >= low) or not (high is None or value <= high) or not math.isfinite(value):
            limits = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
            raise StartFailed(f"{self.flag} must be {limits}, got {value:g}")


def _settings() -> tuple[Setting, ...]:
    hints = typing.get_type_hints(ServerConfig, include_extras=True)
    settings, group = [], ""
    for each in fields(ServerConfig):
        annotation, about = typing.get_args(hints[each.name])
        group = about.opens or group
        optional = isinstance(annotation, types.UnionType)
        if optional:
            annotation = next(part for part in typing.get_args(annotation) if part is not types.NoneType)
        origin = typing.get_origin(annotation)
        settings.append(
            Setting(
                name=each.name,
                kind=tuple if origin is tuple else str if origin is Literal else annotation,
                optional=optional,
                choices=typing.get_args(annotation) if origin is Literal else (),
                default=each.default,
                group=group,
                about=about,
            )
        )
    return tuple(settings)


SETTINGS = _settings()
"""Every field of `ServerConfig`, in order."""


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values = {}
    known = {setting.variable: setting for setting in SETTINGS}
    for variable, text in sorted(environment.items()):
        if variable in known:
            values[known[variable].name] = known[variable].read([text], variable)
        elif variable.startswith(ENVIRONMENT_PREFIX) and not _SERVICE_LINK.fullmatch(
            variable.removeprefix(ENVIRONMENT_PREFIX)
        ):
            nearest = difflib.get_close_matches(variable, known, n=1, cutoff=0)[0]
            raise StartFailed(f"unknown setting {variable} in the environment; the nearest is {nearest}")
    return values


def _from_flags(arguments: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="forwardpass-server",
        usage="forwardpass-server --model-repository PATH [flags]",
        description="Serve the ONNX models of a repository over gRPC (Open Inference Protocol v2).",
        epilog=f"Each flag is also an environment variable: {ENVIRONMENT_PREFIX}GRPC_PORT is --grpc-port. Flags win.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    groups: dict[str, Any] = {}
    for each in SETTINGS:
        if each.group not in groups:
            groups[each.group] = parser.add_argument_group(each.group)
        optional_value: dict[str, Any] = {"nargs": "?", "const": "true"} if each.kind is bool else {}
        groups[each.group].add_argument(
            each.flag,
            dest=each.name,
            action="append",
            default=argparse.SUPPRESS,
            metavar=each.takes,
            help=f"{each.about.meaning} (default: {each.default_text})",
            **optional_value,
        )
    given: dict[str, list[str]] = vars(parser.parse_args(arguments))
    return {each.name: each.read(given[each.name], each.flag) for each in SETTINGS if each.name in given}


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ValueError(text)
