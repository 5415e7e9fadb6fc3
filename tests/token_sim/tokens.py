"""Support for the simulator's tests: tokens in memory at a fixed moment, and real `token-sim` processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from token_sim.device import memory
from token_sim.device.hardware import new_hardware
from token_sim.device.models import GENERIC, Profile
from token_sim.device.token import Device

SEED = b"12345678901234567890"  # RFC 4226 appendix D
APPENDIX_D = ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"]
NOON = 1_700_000_040_000  # a Unix time in ms; a multiple of 30 s and of 60 s
PATIENCE = 30.0  # seconds: the maximum wait, even on a busy machine

COMMAND = [sys.executable, "-m", "token_sim.cli"]


def image(*, counter: int = 0, serial: str = "SMGN00000001", slots: int = 1, **slot: Any) -> bytes:
    seeded = memory.Slot(**{"kind": "hotp", "key": SEED, **slot})
    return memory.build(serial, (seeded, *[None] * (slots - 1)), (counter, *[0] * (slots - 1)))


def token(profile: Profile = GENERIC, *, nvram: memory.Nvram | None = None, **options: Any) -> Device:
    """Return a token that was started at NOON and is ready for a press."""
    options.setdefault("slots", profile.slots)
    device = Device(nvram or memory.Ram(image(**options)), profile, new_hardware(profile, NOON))
    device.elapse(1000)
    device.take_events()
    return device


def codes(device: Device) -> list[str]:
    return [event.text for event in device.take_events() if event.name == "OTP"]


def press(device: Device, ms: int | None = None, then: int = 2000) -> list[str]:
    """Press the button, advance the time by `then` ms after the release, and return the shown codes."""
    device.press(ms)
    device.elapse((device.profile.press_ms if ms is None else ms) + then)
    return codes(device)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not true within {PATIENCE:g} s"
        time.sleep(0.01)


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Lower the limit of descriptors, so that calls that require a new descriptor fail."""
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def token_sim(*arguments: str | os.PathLike[str], stdin: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    """Run `token-sim` with `arguments` and the input `stdin`, and return the result."""
    words = [*COMMAND, *(os.fspath(word) for word in arguments)]
    return subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=60, check=False, **more)


def new_token(path: Path, *options: str) -> Path:
    """Create a token file with the seed of RFC 4226, and return its path."""
    done = token_sim("new", path, "--secret-stdin", *options, stdin=SEED.hex() + "\n")
    assert done.returncode == 0, done.stderr
    return path


@dataclass
class Running:
    """A running `token-sim run` process."""

    process: subprocess.Popen[str]
    serial: str
    ports: list[str]
    control: str

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


@contextmanager
def running(path: Path, *options: str | os.PathLike[str]) -> Iterator[Running]:
    words = [*COMMAND, "run", os.fspath(path), "--json", *(os.fspath(word) for word in options)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Running(process, **json.loads(line))
    finally:
        process.terminate()  # without effect if the process has ended
        try:
            process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
