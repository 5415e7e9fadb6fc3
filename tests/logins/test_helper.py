"""Tests of the helper's imports: the modules that a login loads, and those before the privilege drop."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import serialize
from pam_totp.core.slots import new_file, slot_size
from pam_totp.store.file import FileStore
from tests.conftest import as_root
from tests.support.relay_kit import INTERPRETER, ROOT
from tests.support.site import PATIENCE, codes, fob

OWNER = 12_345  # uid of a store's owner without an account
SALT, RECOVERY = "00" * 16, "0123456789ABCDEF"
ALICE = UserRecord(user="alice", tokens=(fob(),), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))

# The only modules of the standard library that a login loads. Each takes less than 0.3 ms; most are compiled into the
# interpreter.
LEAN = {"__future__", "_collections_abc", "_stat", "genericpath", "os", "os.path", "posixpath", "stat"}
LEAN |= {"_functools", "_json", "_sha1", "_sha2", "_sha256", "_sha512", "_socket", "_struct", "binascii", "errno"}
LEAN |= {"fcntl", "pwd", "resource", "select", "struct", "syslog"}
PRINT_MODULES = """
import sys
sys.path.append(sys.argv[1])
interpreter = {*sys.modules}
import os
from pam_totp.pam import helper_main
end = os._exit
os._exit = lambda status: end(print(*{*sys.modules} - interpreter, flush=True) or status)
helper_main.main()
"""


def put(folder: Path, record: UserRecord = ALICE, owner: int | None = None) -> None:
    """Write `record`, and the files that logins need. Give all files to the uid `owner`, unless it is None."""
    (folder / f"{record.user}.record").write_bytes(new_file(serialize(record), slot_size(record)))
    (folder / f"{record.user}.record").chmod(0o600)
    folder.chmod(0o700)
    FileStore(str(folder)).prepare()
    if owner is not None:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, owner, -1)


def log_in(command: list[str], answer: str | None, *arguments: str, user: str = "alice") -> tuple[bytes, str]:
    """Run the helper `command`, and send `answer` at every prompt. Return the result and the standard output."""
    relay, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    relay.settimeout(PATIENCE)
    channel_on_3 = ["/bin/bash", "-c", f'exec 3<&{channel.fileno()} && exec "$@"', "helper"]
    helper = subprocess.Popen(
        channel_on_3 + command, pass_fds=[channel.fileno()], stdout=subprocess.PIPE, text=True, env={}
    )
    with relay, helper:
        channel.close()
        items = ["version=1", "service=test", f"user={user}", "flags=0", *(f"arg={a}" for a in arguments)]
        relay.send(b"H" + "\0".join(items).encode())
        result = b""
        while packet := relay.recv(4096):
            if packet[:1] in b"pP":
                relay.send(b"N" if answer is None else b"A" + answer.encode())
            elif packet == b"g":
                relay.send(b"N")
            elif packet[:1] == b"r":
                result = packet
        assert helper.stdout is not None
        return result, helper.stdout.read()


@pytest.mark.bare
@pytest.mark.parametrize(
    ("answer", "result"), [(codes(0), b"r0"), (RECOVERY, b"r0"), ("000000", b"r7"), (None, b"r19")]
)
def test_a_login_loads_only_lean_modules(tmp_path: Path, answer: str | None, result: bytes) -> None:
    put(tmp_path)
    command = [INTERPRETER, "-I", "-S", "-c", PRINT_MODULES, str(ROOT)]
    got, printed = log_in(command, answer, f"store={tmp_path}")
    assert got == result
    loaded = set(printed.split())
    assert "pam_totp.pam.login" in loaded
    assert {name for name in loaded if name.partition(".")[0] != "pam_totp"} <= LEAN


@pytest.fixture(scope="module")
def _copied() -> Iterator[Path]:
    """Yield a folder that every account can enter, with a package `lib` that only root can read."""
    with tempfile.TemporaryDirectory(prefix="helper-") as name:
        copied = Path(name)
        copied.chmod(0o755)
        shutil.copytree(ROOT / "pam_totp", copied / "lib" / "pam_totp")
        (copied / "lib").chmod(0o700)
        yield copied


@pytest.fixture
def copied(_copied: Path) -> Path:
    """Return the folder with an empty store and without homes."""
    for name in ("store", "home"):
        shutil.rmtree(_copied / name, ignore_errors=True)
    (_copied / "store").mkdir()
    return _copied


ANSWERS = {
    "right": (codes(0), b"r0"),
    "codes in a row": (codes(0, 2), b"r0"),
    "far ahead": (codes(900, 3), b"r0"),
    "recovery code": (RECOVERY, b"r0"),
    "wrong": ("000000", b"r7"),
    "malformed": ("x", b"r7"),
    "no answer": (None, b"r19"),
}


@as_root
@pytest.mark.parametrize("arguments", [[], ["debug"], ["grace_period=60", "try_first_pass"], ["echo"]])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_helper_imports_the_package_before_it_drops_root(copied: Path, name: str, arguments: list[str]) -> None:
    answer, result = ANSWERS[name]
    put(copied / "store", owner=OWNER)
    assert _log_in(copied, answer, f"store={copied}/store", *arguments) == result


@as_root
@pytest.mark.parametrize("user", ["mallory", "bob"])
def test_a_helper_refuses_unknown_users_after_it_dropped_root(copied: Path, user: str) -> None:
    put(copied / "store", owner=OWNER)
    assert _log_in(copied, codes(0), f"store={copied}/store", user=user) == b"r7"
    assert _log_in(copied, codes(0), f"store={copied}/store", "nullok", user=user) == b"r9", "law 10"


@as_root
@pytest.mark.parametrize("name", ANSWERS)
def test_a_helper_imports_the_home_store_before_it_drops_root(copied: Path, name: str) -> None:
    answer, result = ANSWERS[name]
    account = pwd.getpwnam("nobody")
    (copied / "home").mkdir()
    file = copied / "home" / account.pw_name
    record = ALICE.without_tokens(account.pw_name).with_token(fob())
    file.write_bytes(new_file(serialize(record), slot_size(record)))
    file.chmod(0o600)
    for path in (copied / "home", file):
        os.chown(path, account.pw_uid, account.pw_gid)
    assert _log_in(copied, answer, f"secret={copied}/home/${{USER}}", user=account.pw_name) == result


@as_root
def test_a_damaged_record_is_logged_after_root_was_dropped(copied: Path) -> None:
    put(copied / "store", owner=OWNER)
    (copied / "store" / "alice.record").write_bytes(b"{")
    assert _log_in(copied, codes(0), f"store={copied}/store") == b"r9"


def _log_in(copied: Path, answer: str | None, *arguments: str, user: str = "alice") -> bytes:
    command = [INTERPRETER, "-I", "-S", str(copied / "lib" / "pam_totp" / "pam" / "helper.py")]
    return log_in(command, answer, *arguments, user=user)[0]
