"""The `config` parameter of RepositoryModelLoad: any text is refused or obeyed, and neither hurts."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwardpass_server.lifecycle.config_pbtxt import CONFIG_BYTES_MAX, JSON_DEPTH_MAX, parse_json
from forwardpass_server.lifecycle.model_settings import ModelSettings, UnsupportedConfig
from forwardpass_server.lifecycle.versions import Latest


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "cannot be read"),
        ("null", "cannot be read"),
        ("[]", "cannot be read"),
        ("7", "cannot be read"),
        ("{", "cannot be read"),
        ('{"no_such_field": 1}', "no_such_field"),
        ('{"max_batch_size": "many"}', "max_batch_size"),
        ('{"max_batch_size": 1e99}', "cannot be read"),
        ('{"max_batch_size": 8, "max_batch_size": 9}', "cannot be read"),
        ('{"max_batch_size": ' + "9" * 6000 + "}", "cannot be read"),
        ("[" * 100_000, "deep"),
        ('{"a":' * 5000, "deep"),
        ("[" * (JSON_DEPTH_MAX + 1) + "]" * (JSON_DEPTH_MAX + 1), f"more than {JSON_DEPTH_MAX} deep"),
        (" " * (CONFIG_BYTES_MAX + 1), "larger than"),
        ('{"name": "other"}', "'other'"),
        ('{"sequence_batching": {"iterative_sequence": true}}', "iterative_sequence is not supported"),
        ('{"model_operations": {"op_library_filename": ["evil.so"]}}', "op_library_filename is not supported"),
        ('{"default_model_filename": "../../etc/passwd"}', "default_model_filename"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(text: str, part: str) -> None:
    with pytest.raises(UnsupportedConfig) as caught:
        parse_json(text, model="m")
    assert str(caught.value).startswith("parameter 'config': ")
    assert part in str(caught.value)


@given(
    text=st.text()
    | st.recursive(st.none() | st.text() | st.floats(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
        json.dumps
    )
)
def test_any_text_is_settings_or_a_refusal(text: str) -> None:
    with contextlib.suppress(UnsupportedConfig):
        assert isinstance(parse_json(text, model="m"), ModelSettings)


def test_both_spellings_of_protobuf_are_read() -> None:
    proto = parse_json('{"max_batch_size": 0, "version_policy": {"latest": {"num_versions": 2}}}', model="m")
    camel = parse_json('{"maxBatchSize": 0, "versionPolicy": {"latest": {"numVersions": 2}}}', model="m")
    assert proto == camel
    assert (proto.max_batch_size, proto.policy) == (0, Latest(2))
    assert parse_json("{}", model="m").max_batch_size is None, "not said"
