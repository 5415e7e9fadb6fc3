"""Tests of the first factor: the calls of PAM, the limit of concurrent checks, and the time of a refusal."""

from __future__ import annotations

import ctypes
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pam_totp.system import passwords
from pam_totp.system.passwords import PasswordsUnavailable, SystemPasswords, TooManyChecks
from tests.support.site import ME


@pytest.fixture
def pam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """Replace PAM with a fake that accepts one password. Return the list of calls. test_browser.py uses real PAM."""
    calls: list[tuple[str, str]] = []

    def authenticate(user: str, password: str, service: str) -> tuple[int, str]:
        calls.append((user, password))
        return (0, "Success") if password == "right" else (9 if password == "unreachable" else 7, "no")

    monkeypatch.setattr(passwords, "PAM_FOLDER", str(tmp_path))
    monkeypatch.setattr(passwords, "_python_pam", lambda: authenticate)
    (tmp_path / "fake").write_text("")
    return calls


def checker(lines: list[str] | None = None, **options: Any) -> SystemPasswords:
    log: list[str] = [] if lines is None else lines
    return SystemPasswords("fake", lambda _, line: log.append(line), **options)


def test_a_correct_password_is_accepted_without_delay(pam: list[tuple[str, str]]) -> None:
    assert checker(refusal_delay=1e9).verify(ME, "right")


@pytest.mark.parametrize(("user", "password"), [(ME, "wrong"), ("no-such-user", "right"), (ME, ""), ("", "right")])
def test_every_refusal_takes_at_least_the_set_time(pam: list[tuple[str, str]], user: str, password: str) -> None:
    started = time.monotonic()
    assert not checker(refusal_delay=0.2).verify(user, password)
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(("took", "held"), [(0.25, 0.75), (1.0, 0.0), (1.25, 0.75), (7.75, 0.25)])
def test_the_delay_of_a_refusal_is_a_multiple_of_the_set_time(
    pam: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, took: float, held: float
) -> None:
    times, delays = iter([100.0, 100.0 + took]), list[float]()
    monkeypatch.setattr(passwords, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assert not checker(refusal_delay=1.0).verify(ME, "wrong", delays.append)
    assert delays == [held]


@pytest.mark.parametrize(
    ("user", "password"),
    [(ME, ""), (ME, "a\0b"), (ME, "x" * 512), (ME, "\ud800"), ("", "right"), ("a\0", "right"), ("no-such", "right")],
)
def test_an_impossible_password_skips_pam_but_costs_a_hash(
    pam: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, user: str, password: str
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(passwords, "compute_decoy", hashed.append)
    assert not checker(refusal_delay=0).verify(user, password)
    assert pam == []
    assert hashed == [password]


def test_the_decoy_hash_is_computed() -> None:
    function = passwords._crypt()
    assert function is not None
    data = ctypes.create_string_buffer(passwords._CRYPT_DATA)
    hashed = function(b"a password", passwords._DECOY, data)
    assert isinstance(hashed, bytes)
    assert hashed.startswith(b"$y$j9T$")
    assert len(hashed) == len(passwords._DECOY), "the hash is complete: crypt(3) returns *0 for an unknown method"


def test_a_guess_at_a_made_up_name_starts_no_process(
    pam: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function ctypes.util.find_library would start the program ldconfig."""
    check = checker(refusal_delay=0)
    monkeypatch.setattr(subprocess, "Popen", pytest.fail)
    assert [check.verify("no-such-user", "wrong") for _ in range(2)] == [False, False]


def test_checks_at_once_are_limited_and_the_rest_rejected_soon(
    pam: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "SLOT_WAIT", 0.05)
    finish, running = threading.Event(), threading.Semaphore(0)

    def slow(user: str, password: str, service: str) -> tuple[int, str]:
        running.release()
        finish.wait(20)
        return 0, "Success"

    monkeypatch.setattr(passwords, "_python_pam", lambda: slow)
    check = checker(slots=2)
    threads = [threading.Thread(target=check.verify, args=(ME, "right")) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert running.acquire(timeout=20)
    with pytest.raises(TooManyChecks):
        check.verify(ME, "right")
    finish.set()
    for thread in threads:
        thread.join()
    assert check.verify(ME, "right"), "a released slot can be acquired again"


def test_a_missing_pam_service_does_not_fall_back_to_other(pam: list[tuple[str, str]]) -> None:
    with pytest.raises(PasswordsUnavailable, match=r"PAM service not found: .*/missing \(create it"):
        SystemPasswords("missing", lambda *_: None)


def test_a_pam_failure_is_logged_and_not_shown_to_the_user(pam: list[tuple[str, str]]) -> None:
    lines: list[str] = []
    assert not checker(lines, refusal_delay=0).verify(ME, "unreachable")
    assert len(lines) == 1
    assert "group shadow" in lines[0]
    assert not checker(lines, refusal_delay=0).verify(ME, "wrong")
    assert len(lines) == 1
