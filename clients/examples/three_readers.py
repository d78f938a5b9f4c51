"""Three texts from one model at once, each at its own temperature, shown side by side as they are written.

python clients/examples/three_readers.py                       of `shakespeare`
python clients/examples/three_readers.py --prompt "JULIET:"
"""

import argparse
import asyncio

from forwardpass import AsyncClient

TEMPERATURES = (0.2, 0.8, 1.2)


async def read(client: AsyncClient, model: str, prompt: str, temperature: float, characters: int) -> str:
    """Read one text, saying each piece; gives the whole."""
    text = client.generate(model, prompt, temperature=temperature, seed=1, max_tokens=characters)
    async for piece in text:
        print(f"{temperature:>4}  {piece!r}")
    return text.text


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="127.0.0.1:8001")
    parser.add_argument("--model", default="shakespeare")
    parser.add_argument("--prompt", default="ROMEO:")
    parser.add_argument("--characters", type=int, default=120)
    arguments = parser.parse_args()

    async with AsyncClient(arguments.url) as client:
        readers = (
            read(client, arguments.model, arguments.prompt, temperature, arguments.characters)
            for temperature in TEMPERATURES
        )
        texts = await asyncio.gather(*readers)

    for temperature, text in zip(TEMPERATURES, texts, strict=True):
        print(f"\n--- temperature {temperature} ---\n{arguments.prompt}{text}")


if __name__ == "__main__":
    asyncio.run(main())
