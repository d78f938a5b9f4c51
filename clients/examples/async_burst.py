"""A thousand calls at once from one asyncio program, at most 64 in flight: how batches grow on the server.

python clients/examples/async_burst.py --model mlp_classifier
"""

import argparse
import asyncio
import time

import numpy as np

from forwardpass import AsyncClient, ModelMetadata
from forwardpass.errors import TryAgain


def rows_for(metadata: ModelMetadata, count: int) -> dict[str, list[np.ndarray]]:
    """`count` random rows for every input; open dimensions become 1."""
    random = np.random.default_rng(0)
    return {
        tensor.name: [
            random.integers(0, 2, [max(dim, 1) for dim in tensor.shape]).astype(np.uint8) for _ in range(count)
        ]
        for tensor in metadata.inputs
    }


async def burst(url: str, model: str, calls: int, in_flight: int) -> None:
    async with AsyncClient(url) as client:
        rows = rows_for(await client.metadata(model), calls)
        places = asyncio.Semaphore(in_flight)
        failures = 0

        async def call(number: int) -> None:
            nonlocal failures
            async with places:
                try:
                    await client.infer(model, {name: column[number] for name, column in rows.items()}, deadline_s=10)
                except TryAgain:  # the client's own retries are behind us: count it and go on
                    failures += 1

        started = time.perf_counter()
        await asyncio.gather(*(call(number) for number in range(calls)))
        seconds = time.perf_counter() - started
    print(f"{calls - failures} of {calls} calls in {seconds:.2f} s: {(calls - failures) / seconds:.0f} calls/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="mlp_classifier")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--in-flight", type=int, default=64)
    arguments = parser.parse_args()
    asyncio.run(burst(arguments.url, arguments.model, arguments.calls, arguments.in_flight))


if __name__ == "__main__":
    main()
