"""The command `forwardpass`: ask a model server from a terminal.

Exit codes: 0 done; 1 the server refused or failed; 2 the command line or a file is wrong; 3 not now (unreachable, not
ready, overloaded, too late); 130 interrupted.
"""

import argparse
import asyncio
import json
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

import numpy as np

from forwardpass import errors, explanation, images, load, render, values, writing
from forwardpass.address import DEFAULT_PORT
from forwardpass.aio import AsyncClient
from forwardpass.client import Client
from forwardpass.credentials import TLS
from forwardpass.results import Health, InferResult

REFUSED, USAGE, NOT_NOW, INTERRUPTED = 1, 2, 3, 130

DEADLINE_S = 10.0
TEXT_DEADLINE_S = 60.0
"""A text is one call, and a long one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    options = _parser().parse_args(arguments)
    if options.deadline_s is None:
        options.deadline_s = options.usual_deadline_s
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except errors.ForwardpassError as error:
        words = " ".join(f"{error}{_way_out(error)}".split())
        print(f"forwardpass: {words}", file=sys.stderr)
        if isinstance(error, errors.TryAgain):
            return NOT_NOW
        return USAGE if isinstance(error, errors.ClientMisused) else REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `forwardpass models | head`: nobody reads on, and nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _way_out(error: errors.ForwardpassError) -> str:
    if isinstance(error, errors.ServerUnavailable) and "connect" in error.reason:
        return "; is a server there? start one with `forwardpass-server --model-repository DIR`, or give --url"
    if isinstance(error, errors.ModelNotFound):
        return "; `forwardpass models` lists what is served"
    if isinstance(error, errors.DeadlineExceeded):
        return "; --deadline-s gives more time"
    if isinstance(error, errors.Overloaded) and error.retry_after_s is not None:
        return f"; the server asks to retry after {error.retry_after_s:.3g} s"
    return ""


def _models(options: argparse.Namespace) -> int:
    with Client(**_settings(options)) as client:
        if options.model is not None:
            metadata = client.metadata(options.model, options.model_version)
            _print(options, asdict(metadata), render.signature(metadata))
            return 0
        try:
            models = client.models()
        except errors.Unsupported as missing:
            raise errors.Unsupported(
                "this server does not list its models; ask for one by name: forwardpass models NAME",
                code=missing.code,
                address=missing.address,
            ) from missing
    _print(options, [asdict(row) for row in models], render.index(models))
    return 0


def _health(options: argparse.Namespace) -> int:
    with Client(**_settings(options)) as client:
        try:
            health, source = client.health(options.service), "grpc.health.v1"
        except errors.Unsupported:
            if options.service:
                raise
            health, source = Health.SERVING if client.ready() else Health.NOT_SERVING, "ServerReady"
        server = client.server()
    facts = {"url": options.url, "health": str(health), "source": source}
    facts |= {"service": options.service} if options.service else {}
    facts |= {"server": server.name, "version": server.version}
    _print(options, facts, render.table(list(facts.items())))
    return 0 if health is Health.SERVING else NOT_NOW


def _predict(options: argparse.Namespace) -> int:
    with Client(**_settings(options)) as client:
        metadata = client.metadata(options.model, options.model_version)
        inputs, choices = values.read(options.inputs, metadata, invert=options.invert)
        for choice in choices:
            print(f"forwardpass: {choice}", file=sys.stderr)
        answer = client.infer(options.model, inputs, options.outputs or None, version=options.model_version)
    bar = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    _print(options, render.result_as_json(answer, metadata.labels), render.result(answer, metadata.labels, bar))
    return 0


def _explain(options: argparse.Namespace) -> int:
    explainer = options.explainer or explanation.explainer_of(options.model)
    with Client(**_settings(options)) as client:
        try:
            metadata = client.metadata(explainer)
        except errors.ModelNotFound as missing:
            missing.reason += (
                f"; '{options.model}' is explained by '{explainer}', which `forwardpass-train explain` publishes"
            )
            raise
        tensor = explanation.check_explains(metadata)
        picture = images.layout(tensor.shape, tensor.name) if options.out else None
        inputs, choices = values.read(options.inputs, metadata, invert=options.invert)
        answer = client.infer(explainer, inputs)
        if explainer != options.model:
            choices += _differences(client, options.model, inputs, answer)
    for choice in choices:
        print(f"forwardpass: {choice}", file=sys.stderr)
    found = explanation.read(inputs[tensor.name], answer, metadata.labels)
    if picture is not None:
        from forwardpass import explain_picture

        of = f"{answer.model_name}, version {answer.model_version}"
        explain_picture.save(options.out, found, picture, model=of)
    bar = "█" if "utf" in (sys.stdout.encoding or "").lower() else "#"
    facts = explanation.as_json(answer, found, metadata.labels)
    _print(options, facts, explanation.text(answer, found, metadata.labels, bar))
    return 0


def _differences(client: Client, model: str, inputs: dict[str, Any], explained: InferResult) -> list[str]:
    """Whether the model itself, where it is served, answers as its explanation says that it does."""
    name = explanation.answer_name(list(explained))
    try:
        own = client.infer(model, inputs)
    except (errors.ModelNotFound, errors.ServerUnavailable, errors.InvalidRequest) as unknown:
        return [f"'{model}' itself could not be asked ({unknown.reason}), so this may explain another version of it"]
    if name in own and own[name].shape == explained[name].shape and np.allclose(own[name], explained[name], atol=1e-3):
        return []
    return [
        f"version {own.model_version} of '{model}' answers otherwise than the network explained here: "
        "publish its explanation again"
    ]


def _generate(options: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    with Client(**_settings(options)) as client:
        text = client.generate(
            options.model,
            prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
            stop=options.stop or (),
            version=options.model_version,
        )
        with text:
            seen = writing.show(text, None if options.json else sys.stdout)
    if options.json:
        print(json.dumps(writing.as_json(prompt, text, seen), ensure_ascii=False))
    else:
        print(writing.words(text, seen), file=sys.stderr)
    return 0


def _load(options: argparse.Namespace) -> int:
    async def generate() -> tuple[load.Load, int]:
        # Retries would hide refusals, and their delays would look like the server's.
        async with AsyncClient(**_settings(options), retry=None) as client:
            metadata = await client.metadata(options.model, options.model_version)
            inputs: Any = load.random_inputs(metadata, options.rows)
            if options.inputs:
                inputs, _ = values.read(options.inputs, metadata, invert=False)
            seen = await load.run(
                client,
                options.model,
                inputs,
                version=options.model_version,
                concurrency=options.concurrency,
                seconds=options.seconds,
                deadline_s=options.deadline_s,
            )
            shapes = [array.shape for array in inputs.values()]
            return seen, shapes[0][0] if shapes and shapes[0] else 1

    seen, rows = asyncio.run(generate())
    facts = {
        "seconds": seen.seconds,
        "completed": len(seen.latencies_s),
        "calls_per_s": seen.rate,
        "latency_s": {f"p{p}": _finite(seen.percentile_s(p)) for p in (50, 90, 99, 100)},
        "failures": dict(seen.failures),
    }
    _print(options, facts, load.text(seen, rows=rows))
    return REFUSED if seen.failures or not seen.latencies_s else 0


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _print(options: argparse.Namespace, facts: Any, words: str) -> None:
    print(json.dumps(facts, ensure_ascii=False) if options.json else words)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    files = {"ca_file": options.ca_file, "cert_file": options.cert_file, "key_file": options.key_file}
    wants_tls = options.tls or options.server_name is not None or any(files.values())
    token = None
    if options.token_file is not None:
        try:
            with open(options.token_file, encoding="ascii") as file:
                token = file.read().strip()
        except (OSError, UnicodeDecodeError) as unreadable:
            raise errors.ClientMisused(f"token file '{options.token_file}': {unreadable}") from unreadable
    return {
        "url": options.url,
        "tls": TLS(**files, server_name=options.server_name) if wants_tls else None,
        "token": token,
        "deadline_s": options.deadline_s,
    }


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    server = shared.add_argument_group("server")
    server.add_argument(
        "--url",
        default=os.environ.get("FORWARDPASS_URL", f"127.0.0.1:{DEFAULT_PORT}"),
        help="address; grpcs://… for TLS (default: $FORWARDPASS_URL, else 127.0.0.1:8001)",
    )
    server.add_argument(
        "--deadline-s",
        type=_seconds,
        help=f"for each call, in seconds (default: {DEADLINE_S:g}; {TEXT_DEADLINE_S:g} for a text)",
    )
    server.add_argument("--tls", action="store_true", help="TLS with this machine's roots")
    server.add_argument("--ca-file", help="PEM roots that sign the server's certificate (implies --tls)")
    server.add_argument("--cert-file", help="PEM certificate of this client, for mutual TLS")
    server.add_argument("--key-file", help="PEM key of this client")
    server.add_argument("--server-name", help="name expected in the server's certificate")
    server.add_argument("--token-file", help="file that holds a bearer token")
    shared.add_argument("--json", action="store_true", help="print JSON")

    inputs = argparse.ArgumentParser(add_help=False)
    inputs.add_argument("model", metavar="MODEL")
    inputs.add_argument("inputs", nargs="*", metavar="NAME=VALUE", help=values.FORMS)

    version = argparse.ArgumentParser(add_help=False)
    version.add_argument("--model-version", default="", help="default: the server's choice")

    parser = argparse.ArgumentParser(
        prog="forwardpass",
        description="Ask a model server of the Open Inference Protocol v2 (gRPC).",
        epilog=f"Exit codes:{(__doc__ or '').partition('Exit codes:')[2]}".replace("\n", " "),
    )
    parser.add_argument("--version", action="version", version=f"forwardpass {distribution_version('forwardpass')}")
    parser.set_defaults(usual_deadline_s=DEADLINE_S)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    models = commands.add_parser("models", parents=[shared, version], help="list what is served, or describe one model")
    models.add_argument("model", nargs="?", metavar="MODEL", help="describe this one")
    models.set_defaults(run=_models)

    health = commands.add_parser("health", parents=[shared], help="ask whether the server takes calls")
    health.add_argument("--service", default="", help="one service or model that grpc.health.v1 knows")
    health.set_defaults(run=_health)

    predict = commands.add_parser("predict", parents=[inputs, shared, version], help="predict once")
    predict.add_argument(
        "--output", action="append", dest="outputs", metavar="NAME", help="only this output; repeatable"
    )
    predict.add_argument("--invert", action="store_true", help="exchange light and dark of a picture")
    predict.set_defaults(run=_predict)

    explain = commands.add_parser(
        "explain",
        parents=[inputs, shared],
        help="predict once, and say why",
        description="Asks the model MODEL_explain, which `forwardpass-train explain` publishes beside MODEL.",
    )
    explain.add_argument("--out", type=Path, metavar="PICTURE", help="draw it: picture, saliency, attributions")
    explain.add_argument("--explainer", help="name of the model that explains (default: MODEL_explain)")
    explain.add_argument("--invert", action="store_true", help="exchange light and dark of a picture")
    explain.set_defaults(run=_explain)

    generate = commands.add_parser(
        "generate",
        parents=[shared, version],
        help="let a model go on with a text, shown as it is written",
        description="The text alone goes to standard output; speed, reason of the end and seed to standard error.",
    )
    generate.add_argument("model", metavar="MODEL")
    generate.add_argument("prompt", metavar="PROMPT", help="what the text goes on from; - for standard input")
    generate.add_argument("--max-tokens", type=_count, help="default: the server's, 256")
    generate.add_argument("--temperature", type=float, help="0: always the likeliest; above 1: daring (default: 1)")
    generate.add_argument("--top-k", type=int, help="choose among so many of the likeliest (default: all)")
    generate.add_argument("--top-p", type=float, help="choose among the likeliest of this probability (default: all)")
    generate.add_argument("--seed", type=int, help="for the same text again (default: a new one)")
    generate.add_argument("--stop", action="append", metavar="STRING", help="end before this string; repeatable")
    generate.set_defaults(run=_generate, usual_deadline_s=TEXT_DEADLINE_S)

    closed_loop = commands.add_parser(
        "load",
        parents=[inputs, shared, version],
        help="closed-loop load: callers that send again as soon as they have their answer",
        description="Without NAME=VALUE, random inputs. Calls are not retried.",
    )
    closed_loop.add_argument("--concurrency", type=_count, default=16, help="callers at once (default: 16)")
    closed_loop.add_argument("--seconds", type=_seconds, default=10.0, help="how long (default: 10)")
    closed_loop.add_argument("--rows", type=_count, default=1, help="batch dimension of random inputs (default: 1)")
    closed_loop.set_defaults(run=_load)
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {text}")
    return value
