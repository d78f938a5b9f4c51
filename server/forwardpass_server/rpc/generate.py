"""A request for a text: what may be asked for, and how it is read.

Every number has its bounds, and whatever is outside is refused with them; so is a parameter that nobody knows. `pieces`
has the other half: how the text is said.
"""

import math
import secrets

from forwardpass_server.errors import InvalidRequest
from forwardpass_server.lifecycle.leases import Lease
from forwardpass_server.lifecycle.loaded import LoadedVersion
from forwardpass_server.observe.timeline import Timeline
from forwardpass_server.observe.tracing import Trace
from forwardpass_server.rpc import parameters
from forwardpass_server.rpc.answer import Caller
from forwardpass_server.rpc.pieces import Pieces, Whole, Words
from forwardpass_server.rpc.turn import Turn
from forwardpass_server.scheduling.text import Sampling, Text
from forwardpass_server.tensors.generator import Generator
from forwardpass_server.tensors.heads import Parameters
from forwardpass_server.tensors.infer_request import InferRequest
from forwardpass_server.tensors.stop_strings import StopStrings
from forwardpass_server.tensors.vocabulary import Vocabulary

PROMPT_TOKENS_MAX = 8192
TOKENS_MAX = 65_536
TOKENS = 256
"""Tokens of a text whose request does not say."""
TEMPERATURE_MIN, TEMPERATURE_MAX = 0.01, 100.0
"""Of a text that is not greedy; below it the numbers that the model divides by would leave float32."""
STOPS_MAX, STOP_CHARACTERS_MAX = 8, 128
SEED_BITS = 53
"""Of a seed that is chosen here: every client, in any language, can hold it exactly."""

STOPS = ("stop", *(f"stop_{number}" for number in range(2, STOPS_MAX + 1)))
SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "seed", *STOPS)
OF_THE_PROTOCOL = ("priority", "timeout", "headers", "binary_data_output", parameters.EMPTY_FINAL_RESPONSE)
"""Parameters that any request may have. The rest are refused: a setting that is misspelt, or that this server does not
have, would give another text than was asked for; and a text is no request of a sequence."""


def text_of(
    caller: Caller,
    lease: Lease[LoadedVersion],
    generator: Generator,
    decoded: InferRequest,
    timeline: Timeline,
    trace: Trace | None = None,
) -> Text:
    """The text that a request asks for, with its reader; it is the reader that gives the lease back, once submitted.

    Raises:
        InvalidRequest: a parameter or the prompt, by name, with what it may be and what it is.
        NotImplementedHere: a feature that generators do not have.
    """
    hints = parameters.read(decoded.head)
    if hints.sources or hints.targets or hints.classes:
        raise InvalidRequest("a generator takes its prompt from the message and answers with plain text")
    settings = decoded.parameters
    sampling = sampling_of(settings, generator)
    stops = _stops(settings)
    checked = lease.version.signature.check(decoded)
    prompt = checked.inputs[0]
    assert prompt is not None
    tokens = _tokens(prompt[0], generator.vocabulary)
    words = Words(lease.version, decoded.id, sampling.seed, generator.vocabulary, StopStrings(stops))
    make = Pieces if isinstance(caller, Turn) else Whole
    reader = make(caller, lease, words, timeline, trace)  # type: ignore[arg-type]  # of a kind, as was just asked
    deadline = min(caller.deadline, timeline.received_ns * 1e-9 + hints.timeout_s)
    return Text(tokens, sampling, reader, timeline, deadline)


def sampling_of(settings: Parameters, generator: Generator) -> Sampling:
    """How the tokens of a text are to be chosen. Raises InvalidRequest."""
    for name in settings:
        if name not in SETTINGS and name not in OF_THE_PROTOCOL:
            raise InvalidRequest(f"unknown parameter '{name}': a generator takes {', '.join(SETTINGS[:6])}, …")
    sampling = Sampling(
        max_tokens=_integer(settings, "max_tokens", TOKENS, 1, TOKENS_MAX),
        temperature=_temperature(settings),
        top_k=_integer(settings, "top_k", 0, 0, len(generator.vocabulary), "the size of the vocabulary"),
        top_p=_top_p(settings),
        seed=_integer(settings, "seed", secrets.randbits(SEED_BITS), -(2**63), 2**63 - 1),
    )
    for name, off in (("top_k", 0), ("top_p", 1.0)):
        if getattr(sampling, name) != off and name not in generator.inputs:
            raise InvalidRequest(f"parameter '{name}': this model was exported without it")
    return sampling


def _integer(settings: Parameters, name: str, otherwise: int, least: int, most: int, why: str = "") -> int:
    value = settings.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidRequest(
            f"parameter '{name}' is an integer from {least} to {most}{', ' * bool(why)}{why}, got {value!r:.40}"
        )
    return value


def _number(settings: Parameters, name: str, otherwise: float) -> float:
    """A number; NaN for what is none, so that it fits no range."""
    value = settings.get(name, otherwise)
    return math.nan if isinstance(value, bool | str) else float(value)


def _temperature(settings: Parameters) -> float:
    value = _number(settings, "temperature", 1.0)
    if value != 0 and not TEMPERATURE_MIN <= value <= TEMPERATURE_MAX:
        raise InvalidRequest(
            f"parameter 'temperature' is 0 (always the likeliest token) or a number from {TEMPERATURE_MIN:g} to "
            f"{TEMPERATURE_MAX:g}, got {settings['temperature']!r:.40}"
        )
    return value


def _top_p(settings: Parameters) -> float:
    value = _number(settings, "top_p", 1.0)
    if not 0 < value <= 1:
        raise InvalidRequest(
            f"parameter 'top_p' is a number above 0 and at most 1 (off), got {settings['top_p']!r:.40}"
        )
    return value


def _stops(settings: Parameters) -> list[str]:
    stops = []
    for name in STOPS:
        if name in settings:
            value = settings[name]
            if not isinstance(value, str) or not 0 < len(value) <= STOP_CHARACTERS_MAX:
                got = f"{len(value)} characters" if isinstance(value, str) else repr(value)
                raise InvalidRequest(
                    f"parameter '{name}' is a string of 1 to {STOP_CHARACTERS_MAX} characters, got {got}"
                )
            stops.append(value)
    return stops


def _tokens(prompt: str, vocabulary: Vocabulary) -> list[int]:
    if not prompt:
        raise InvalidRequest("the prompt is empty: a text goes on from something, and be it one character")
    try:
        return vocabulary.read(prompt, PROMPT_TOKENS_MAX)
    except InvalidRequest as error:
        raise InvalidRequest(f"the prompt has {error}") from None
