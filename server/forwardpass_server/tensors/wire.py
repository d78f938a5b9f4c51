"""ModelInferRequest from bytes, ModelInferResponse to bytes, without copying a tensor on the way in.

A request is its head (see `heads`), an id, and raw tensors that stay where they arrived, as offsets into the message.
The one hard idea: most messages are, byte for byte, a message seen before with other tensors in it. So the decoder
remembers, for a length of message, where its parts lay last time; if the same bytes stand in the same places, it is
the same head and the same layout, and nothing is parsed. Likewise the encoder keeps all of a reply but its data.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from forwardpass_proto import grpc_service_pb2 as pb
from forwardpass_server.errors import InvalidRequest, RunFailed, TooLarge
from forwardpass_server.tensors import heads, scan, strings
from forwardpass_server.tensors.dtypes import BYTES, Dtype
from forwardpass_server.tensors.heads import Head, WireLimits
from forwardpass_server.tensors.infer_request import InferRequest, Span
from forwardpass_server.tensors.recent import Recent

ID, RAW_INPUT = 3, 7
"""Field numbers of ModelInferRequest that the decoder reads by itself."""
RAW_OUTPUT = 6
"""Field number of `raw_output_contents` in ModelInferResponse."""

HEADS_MAX = 512
HEAD_BYTES_MAX = 4096
"""Heads kept in each generation, and the longest one worth keeping. Full of the worst heads that a hostile caller can
send they hold about 50 MiB (measured with tracemalloc); of ordinary ones, 1."""
PLAIN_BYTES_MAX = 4096
"""Below this two copies of a reply's data are cheaper than one that looks at how it lies: 0.35 µs, else 0.6."""
REPLY_BYTES_MAX = 2**31 - 1
"""gRPC's and protobuf's largest message."""


class _Layout(NamedTuple):
    """Where the parts of a message lay: head, id field, rest of the head, raw tensors, end."""

    id_at: int
    """Where the id field begins; where the head ends, for a message without one."""
    id_prefix: bytes
    """Its tag and length."""
    rest_at: int
    """Where the id field ends: equal to `id_at` without one."""
    head_end: int
    prefixes: tuple[tuple[bytes, int], ...]
    """Tag and length of each raw tensor, and where they stand."""
    spans: tuple[Span, ...]


class Decoder:
    """Decodes the requests of one event loop; not for several threads.

    A request seen before takes 1.0 µs (1.6 with an id), by scan 7.1, parsed and read by protobuf 7.6; one of 600 KB 1.0
    against 45, since nothing is copied (10-float MLP request, one EPYC core, Python 3.11; `tests/benchmark/wire.py`).

    Args:
        limits: how much of each thing one request may hold.
    """

    def __init__(self, limits: WireLimits | None = None) -> None:
        self._limits = limits or WireLimits()
        self._heads: Recent[bytes, Head] = Recent(HEADS_MAX)
        self._layouts: Recent[int, _Layout] = Recent(HEADS_MAX)

    def decode(self, body: bytes) -> InferRequest:
        """A request from the bytes of a ModelInferRequest.

        Raises:
            InvalidRequest: not one, beyond a limit, or with data both raw and typed.
        """
        layout = self._layouts.get(len(body))
        if layout is not None:
            request = self._as_last_time(body, layout)
            if request is not None:
                return request
        return self._by_scan(body)

    def _as_last_time(self, body: bytes, layout: _Layout) -> InferRequest | None:
        """The request, if `body` has this layout and a head that is known; None says nothing about `body`."""
        id_at, id_prefix, rest_at, head_end, prefixes, spans = layout
        for encoded, at in prefixes:
            if not body.startswith(encoded, at):
                return None
        has_id = rest_at > id_at
        head = self._heads.get(body[:id_at] + body[rest_at:head_end] if has_id else body[:head_end])
        if head is None or head.elsewhere or (spans and len(spans) != len(head.inputs)):
            return None
        if not has_id:
            return InferRequest(head, "", body, spans)
        # The bytes around the id are whole fields, since they were so around an id at this very place before.
        if head.id_at != id_at or not body.startswith(id_prefix, id_at):
            return None
        return InferRequest(head, self._id(body, id_at + len(id_prefix), rest_at), body, spans)

    def _by_scan(self, body: bytes) -> InferRequest:
        id_field, raws, encoded, in_order = self._split(body)
        head = self._heads.get(encoded)
        if head is None:
            head = heads.parse(encoded, self._limits)
            if not head.typed and len(encoded) <= HEAD_BYTES_MAX:
                self._heads.put(encoded, head)
        if raws and head.typed:
            raise InvalidRequest("data both in raw_input_contents and in contents; use one of them for all inputs")
        spans = _spans(head, raws)
        request_id = "" if id_field is None else self._id(body, id_field.start, id_field.stop)
        if in_order and not head.typed and not head.elsewhere:
            self._remember(body, head, id_field, raws, spans)
        return InferRequest(head, request_id, body, spans)

    def _split(self, body: bytes) -> tuple[scan.Field | None, list[scan.Field], bytes, bool]:
        """The id field, the raw tensors, the bytes of all other fields, and whether the raw tensors come last."""
        limits = self._limits
        most = {heads.INPUTS: limits.inputs, heads.OUTPUTS: limits.inputs, 4: limits.parameters}
        counts: dict[int, int] = {}
        id_field: scan.Field | None = None
        raws: list[scan.Field] = []
        parts: list[bytes] = []
        begun = 0  # of the run of head fields that is not yet in `parts`
        in_order = True
        for field in scan.fields(body, 0, len(body)):
            count = counts[field.number] = counts.get(field.number, 0) + 1
            if count > most.get(field.number, limits.inputs):
                raise InvalidRequest(f"more than {count - 1} of field {field.number} in a ModelInferRequest")
            if field.number == RAW_INPUT and field.wire_type == scan.LENGTH:
                raws.append(field)
            elif field.number == ID and field.wire_type == scan.LENGTH:
                in_order = in_order and id_field is None and not raws
                if id_field is not None:
                    self._id(body, id_field.start, id_field.stop)  # the last one counts; those before must be text too
                id_field = field
            else:
                in_order = in_order and not raws
                continue
            parts.append(body[begun : field.at])
            begun = field.stop
        parts.append(body[begun:])
        return id_field, raws, b"".join(parts), in_order

    def _remember(
        self, body: bytes, head: Head, id_field: scan.Field | None, raws: list[scan.Field], spans: tuple[Span, ...]
    ) -> None:
        head_end = raws[0].at if raws else len(body)
        id_at = rest_at = head_end
        id_prefix = b""
        if id_field is not None:
            head.id_at = id_at = id_field.at
            rest_at = id_field.stop
            id_prefix = body[id_at : id_field.start]
        prefixes = tuple((body[raw.at : raw.start], raw.at) for raw in raws)
        self._layouts.put(len(body), _Layout(id_at, id_prefix, rest_at, head_end, prefixes, spans))

    def _id(self, body: bytes, start: int, stop: int) -> str:
        try:
            request_id = body[start:stop].decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest("the request's id is not UTF-8") from error
        if len(request_id) > self._limits.id_characters:
            raise InvalidRequest(f"id of {len(request_id)} characters; at most {self._limits.id_characters}")
        return request_id


def _spans(head: Head, raws: list[scan.Field]) -> tuple[Span, ...]:
    """Where the raw tensor of each input lies; nowhere in the message, for one in shared memory."""
    if not raws:
        return ()
    in_message = sum(not tensor.elsewhere for tensor in head.inputs)
    if len(raws) != in_message:
        raise InvalidRequest(f"{in_message} inputs but {len(raws)} raw_input_contents; one for each input")
    spans = iter((raw.start, raw.stop) for raw in raws)
    return tuple((0, 0) if tensor.elsewhere else next(spans) for tensor in head.inputs)


def with_id(request_id: str) -> bytes:
    """The field that gives a ModelInferResponse its id, to be written anywhere between its fields."""
    encoded = request_id.encode()
    return scan.prefix(ID, len(encoded)) + encoded if encoded else b""


class _Prepared(NamedTuple):
    """All of a reply but its id and its data."""

    before_id: bytes
    before_data: tuple[bytes, ...]
    """What stands before the data of each output; the first has the heads of all outputs, too. The length of BYTES
    data is only known with them, and is left out."""
    of_bytes: tuple[bool, ...]
    """Which outputs are BYTES."""
    whole: bytes
    """All but the data of a reply without an id, where there is one output and it is not BYTES; else empty."""


class Replies:
    """Encodes the answers of one model version, all of them but id and data prepared. Any thread.

    0.9 µs for one FP32 output, where `Encoder`, which does not know whose answers it encodes, takes 1.6.

    Args:
        model_name, model_version: as they are to stand in the reply.
        outputs: name and datatype of each output of the signature.
    """

    def __init__(self, model_name: str, model_version: str, outputs: Sequence[tuple[str, Dtype]]) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._outputs = outputs
        self._prepared: Recent[tuple[object, ...], _Prepared] = Recent(HEADS_MAX)

    def encode(self, request_id: str, wanted: Sequence[int], arrays: Sequence[np.ndarray]) -> bytes:
        """The bytes of a ModelInferResponse.

        Args:
            request_id: the caller's; "" for none.
            wanted: indices of the outputs, in the order they are to have.
            arrays: the outputs, likewise.

        Raises:
            RunFailed: an array's dtype is not its datatype's.
            TooLarge: the reply would pass gRPC's largest message.
        """
        key: tuple[object, ...]
        key = (wanted, arrays[0].shape) if len(arrays) == 1 else (wanted, *[array.shape for array in arrays])
        prepared = self._prepared.get(key)
        if prepared is None:
            named = [(*self._outputs[index], array) for index, array in zip(wanted, arrays, strict=True)]
            prepared = _prepare(self._model_name, self._model_version, named)
            self._prepared.put(key, prepared)
        if prepared.whole and not request_id and arrays[0].nbytes < PLAIN_BYTES_MAX:
            return prepared.whole + arrays[0].tobytes()
        return _joined(prepared, request_id, arrays)


class Encoder:
    """Encodes replies, always as `raw_output_contents`: clients index those by output. Any thread."""

    def __init__(self) -> None:
        self._prepared: Recent[tuple[object, ...], _Prepared] = Recent(HEADS_MAX)

    def encode(
        self,
        *,
        model_name: str,
        model_version: str,
        request_id: str,
        outputs: Sequence[tuple[str, Dtype, np.ndarray]],
    ) -> bytes:
        """The bytes of a ModelInferResponse.

        Args:
            outputs: name, datatype and array of each output, in the order they are to have.

        Raises:
            RunFailed: an array's dtype is not its datatype's.
            TooLarge: the reply would pass gRPC's largest message.
        """
        # From a prepared head 1.6 µs, by protobuf 2.9 (one FP32 output; tests/benchmark/wire.py).
        key: tuple[object, ...]
        if len(outputs) == 1:  # the common case, without a loop: 0.2 µs, else 0.8
            name, _, array = outputs[0]
            key = (model_name, model_version, name, array.dtype, array.shape)
        else:
            key = (model_name, model_version, *[(name, array.dtype, array.shape) for name, _, array in outputs])
        prepared = self._prepared.get(key)
        if prepared is None:
            prepared = _prepare(model_name, model_version, outputs)
            self._prepared.put(key, prepared)
        return _joined(prepared, request_id, [array for _, _, array in outputs])


def _prepare(model_name: str, model_version: str, outputs: Sequence[tuple[str, Dtype, np.ndarray]]) -> _Prepared:
    heads_of_outputs = pb.ModelInferResponse()
    before_data = []
    for name, dtype, array in outputs:
        if array.dtype != dtype.numpy:
            raise RunFailed(f"output '{name}' of model '{model_name}' came as {array.dtype}, the graph says {dtype}")
        heads_of_outputs.outputs.add(name=name, datatype=dtype.wire, shape=array.shape)
        before_data.append(b"" if dtype is BYTES else scan.prefix(RAW_OUTPUT, array.nbytes))
    if before_data:
        before_data[0] = heads_of_outputs.SerializeToString() + before_data[0]
    before_id = pb.ModelInferResponse(model_name=model_name, model_version=model_version).SerializeToString()
    of_bytes = tuple(dtype is BYTES for _, dtype, _ in outputs)
    whole = before_id + before_data[0] if of_bytes == (False,) else b""
    return _Prepared(before_id, tuple(before_data), of_bytes, whole)


def _joined(prepared: _Prepared, request_id: str, arrays: Sequence[np.ndarray]) -> bytes:
    """The reply that was prepared for arrays of these shapes. The one copy of their data."""
    head = prepared.before_id + with_id(request_id) if request_id else prepared.before_id
    parts: list[bytes | np.ndarray] = [head]
    for before, is_bytes, array in zip(prepared.before_data, prepared.of_bytes, arrays, strict=True):
        data: bytes | np.ndarray
        if is_bytes:
            data = strings.encode(array)
            parts += (before, scan.prefix(RAW_OUTPUT, len(data)), data)
        else:
            data = array if array.flags.c_contiguous else np.ascontiguousarray(array)
            parts += (before, data)
    reply = b"".join(parts)  # type: ignore[arg-type]  # numpy arrays are buffers
    if len(reply) > REPLY_BYTES_MAX:
        raise TooLarge(f"the answer has {len(reply)} bytes, gRPC carries {REPLY_BYTES_MAX}: ask for fewer rows")
    return reply
