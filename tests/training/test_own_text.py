"""The README's way from one's own module to a served version, done as it is written."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from forwardpass_training.__main__ import OK, main

README = Path(__file__).parents[2] / "training" / "README.md"
MODULES = {"forwardpass-server": "forwardpass_server", "forwardpass": "forwardpass"}


def section() -> str:
    text = README.read_text(encoding="utf-8")
    (found,) = re.findall(r"^## Your own network.*?(?=^## )", text, flags=re.M | re.S)
    return str(found)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", section(), flags=re.S)


def command(line: str) -> list[str]:
    program, *arguments = line.split()
    return [sys.executable, "-m", MODULES[program], *arguments]


def test_the_text_is_short() -> None:
    assert len(blocks("python")[0].splitlines()) + len(blocks("sh")[0].splitlines()) <= 38


def test_the_text_goes_from_a_module_to_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (recipe,), (shell,) = blocks("python"), blocks("sh")
    train, publish, serve, predict = shell.splitlines()
    (tmp_path / "my_recipe.py").write_text(recipe)
    points = torch.rand(1_000, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sides = ["in" if inside else "out" for inside in points.square().sum(1) < 0.6]
    rows = [f"{a:.6f},{b:.6f},{side}" for (a, b), side in zip(points.tolist(), sides, strict=True)]
    (tmp_path / "points.csv").write_text("\n".join(["a,b,side", *rows]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for line in (train, publish):  # in this process, since each of its own would import torch for seconds
        program, *arguments = line.split()
        assert program == "forwardpass-train"
        assert main(arguments) == OK, capfd.readouterr()
    assert (tmp_path / "models" / "circle" / "1" / "manifest.json").is_file()
    # the same server and client, on a port of their own
    serving = [*command(serve), "--host=127.0.0.1", "--grpc-port=0", "--metrics-port=0", "--log-format=json"]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout
        try:
            said = (json.loads(line) for line in server.stdout if line.startswith("{"))
            address = next(event["address"] for event in said if event["message"] == "serving")
            asking = [*command(predict), "--url", address, "--json"]
            answer = subprocess.run(asking, capture_output=True, text=True, check=False)
        finally:
            server.terminate()
            server.stdout.read()
    assert answer.returncode == 0, answer.stderr
    inside, outside = np.array(re.findall(r"\d\.\d+(?:e-\d+)?", answer.stdout), np.float64)[:2]
    assert inside > 0.9, answer.stdout  # classes stand in the order of the alphabet: in, out
    assert inside + outside > 0.999
