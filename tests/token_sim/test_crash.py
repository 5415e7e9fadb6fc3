"""Tests of crashes: kills at random times while a client records all codes, files after a kill, and failed writes."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from tests.token_sim.tokens import SEED, new_token, running, token_sim
from token_sim.client import Client, ClientError
from token_sim.run.token_file import TokenFile, TokenFileError

PRESSES = 500
KILLS = 3  # minimum number of kills


def test_a_token_killed_during_500_presses_shows_no_code_twice(tmp_path: Path) -> None:
    path, link = new_token(tmp_path / "fob"), tmp_path / "port"
    moments = random.Random(1)
    shown: list[str] = []
    kills = 0
    while len(shown) < PRESSES or kills < KILLS:
        with running(path, "--link", link, "--speed", "200") as run:
            killer = threading.Timer(moments.uniform(0.05, 1.0), run.process.send_signal, [signal.SIGKILL])
            killer.start()
            try:
                with Client(str(link), timeout=20) as client:
                    while True:
                        shown.append(client.press())
            except ClientError:
                pass
            killer.join()
            assert run.process.wait() == -signal.SIGKILL
            kills += 1
    assert _positions_rise(shown)


def _positions_rise(shown: list[str]) -> bool:
    """Return True if the codes belong to increasing counters. Two counters can have the same code by chance."""
    counter = 0
    for code in shown:
        while hotp(SEED, counter) != code:
            counter += 1
            if counter > 2 * len(shown) + 100:
                return False
        counter += 1
    return True


def test_after_a_kill_the_next_run_replaces_leftover_files(tmp_path: Path) -> None:
    path, link = new_token(tmp_path / "fob"), tmp_path / "port"
    with running(path, "--link", link) as run:
        run.stop(signal.SIGKILL)
        assert link.is_symlink() and (tmp_path / "fob.control").exists()
    with running(path, "--link", link) as run:
        done = token_sim("press", "--port", link)
        assert (done.returncode, done.stdout) == (0, "755224\n")
        assert run.stop() == 128 + signal.SIGTERM
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fob"]


def test_a_token_is_closed_without_error_if_its_lock_file_is_gone(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    token = TokenFile.open(str(path))
    (tmp_path / "fob.lock").unlink()
    token.close()
    assert token_sim("oracle", path).returncode == 0


def test_a_token_does_not_unlink_the_lock_file_of_another_process(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    token = TokenFile.open(str(path))
    (tmp_path / "fob.lock").unlink()
    other = TokenFile.open(str(path))
    token.close()
    with pytest.raises(TokenFileError, match="is already in use"):
        TokenFile.open(str(path))
    other.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fob"]


def test_a_failed_write_is_an_error_and_a_later_press_succeeds(tmp_path: Path) -> None:
    path, link = new_token(tmp_path / "fob"), tmp_path / "port"
    with running(path, "--link", link, "--speed", "20") as run:
        temporary = tmp_path / "fob.new"
        temporary.mkdir()  # a folder of this name makes the write of the temporary file fail, even for root
        done = token_sim("press", "--port", link)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"token-sim: {link} shows an error: write\n"
        temporary.rmdir()
        deadline = time.monotonic() + 20
        while (done := token_sim("press", "--port", link)).returncode and time.monotonic() < deadline:
            pass
        assert done.stdout == "755224\n"
        run.stop()
