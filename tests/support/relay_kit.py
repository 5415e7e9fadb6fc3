"""Support for tests of the relay: scripted services, scripted helpers, test-only builds, and a folder for logins."""

from __future__ import annotations

import functools
import os
import socket
import subprocess
import sys
import tempfile
import threading
from ast import literal_eval
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import pamconf
from tests.support.site import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
RELAY = ROOT / "build" / "pam_totp.so"  # the output of `make build`
INTERPRETER = "/usr/bin/python3"
AS_ROOT = os.geteuid() == 0


Script = Callable[[socket.socket, list[bytes]], None]
Log = Callable[[], list[str]]


@functools.cache
def _builds() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="relay-builds-")


@functools.cache
def build(**defines: str | int) -> Path:
    """Return a test build of the relay, in which `defines` replace compiled-in values."""
    macros = {"INTERPRETER": INTERPRETER, "HELPER": "/nonexistent/helper.py", "BUILDER": os.geteuid(), **defines}
    target = Path(_builds().name, f"relay-{build.cache_info().misses}.so")
    flags = [f'-D{name}="{value}"' if isinstance(value, str) else f"-D{name}={value}" for name, value in macros.items()]
    command: list[str | Path] = ["cc", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", *flags, "-o", target]
    subprocess.run([*command, ROOT / "pam_totp" / "pam" / "relay.c", "-lpam"], check=True)
    return target


def library(folder: Path, source: str) -> Path:
    """Compile `source` to a shared library in `folder`, and return the path of the library.

    LD_PRELOAD loads the library, which replaces functions of other libraries.
    """
    target = folder / "library.so"
    command: list[str | Path] = ["cc", "-w", "-shared", "-fPIC", "-x", "c", "-", "-o", target, "-lpam"]
    subprocess.run(command, input=source, text=True, check=True)
    return target


def brisk() -> Path:
    """Return the relay with short time limits."""
    return build(TURN_LIMIT=300, CONNECT_LIMIT=100)


def play(*messages: bytes, hang_up: bool = False) -> Script:
    """Return the script of a service that reads the hello, and sends `messages`.

    The service reads an answer after each prompt. At the end, the service waits until the relay disconnects, or
    disconnects if `hang_up` is true.
    """

    def script(channel: socket.socket, heard: list[bytes]) -> None:
        heard.append(channel.recv(8192))
        for message in messages:
            channel.send(message)
            if message[:1] in (b"p", b"P", b"g"):
                heard.append(channel.recv(8192))
        if not hang_up:
            channel.recv(1)

    return script


def in_turn(*scripts: Script) -> Script:
    """Return a script that runs the next of `scripts` at each login."""
    remaining = iter(scripts)

    def script(channel: socket.socket, heard: list[bytes]) -> None:
        next(remaining)(channel, heard)

    return script


class Service:
    """A scripted service on a socket, with a thread for each login."""

    def __init__(self, path: Path, script: Script) -> None:
        self.path, self.script = path, script
        self.heard: list[bytes] = []  # of the last login: the hello, then the answers
        self.logins = 0
        self.failures: list[BaseException] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    @property
    def argument(self) -> str:
        return f"socket={self.path}"

    def close(self) -> None:
        """Stop the service. Raise the first error of the script, for example a failed assertion."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(PATIENCE)
        self._listener.close()
        if self.failures:
            raise self.failures[0]

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            self.logins += 1
            self.heard = []
            self.threads.append(threading.Thread(target=self._serve, args=(channel, self.heard), daemon=True))
            self.threads[-1].start()

    def _serve(self, channel: socket.socket, heard: list[bytes]) -> None:
        channel.settimeout(PATIENCE)
        with channel:
            try:
                self.script(channel, heard)
            except (BrokenPipeError, ConnectionResetError):
                pass  # most of these scripts expect that the relay disconnects
            except BaseException as error:
                self.failures.append(error)


class Setup:
    """A private folder with service files, sockets and helpers, and logins through the real libpam."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._services = 0
        assert RELAY.exists(), f"{RELAY}: not found (run make build)"

    @contextmanager
    def service(self, script: Script, path: Path | None = None) -> Iterator[Service]:
        service = Service(path or self.folder / "socket", script)
        try:
            yield service
        finally:
            service.close()

    def helper(self, source: str, path: Path | None = None) -> Path:
        """Write a helper that reads the hello from `channel`, and return the path of the helper.

        `tell(value)` in `source` sends a value to the test.
        """
        path = path or self.folder / "helper.py"
        start = "import os, socket, sys\nchannel = socket.socket(fileno=3)\nhello = channel.recv(8192)\n"
        path.write_text(start + "def tell(value): channel.send(b'i' + repr(value).encode())\n" + source)
        path.chmod(0o600)
        return path

    def stack(self, *arguments: object, relay: Path = RELAY, carry_authtok: bool = False) -> str:
        """Write a PAM service file by which libpam returns the relay's result. Return the name of the service."""
        self._services += 1
        name = f"setup{self._services}"
        line = f"auth [success=ok default=die] {relay} {' '.join(map(str, arguments))}"
        pamconf.service(self.folder, name, line, carry_authtok=carry_authtok)
        return name

    def login(
        self,
        *arguments: object,
        relay: Path = RELAY,
        user: str | None = "alice",
        answers: Iterable[pamconf.Answer] | Callable[[pamconf.Shown], str | bytes | None] = (),
        items: Mapping[str, str] | None = None,
        flags: int = 0,
        carry_authtok: bool = False,
    ) -> pamconf.Login:
        name = self.stack(*arguments, relay=relay, carry_authtok=carry_authtok)
        return pamconf.login(name, user, answers, self.folder, items=items, flags=flags)

    def run(self, source: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `source` as a PAM application in a separate process.

        `source` can use the module `pamconf` and `folder`, the folder of the service files.
        """
        start = f"from tests.support import pamconf\nimport os, signal, sys, threading\nfolder = {str(self.folder)!r}\n"
        return subprocess.run(
            [sys.executable, "-c", start + source],
            cwd=ROOT,
            env={**os.environ, **environment},
            timeout=PATIENCE,
            capture_output=True,
            text=True,
            check=False,
        )


def told(login: pamconf.Login) -> Any:
    """Return the values that a helper has sent with `tell`: a list, or the only value."""
    values = [literal_eval(message.text) for message in login.messages]
    return values[0] if len(values) == 1 else values
