"""What the processes of one server say to each other about control rpcs: an order for all, and each one's reply.

An order is an rpc as it came, by method and body, so the supervisor passes on what it cannot read. A reply says beside
the answer what the order left in force: under a key, the order that a process which begins anew has to be given.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

InForce = Mapping[str, "Order"]
"""What was ordered and holds, by what it is about; given in this order to a process that begins anew."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A control rpc.

    Args:
        method: "/package.Service/Method".
        body: its message.
        changes: it changes what a process serves or does; otherwise it only asks.
    """

    method: str
    body: bytes
    changes: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one process answers.

    Args:
        process: its number.
        code: of gRPC; 0 for OK.
        message: of a failure.
        body: the answer.
        trailers: trailing metadata.
        silent: it did not answer in time; this stands for it.
        leaves: what is in force there now, and was not before, or otherwise; None under what is not any more.
    """

    process: int = 0
    code: int = 0
    message: str = ""
    body: bytes = b""
    trailers: tuple[tuple[str, str], ...] = ()
    silent: bool = False
    leaves: Mapping[str, Order | None] = field(default_factory=dict)


def pack_order(order: Order) -> bytes:
    """As bytes for the link; likewise below."""
    return _json(_plain_order(order))


def unpack_order(frame: bytes) -> Order:
    """The order in `frame`."""
    return _order(json.loads(frame))


def pack_replies(replies: Sequence[Reply]) -> bytes:
    """See `pack_order`."""
    return _json(
        [
            {
                **vars(reply),
                "body": _text(reply.body),
                "leaves": {key: None if order is None else _plain_order(order) for key, order in reply.leaves.items()},
            }
            for reply in replies
        ]
    )


def unpack_replies(frame: bytes) -> list[Reply]:
    """The replies in `frame`."""
    return [
        Reply(
            **{
                **plain,
                "body": _bytes(plain["body"]),
                "trailers": tuple((key, value) for key, value in plain["trailers"]),
                "leaves": {key: None if each is None else _order(each) for key, each in plain["leaves"].items()},
            }
        )
        for plain in json.loads(frame)
    ]


def pack_in_force(in_force: InForce) -> bytes:
    """See `pack_order`."""
    return _json({key: _plain_order(order) for key, order in in_force.items()})


def unpack_in_force(frame: bytes) -> dict[str, Order]:
    """What is in force by `frame`, in its order."""
    return {key: _order(plain) for key, plain in json.loads(frame).items()}


def _plain_order(order: Order) -> dict[str, Any]:
    return {**vars(order), "body": _text(order.body)}


def _order(plain: dict[str, Any]) -> Order:
    return Order(**{**plain, "body": _bytes(plain["body"])})


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _text(body: bytes) -> str:
    """Bytes as JSON has them: one character a byte."""
    return body.decode("latin-1")


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")
