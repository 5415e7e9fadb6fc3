"""The first factor: what is asked of PAM, how often at once, and what a refusal costs."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from pam_totp.system import passwords
from pam_totp.system.passwords import Busy, Missing, SystemPasswords
from tests.site import ME


@pytest.fixture
def pam(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """What is asked of PAM, which knows one password; the real one is asked in test_browser.py."""
    asked: list[tuple[str, str]] = []

    def authenticate(user: str, password: str, service: str) -> tuple[int, str]:
        asked.append((user, password))
        return (0, "Success") if password == "right" else (9 if password == "unreachable" else 7, "no")

    monkeypatch.setattr(passwords, "PAM_FOLDER", str(tmp_path))
    monkeypatch.setattr(passwords, "_python_pam", lambda: authenticate)
    (tmp_path / "mine").write_text("")
    return asked


def checker(lines: list[str] | None = None, **more: float) -> SystemPasswords:
    kept: list[str] = [] if lines is None else lines
    return SystemPasswords("mine", lambda _, line: kept.append(line), **more)  # type: ignore[arg-type]


def test_the_right_password_is_right_at_once(pam: list[tuple[str, str]]) -> None:
    assert checker(refusal_delay=1e9).right(ME, "right")


@pytest.mark.parametrize(("user", "password"), [(ME, "wrong"), ("nobody-here", "right"), (ME, ""), ("", "right")])
def test_every_refusal_delay_its_time(pam: list[tuple[str, str]], user: str, password: str) -> None:
    begun = time.monotonic()
    assert not checker(refusal_delay=0.2).right(user, password)
    assert time.monotonic() - begun >= 0.2


@pytest.mark.parametrize(
    ("user", "password"),
    [(ME, ""), (ME, "a\0b"), (ME, "x" * 512), (ME, "\ud800"), ("", "right"), ("a\0", "right"), ("no-such", "right")],
)
def test_what_cannot_be_right_is_not_asked_of_pam_and_costs_a_hash_all_the_same(
    pam: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, user: str, password: str
) -> None:
    hashed: list[str] = []
    monkeypatch.setattr(passwords, "compute_decoy", hashed.append)
    assert not checker(refusal_delay=0).right(user, password)
    assert pam == []
    assert hashed == [password]


def test_the_hash_is_a_real_one() -> None:
    function = passwords._crypt()
    assert function is not None
    data = passwords.ctypes.create_string_buffer(passwords._CRYPT_DATA)
    hashed = function(b"a password", passwords._DECOY, data)
    assert isinstance(hashed, bytes)
    assert hashed.startswith(b"$y$j9T$")
    assert len(hashed) == len(passwords._DECOY), "crypt(5) gives *0 for what it cannot do"


def test_no_more_than_a_few_are_checked_at_once_and_the_rest_is_told_soon(
    pam: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "SLOT_WAIT", 0.05)
    go, inside = threading.Event(), threading.Semaphore(0)

    def slow(user: str, password: str, service: str) -> tuple[int, str]:
        inside.release()
        go.wait(20)
        return 0, "Success"

    monkeypatch.setattr(passwords, "_python_pam", lambda: slow)
    check = checker(slots=2)
    threads = [threading.Thread(target=check.right, args=(ME, "right")) for _ in range(2)]
    for thread in threads:
        thread.start()
        assert inside.acquire(timeout=20)
    with pytest.raises(Busy):
        check.right(ME, "right")
    go.set()
    for thread in threads:
        thread.join()
    assert check.right(ME, "right"), "a place that was given back can be had again"


def test_a_service_without_a_file_is_not_left_to_other(pam: list[tuple[str, str]]) -> None:
    with pytest.raises(Missing, match="no PAM service yours"):
        SystemPasswords("yours", lambda *_: None)


def test_trouble_in_pam_is_told_to_the_admin_and_to_nobody_else(pam: list[tuple[str, str]]) -> None:
    lines: list[str] = []
    assert not checker(lines, refusal_delay=0).right(ME, "unreachable")
    assert len(lines) == 1
    assert "group shadow" in lines[0]
    assert not checker(lines, refusal_delay=0).right(ME, "wrong")
    assert len(lines) == 1
