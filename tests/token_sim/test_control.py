"""Tests of the control socket: its permissions, invalid requests, and the owner's commands."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.token_sim.tokens import NOON, SEED, image, new_token, no_descriptors_left, running, token_sim
from token_sim.device.models import GENERIC, PROFILES
from token_sim.run import control
from token_sim.run.simulation import Simulation


@pytest.fixture
def simulation() -> Simulation:
    simulation = Simulation.in_memory(image(), GENERIC, NOON)
    simulation.elapse(1000)
    return simulation


@pytest.fixture
def owner(tmp_path: Path, simulation: Simulation) -> Iterator[control.Control]:
    server = control.Control(str(tmp_path / "owner"))
    yield server
    server.close()


def talk(owner: control.Control, simulation: Simulation, path: Path, data: bytes, rounds: int = 3) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(data)
        client.setblocking(False)
        received = b""
        for _ in range(rounds):
            owner.serve(simulation.command)
            try:
                received += client.recv(1 << 20)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                break
        return received


def test_the_mode_of_the_socket_is_0600(owner: control.Control, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "owner").stat().st_mode) == 0o600


def test_a_token_that_is_missing_or_ends_is_reported_as_not_running(tmp_path: Path) -> None:
    path = str(tmp_path / "owner")
    with pytest.raises(control.NotRunning):
        control.ask(path, {"do": "status"})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        with pytest.raises(control.NotRunning):
            control.ask(path, {"do": "status"})  # the socket file exists, but no process listens
        listener.listen()

        def hang_up() -> None:
            listener.accept()[0].close()

        hangs_up = threading.Thread(target=hang_up)
        hangs_up.start()
        with pytest.raises(control.NotRunning):
            control.ask(path, {"do": "status"})
        hangs_up.join()


def test_a_socket_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere/owner"):
        control.Control(str(tmp_path / "nowhere" / "owner"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can use another uid")
def test_another_uid_gets_no_answer_even_with_permission_to_connect(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    os.chmod(tmp_path, 0o755)  # noqa: S103  # the parent folders deny other accounts: the test connects through /proc
    ask = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
    ask += 's.sendall(b\'{"do": "oracle"}\\n\'); print(s.recv(9))'
    with running(path) as run:
        os.chmod(run.control, 0o666)  # noqa: S103  # now only the check of credentials protects the socket
        folder = os.open(tmp_path, os.O_PATH)
        try:
            # Use the distribution's interpreter, because other accounts might lack access to a virtual environment.
            words = ["/usr/bin/python3", "-I", "-c", ask, f"/proc/self/fd/{folder}/fob.control"]
            owner = subprocess.run(words, pass_fds=[folder], capture_output=True, timeout=20, check=False)
            other = subprocess.run(
                words, pass_fds=[folder], capture_output=True, timeout=20, check=False, user=65534, group=65534
            )
        finally:
            os.close(folder)
    assert b'{"ok"' in owner.stdout
    assert b'{"ok"' not in other.stdout
    assert b"BrokenPipe" in other.stderr or b"ConnectionReset" in other.stderr or other.stdout == b"b''\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b'"x"',
        b"\xff\xfe",
        b"{}",
        b'{"do": "seed"}',
        b'{"do": 7}',
        b'{"do": "advance"}',
        b'{"do": "advance", "by": "-1d"}',
        b'{"do": "advance", "by": "1d", "temp": "hot"}',
        b'{"do": "fault"}',
        b'{"do": "fault", "name": "bit-rot", "times": 0}',
        b'{"do": "fault", "name": "segment", "number": 99}',
        b'{"do": "snapshot"}',
        b'{"do": "restore", "from": "/nowhere/at/all"}',
        b'{"do": "press", "ms": -5}',
    ],
)
def test_an_invalid_request_gets_one_error(
    line: bytes, owner: control.Control, simulation: Simulation, tmp_path: Path
) -> None:
    before = simulation.oracle()
    (reply,) = talk(owner, simulation, tmp_path / "owner", line + b"\n").splitlines()
    answer = json.loads(reply)
    assert answer["ok"] is False and "\n" not in answer["error"] and answer.keys() == {"ok", "error"}
    assert simulation.oracle() == before


def test_the_end_of_the_input_ends_a_request(owner: control.Control, simulation: Simulation, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "owner"))
        client.sendall(b'{"do": "oracle"}')
        client.shutdown(socket.SHUT_WR)
        for _ in range(3):
            owner.serve(simulation.command)
        client.settimeout(20)
        assert json.loads(client.makefile("rb").read())["ok"] is True


def test_the_owners_socket_survives_a_lack_of_descriptors(
    owner: control.Control, simulation: Simulation, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        with no_descriptors_left():
            client.connect(str(tmp_path / "owner"))
            client.sendall(b'{"do": "oracle"}\n')
            owner.serve(simulation.command)
            assert owner.descriptors() == [], "the loop must omit the listener from `poll`"
        owner.serve(simulation.command)
        assert len(owner.descriptors()) == 2
        client.settimeout(20)
        assert json.loads(client.makefile("rb").readline())["ok"] is True


def test_an_endless_line_closes_the_connection(owner: control.Control, simulation: Simulation, tmp_path: Path) -> None:
    talk(owner, simulation, tmp_path / "owner", b"x" * 150_000, rounds=10)
    assert not owner._clients


def test_the_oracle_has_counter_time_and_last_code_but_no_seed(simulation: Simulation) -> None:
    simulation.command({"do": "press"})
    simulation.elapse(1000)
    oracle = simulation.command({"do": "oracle"})
    assert (oracle["counter"], oracle["last_code"], oracle["time_ms"]) == (1, "755224", NOON + 2000)
    replies = json.dumps([oracle, simulation.command({"do": "log"}), simulation.command({"do": "advance", "by": "1d"})])
    assert SEED.hex() not in replies and SEED.decode() not in replies


def test_advance_by_90_days_at_35_degrees_makes_the_clock_drift() -> None:
    simulation = Simulation.in_memory(image(kind="totp"), PROFILES["c200"], NOON)
    before = simulation.device.hardware.temperature
    hot = simulation.command({"do": "advance", "by": "90d", "temp": 35})
    assert hot["time_ms"] - NOON == 90 * 86_400_000
    assert hot["error_ms"] == pytest.approx(-3e-6 * 90 * 86_400_000 + 959, abs=2)  # ms: −3 ppm by heat, 959 by ageing
    assert simulation.device.hardware.temperature == before


def test_a_restored_snapshot_repeats_codes(simulation: Simulation, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    simulation.command({"do": "snapshot", "to": str(copy)})
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600

    def next_code() -> str:
        simulation.command({"do": "press"})
        simulation.elapse(1000)
        return str(simulation.oracle()["last_code"])

    first, now = [next_code(), next_code()], simulation.device.hardware.now
    simulation.command({"do": "restore", "from": str(copy)})
    assert simulation.device.hardware.now == now
    simulation.elapse(1000)
    assert [next_code(), next_code()] == first


def test_a_snapshot_of_another_model_is_refused(simulation: Simulation, tmp_path: Path) -> None:
    done = token_sim("new", tmp_path / "other", "--profile", "yubikey")
    assert done.returncode == 0
    with pytest.raises(ValueError, match="must be a snapshot of a generic token with 128 bytes of memory"):
        simulation.command({"do": "restore", "from": str(tmp_path / "other")})


def test_a_socket_without_listener_is_reported_as_not_running(tmp_path: Path) -> None:
    with pytest.raises(control.NotRunning):
        control.ask(str(tmp_path / "none"), {"do": "oracle"})
    left = control.Control(str(tmp_path / "left"))
    left._listener.close()
    with pytest.raises(control.NotRunning):
        control.ask(str(tmp_path / "left"), {"do": "oracle"})
