"""The saved inputs of each parser: a file with one input per line, in base64, the shortest first."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def kept(name: str) -> list[bytes]:
    path = FOLDER / name
    return [b64decode(line, validate=True) for line in path.read_text().split()] if path.exists() else []


def keep(name: str, inputs: Iterable[bytes]) -> None:
    everything = sorted({*kept(name), *inputs} - {b""}, key=lambda data: (len(data), data))
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_text("".join(f"{b64encode(data).decode()}\n" for data in everything))
