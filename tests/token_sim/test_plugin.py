"""Tests of the pytest plugin: its fixtures, errors, and use in another project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import serial

from pam_totp.core.oath import hotp, totp
from tests.token_sim.tokens import SEED
from token_sim.client import Client
from token_sim.testing.live_token import NoCode

if TYPE_CHECKING:
    from collections.abc import Callable

    from token_sim.testing.live_token import LiveToken


@pytest.mark.token_sim(key=SEED)
def test_the_fixture_is_a_token_on_a_port(token_sim: LiveToken) -> None:
    assert token_sim.press() == "755224"
    with serial.Serial(token_sim.port, timeout=0.05) as port:
        port.write(b"DISP?\r")
        received = b""
        while not received.endswith(b"OK\r\n"):
            received += port.read(100)
        assert received.endswith(b"text=755224\r\nOK\r\n")
    assert token_sim.key == SEED


def test_two_tokens_have_different_seeds_and_ports(token_sim_factory: Callable[..., LiveToken]) -> None:
    first, second = token_sim_factory(), token_sim_factory(digits=8)
    assert first.key != second.key and first.port != second.port
    assert (first.press(), second.press()) == (hotp(first.key, 0), hotp(second.key, 0, 8))


@pytest.mark.parametrize("profile", ["generic", "c100", "c200", "etoken-pass", "go7", "yubikey"])
def test_every_press_on_every_model_returns_a_new_code(
    profile: str, token_sim_factory: Callable[..., LiveToken]
) -> None:
    token = token_sim_factory(profile=profile, key=SEED)
    codes = [token.press() for _ in range(3)]
    if token.slot.kind == "hotp":
        assert codes == ["755224", "287082", "359152"]
    else:
        assert codes[-1] == totp(SEED, token.oracle()["clock_ms"] // 1000, period=token.slot.period)


def test_a_fixture_controls_time_faults_snapshots_and_the_plug(token_sim: LiveToken, tmp_path: Path) -> None:
    assert token_sim.advance("30d", temp=45)["error_ms"] < -30_000
    token_sim.snapshot(str(tmp_path / "copy"))
    first = token_sim.press()
    token_sim.fault("power-after-write")
    assert token_sim.press() == hotp(token_sim.key, 2)
    token_sim.restore(str(tmp_path / "copy"))
    assert token_sim.press() == first
    token_sim.unplug()
    assert not Path(token_sim.port).exists()
    token_sim.plug()
    with Client(token_sim.port) as client:
        assert client.press() == hotp(token_sim.key, 1)


@pytest.mark.parametrize("fault", ["bit-rot", "dead-battery", "counter-limit", "tamper", "stuck-button"])
def test_a_press_without_a_code_raises_an_error(token_sim: LiveToken, fault: str) -> None:
    token_sim.fault(fault)
    with pytest.raises(NoCode, match="shows no code"):
        token_sim.press()


@pytest.mark.token_sim(key=SEED)
def test_no_repr_shows_the_seed(token_sim: LiveToken) -> None:
    for thing in (
        token_sim,
        token_sim.slot,
        token_sim._simulation,
        token_sim._simulation.device,
        token_sim._simulation.file,
    ):
        assert SEED.hex() not in repr(thing) and SEED.decode() not in repr(thing)


def test_another_project_can_use_the_fixture_without_configuration(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import pytest\n"
        "@pytest.mark.token_sim(profile='c100', digits=8)\n"
        "def test_login(token_sim):\n"
        "    assert len(token_sim.press()) == 8\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout


@pytest.mark.bare
def test_importing_the_plugin_imports_no_other_package() -> None:
    code = "import pytest, sys; before = set(sys.modules); import token_sim.pytest_plugin; "
    code += "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('token_sim')))"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"
