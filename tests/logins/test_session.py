"""Tests of a login with a defect or an invalid site file: the login is denied, and the log contains only the reason."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pam_totp.core.settings import SettingsError
from pam_totp.operations.conversation import Pause
from pam_totp.operations.verifier import UseStore
from pam_totp.pam import login_session
from pam_totp.pam.login_session import MEANWHILE, Receive, drive, drive_over, read_site
from pam_totp.pam.protocol import MAX_PACKET, Hello, ProtocolError, receive

HELLO = b"Hversion=1\0service=demo\0user=alice\0flags=0"


def test_a_defect_denies_and_logs_its_location_without_data() -> None:
    log: list[tuple[int, str]] = []

    def defect(hello: Hello) -> int:
        raise ValueError(f"{hello.user}'s code is 123456")

    server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with client:
        client.send(HELLO)
        with server:
            drive_over(server, lambda priority, line: log.append((priority, line)), defect)
        assert client.recv(4096) == b"", "the service sends no result"
    assert len(log) == 1
    assert f"ValueError at {__file__}:" in log[0][1]
    assert "123456" not in log[0][1]


def test_no_copy_of_an_oversized_packet_remains() -> None:
    """The packet can contain a password of the user."""

    class Buffer(bytearray):
        def __getitem__(self, part: Any) -> Any:
            copies.append(super().__getitem__(part))
            return copies[-1]

    copies = list[bytearray]()
    buffer = Buffer(MAX_PACKET + 1)
    server, client = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server, client:
        client.send(b"A" + b"x" * MAX_PACKET)
        with pytest.raises(ProtocolError, match="at most 4096 bytes"):
            receive(server, buffer)
    assert not any(map(any, [buffer, *copies]))


@pytest.mark.parametrize(
    ("content", "mode", "reason"),
    [
        (b"[policy]\nlook_ahead = 3 # \xff\n", 0o644, "must be UTF-8"),
        (b"[policy]\nlook_ahead = 3\n", 0o664, "writable by its owner only"),
        (b"[policy]\nlook_ahead = 3\n", 0o646, "writable by its owner only"),
        (b"#" * (1 << 18) + b"\n[policy]\nlook_ahead = 3\n", 0o644, "must be at most 262144 bytes"),
    ],
)
def test_an_invalid_site_file_is_not_ignored(tmp_path: Path, content: bytes, mode: int, reason: str) -> None:
    path = tmp_path / "pam_totp.toml"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(SettingsError, match=reason):
        read_site(str(path))


def test_a_site_file_read_in_pieces_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One `read` can return only a part of a file, on some file systems."""
    path = tmp_path / "pam_totp.toml"
    path.write_bytes(b"[policy]\nlook_ahead = 3\nlock_after = 10\n")
    path.chmod(0o600)
    read = os.read
    monkeypatch.setattr(os, "read", lambda file, size: read(file, min(size, 24)))
    assert read_site(str(path)).policy == {"look_ahead": 3, "lock_after": 10}


def test_a_site_file_that_is_unreadable_or_not_a_file_is_not_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)
    open_before = os.listdir("/proc/self/fd")
    for path, reason in (
        ("file/pam_totp.toml", "not a directory"),
        ("pipe", "must be a regular file"),
        ("folder", "must be a regular file"),
    ):
        with pytest.raises(SettingsError, match=reason):
            read_site(str(tmp_path / path))
    assert len(os.listdir("/proc/self/fd")) == len(open_before), "every file that was opened is closed"


@pytest.mark.parametrize("work", [0.0002, 0.005])
def test_an_instant_answer_does_not_show_the_work_before_it(monkeypatch: pytest.MonkeyPatch, work: float) -> None:
    """A helper reads the record before it receives an answer that has arrived already."""
    clock, slept = [100.0], list[float]()
    fake = SimpleNamespace(monotonic=lambda: clock[0], sleep=slept.append)
    monkeypatch.setattr(login_session, "time", fake)

    def read(_: float) -> None:
        clock[0] += work

    def run() -> Iterator[object]:
        yield Receive(1.0, UseStore(read, is_slow=False))
        yield Pause(0.1)

    drive(SimpleNamespace(run=run), lambda _: bytearray(b"A000000"))  # type: ignore[arg-type]
    assert clock[0] + slept[0] == pytest.approx(100.0 + MEANWHILE + 0.1)
