"""A private installation for tests: a store, PAM services, and the real service on a socket."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pam_totp.core.oath import hotp
from pam_totp.core.record import UNKNOWN_USER, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.slots import BLOCK, decode, encode, new_file, slot_size
from pam_totp.store.decoys import COUNT as DECOY_COUNT
from pam_totp.store.decoys import FOLDER as DECOYS
from tests.support import commands
from tests.support.pamconf import Answer, Login, Result, login, service

TREE = Path(__file__).resolve().parent.parent.parent
MODULE = TREE / "build" / "pam_totp.so"


def _account() -> str:
    """Return the name of the account that runs the tests, or the uid if the account has no passwd entry."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


ME = _account()  # an ordinary user can test logins of this account only
KEY = b"12345678901234567890"  # the key of RFC 4226, appendix D
PATIENCE = 40.0  # seconds: the limit of a wait for a condition, on a busy machine
PIPE = ("--output", "-")  # allows a command to print keys, because its standard output is a pipe here
OTHER_UID = 54321  # a uid without an account
UNPRIVILEGED_UID = 65534  # an account without privileges


def until(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until `condition` is true. Fail with `what` if the condition is false after `seconds`."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise AssertionError(f"not true after {seconds:g} s: {what}")
        time.sleep(0.002)


def without_log_warning(text: str) -> str:
    """Return `text`, the output of a command, without the warning about a missing log daemon."""
    return re.sub(r"^pam-totp: warning: not in the audit log: /dev/log: .*\r?\n", "", text, flags=re.MULTILINE)


class LogFile:
    """The log file of a service."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def has(self, *words: str) -> bool:
        return any(all(w in line for w in words) for line in self.lines())


class Site:
    """An installation in `folder`. Call `stop` at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.chmod(0o755)  # some tests use other accounts, but pytest creates folders with mode 0700
        self.store = folder / "store"
        self.store.mkdir(0o700)
        make_decoys(self.store)
        self.confdir = folder / "pam.d"
        self.confdir.mkdir()
        self.socket = folder / "socket"
        self.config = folder / "pam_totp.toml"
        self.log = LogFile(folder / "log")
        self._service: subprocess.Popen[bytes] | None = None

    def configure(self, name: str = "demo", arguments: str = "", way: str = "spawn", *then: str) -> None:
        """Write the stack of the PAM service `name`: a line for pam_totp, followed by the lines in `then`.

        The line contains `second_prompt`, because an ordinary user gets the second prompt only with this argument.
        """
        socket = self.socket if way == "socket" else "none"
        second = "" if "second_prompt" in arguments else "second_prompt"
        line = f"auth required {MODULE} store={self.store} socket={socket} nodelay {second} {arguments}".strip()
        service(self.confdir, name, line, *then)

    def start(self, *options: str, before: str = "") -> subprocess.Popen[bytes]:
        """Start the service in its own process, and wait until it is ready for logins.

        The process first executes the Python statements `before`.
        """
        self.config.touch(0o644)
        paths = ("--socket", str(self.socket), "--store", str(self.store), "--config", str(self.config))
        program = ["-c", f"{before}; from pam_totp.cli import main; main()"] if before else ["-m", "pam_totp.cli"]
        command = [sys.executable, *program, "serve", *paths, "--log", "stderr", *options]
        stale = self._socket_identity()  # of a service that was killed
        with open(self.folder / "log", "ab") as log:
            self._service = subprocess.Popen(command, cwd=TREE, stderr=log)
        until(lambda: self._socket_identity() not in (None, stale) or self._ended(), "the service creates its socket")
        return self._service

    def _socket_identity(self) -> tuple[int, int] | None:
        """Return the inode and the change time of the socket, or None if the socket does not exist."""
        try:
            status = self.socket.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_ctime_ns

    def _ended(self) -> bool:
        return self._service is not None and self._service.poll() is not None

    def stop(self) -> None:
        if self._service is not None:
            self._service.terminate()
            self._service.wait(PATIENCE)
            self._service = None

    def kill(self) -> None:
        """Kill the service, to simulate a crash."""
        assert self._service is not None
        self._service.kill()
        self._service.wait(PATIENCE)
        self._service = None

    # The records

    def path(self, user: str = ME) -> Path:
        return self.store / f"{user}.record"

    def enrol(self, *tokens: Token, user: str = ME, **fields: Any) -> None:
        """Write the record of `user`. The record has a HOTP token with RFC 4226's key if `tokens` is empty."""
        record = UserRecord(user=user, tokens=tokens or (fob(),), **fields)
        self.path(user).write_bytes(new_file(serialize(record), slot_size(record)))
        self.path(user).chmod(0o600)
        owner = self.store.stat()
        if os.geteuid() == 0:
            os.chown(self.path(user), owner.st_uid, owner.st_gid)

    def give_to(self, uid: int) -> None:
        """Change the owner of the store, and of all files in the store, to `uid`."""
        for path in (self.store, *self.store.rglob("*")):
            os.chown(path, uid, uid)

    def files(self) -> set[str]:
        """Return the names in the store, without the lock file and the folder of the decoys."""
        return set(os.listdir(self.store)) - {".lock", DECOYS}

    def record(self, user: str = ME) -> UserRecord:
        return parse(decode(self.path(user).read_bytes()).document)

    def counter(self, user: str = ME) -> int:
        token = self.record(user).tokens[0]
        assert isinstance(token, HotpToken)
        return token.counter

    # Logins, and the command line

    def login(
        self, *answers: Answer, user: str = ME, service: str = "demo", items: dict[str, str] | None = None
    ) -> Login:
        return login(service, user, answers, self.confdir, items=items)

    def gets_in(self, answer: Answer, user: str = ME) -> bool:
        """Return True if `answer` is accepted. Check that a refusal is PAM_AUTH_ERR."""
        done = self.login(answer, user=user)
        assert done.result in (Result.SUCCESS, Result.AUTH_ERR), done
        return done.result is Result.SUCCESS

    def command(self, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `pam-totp` with the store of this site. Omit the warning about a missing log daemon."""
        name, *rest = map(str, words)
        done = commands.run([name, "--store", str(self.store), *rest], stdin, PATIENCE * 3)
        done.stderr = without_log_warning(done.stderr)
        return done

    def command_json(self, *words: str | Path, stdin: str = "") -> Any:
        done = self.command(words[0], "--json", *words[1:], stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def make_decoys(store: Path) -> None:
    """Create the lock file and the decoys as `FileStore.prepare` does, but without fsync."""
    (store / ".lock").touch(0o600)
    (store / DECOYS).mkdir(0o700)
    document = serialize(UNKNOWN_USER.with_token(phone()))
    content = encode(1, document, BLOCK) + encode(2, document, BLOCK)
    for number in range(DECOY_COUNT):
        # by os.open: pathlib takes twice as long, and 2,000 tests need these 64 files
        decoy = os.open(store / DECOYS / f"{number:02}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(decoy, content)
        os.close(decoy)


def fob(counter: int = 0, **fields: Any) -> HotpToken:
    """Return a HOTP token with RFC 4226's key."""
    given: dict[str, Any] = {"name": "fob", "secret": KEY, "created": 0, "counter": counter} | fields
    return HotpToken(**given)


def phone(**fields: Any) -> TotpToken:
    """Return a TOTP token with another key."""
    given: dict[str, Any] = {"name": "phone", "secret": KEY[::-1], "created": 0} | fields
    return TotpToken(**given)


def codes(first: int, count: int = 1, key: bytes = KEY, digits: int = 6) -> str:
    """Return `count` codes in a row from `first`, as one answer."""
    return " ".join(hotp(key, first + i, digits) for i in range(count))
