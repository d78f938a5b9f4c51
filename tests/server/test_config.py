"""Settings: defaults < environment < flags, each refused by name when it cannot be meant."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from forwardpass_server import config
from forwardpass_server.config import SETTINGS, ServerConfig, load
from forwardpass_server.errors import StartFailed

ROOT = ["--model-repository", "models"]
PREFIX = "FORWARDPASS_SERVER_"


def test_the_defaults_are_those_of_the_dataclass() -> None:
    assert load(ROOT, {}) == ServerConfig(model_repository=Path("models"))


def test_the_server_listens_on_this_machine_alone_unless_told_otherwise() -> None:
    settings = load(ROOT, {})
    assert (settings.host, settings.grpc_port, settings.metrics_port) == ("127.0.0.1", 8001, 8002)


def test_the_environment_overrides_defaults_and_flags_override_the_environment() -> None:
    environment = {f"{PREFIX}GRPC_PORT": "9000", f"{PREFIX}DRAIN_S": "35", f"{PREFIX}MODEL_REPOSITORY": "elsewhere"}
    settings = load(["--grpc-port=9001"], environment)
    assert (settings.grpc_port, settings.drain_s, settings.model_repository) == (9001, 35.0, Path("elsewhere"))


def test_of_a_flag_given_twice_the_last_counts() -> None:
    assert load([*ROOT, "--grpc-port=1", "--grpc-port=2"], {}).grpc_port == 2


def test_a_list_takes_every_occurrence_and_commas() -> None:
    arguments = [*ROOT, "--model-control-mode=explicit", "--load-model=a", "--load-model=b,c"]
    assert load(arguments, {}).load_model == ("a", "b", "c")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], False),
        (["--exit-on-error"], True),
        (["--exit-on-error", "--strict-readiness"], True),
        (["--exit-on-error=true"], True),
        (["--exit-on-error=Yes"], True),
        (["--exit-on-error=0"], False),
        (["--exit-on-error", "false"], False),
    ],
)
def test_a_switch_may_stand_alone_or_say_true_or_false(arguments: list[str], expected: bool) -> None:
    assert load([*ROOT, *arguments], {}).exit_on_error is expected


def test_none_turns_off_what_may_be_off() -> None:
    settings = load([*ROOT, "--metrics-port=none", "--max-connection-age-s=NONE"], {})
    assert (settings.metrics_port, settings.max_connection_age_s) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--grpc-port=http"], ["--grpc-port", "INTEGER", "'http'"]),
        (["--grpc-port=none"], ["--grpc-port", "INTEGER", "'none'"]),
        (["--grpc-port=65536"], ["--grpc-port", "between 0 and 65535", "65536"]),
        (["--grpc-port=-1"], ["--grpc-port", "-1"]),
        (["--drain-s=nan"], ["--drain-s", "nan"]),
        (["--drain-s=inf"], ["--drain-s", "inf"]),
        (["--max-version-gib=inf"], ["--max-version-gib", "inf"]),
        (["--repository-poll-secs=0"], ["--repository-poll-secs", "between 0.05"]),
        (["--exit-on-error=maybe"], ["--exit-on-error", "true|false", "'maybe'"]),
        (["--log-format=xml"], ["--log-format", "text, json", "'xml'"]),
        (["--host="], ["--host", "empty"]),
        (["--max-batch-size=0"], ["--max-batch-size", "between 1"]),
        (["--tls-cert=a.pem"], ["--tls-cert", "--tls-key"]),
        (["--tls-client-ca=a.pem"], ["--tls-client-ca", "--tls-cert"]),
        (["--load-model=a"], ["--load-model", "--model-control-mode"]),
        (["--grpc-port=7", "--metrics-port=7"], ["--grpc-port", "--metrics-port", "7"]),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name_and_value(arguments: list[str], parts: list[str]) -> None:
    with pytest.raises(StartFailed) as caught:
        load([*ROOT, *arguments], {})
    for part in parts:
        assert part in str(caught.value)


def test_two_free_ports_may_both_be_zero() -> None:
    assert load([*ROOT, "--grpc-port=0", "--metrics-port=0"], {}).metrics_port == 0


def test_a_missing_repository_says_how_to_give_it() -> None:
    with pytest.raises(StartFailed, match=f"--model-repository or {PREFIX}MODEL_REPOSITORY"):
        load([], {})


def test_a_variable_that_cannot_be_read_is_named_and_not_its_flag() -> None:
    with pytest.raises(StartFailed, match=f"^{PREFIX}GRPC_PORT must be INTEGER, got 'x'$"):
        load(ROOT, {f"{PREFIX}GRPC_PORT": "x"})


@pytest.mark.parametrize(
    ("unknown", "nearest"),
    [("GRPC_PROT", "GRPC_PORT"), ("DRAIN", "DRAIN_S"), ("MAX_BATCHSIZE", "MAX_BATCH_SIZE"), ("", "")],
)
def test_an_unknown_variable_is_refused_with_the_nearest_known_one(unknown: str, nearest: str) -> None:
    with pytest.raises(
        StartFailed, match=rf"{PREFIX}{unknown} in the environment; the nearest is {PREFIX}\w*{nearest}"
    ):
        load(ROOT, {PREFIX + unknown: "1"})


def test_the_links_that_kubernetes_sets_for_a_service_of_our_name_are_no_settings() -> None:
    links = {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "8001",
        "SERVICE_PORT_GRPC": "8001",
        "PORT": "tcp://10.0.0.1:8001",
        "PORT_8001_TCP": "tcp://10.0.0.1:8001",
        "PORT_8001_TCP_PROTO": "tcp",
        "PORT_8001_TCP_PORT": "8001",
        "PORT_8001_TCP_ADDR": "10.0.0.1",
    }
    assert load(ROOT, {PREFIX + name: value for name, value in links.items()}) == load(ROOT, {})


def test_variables_of_others_are_ignored() -> None:
    assert load(ROOT, {"GRPC_PORT": "1", "FORWARDPASS_DATA_DIR": "x"}) == load(ROOT, {})


def test_an_unknown_flag_ends_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load([*ROOT, "--grpc-prot=1"], {})
    assert caught.value.code == 2
    assert "--grpc-prot" in capsys.readouterr().err


def test_a_shortened_flag_is_not_guessed() -> None:
    with pytest.raises(SystemExit):
        load([*ROOT, "--grpc=1"], {})


def test_every_field_is_a_setting_with_a_meaning_and_a_default_that_passes_its_own_check() -> None:
    assert [setting.name for setting in SETTINGS] == [field.name for field in fields(ServerConfig)]
    for setting in SETTINGS:
        assert setting.about.meaning
        assert setting.group
        if setting.name != "model_repository":
            assert setting.read([setting.default_text], setting.flag) == setting.default or setting.kind is tuple


def test_help_names_every_flag_its_meaning_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(["--help"], {})
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for setting in SETTINGS:
        assert setting.flag in text
        assert f"(default: {setting.default_text})" in text


def test_the_table_in_the_readme_is_the_one_made_from_the_settings() -> None:
    readme = Path(__file__).resolve().parents[2] / "server" / "README.md"
    assert config.table() in readme.read_text(), f"put this into {readme.name}:\n{config.table()}"


def test_settings_are_read_without_loading_what_runs_models() -> None:
    program = (
        "import sys; from forwardpass_server import config, __main__; "
        "print(sorted({'onnxruntime', 'onnx', 'grpc', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
