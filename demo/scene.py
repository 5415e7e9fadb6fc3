"""A private installation in a temporary folder: a store, PAM services, the service on a socket, and a simulated token.

- The commands are `build/bin/pam-totp` and `build/bin/token-sim`. libpam is the host's; the module is from `build`.
- The caller stops the service by `Scene.close`, also after Ctrl-C. `plugged_in` stops the token, also after Ctrl-C.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pam_totp.system.libpam import PROMPTS, Login

TREE = Path(__file__).resolve().parent.parent
MODULE = TREE / "build" / "pam_totp.so"
PAM_TOTP = str(TREE / "build" / "bin" / "pam-totp")
TOKEN_SIM = str(TREE / "build" / "bin" / "token-sim")
USER = pwd.getpwuid(os.geteuid()).pw_name  # an ordinary account can ask the service only about itself
UTF_8 = os.environ | {"LC_ALL": "C.UTF-8"}  # a locale in which the commands can print block characters
START_WAIT = 40.0  # maximum seconds until a started process is ready: enough on a busy machine
SPEED = 20  # token seconds per real second: forty presses take a quarter of a second


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition is true. Exit with a message that names `what` if the wait exceeds START_WAIT."""
    deadline = time.monotonic() + START_WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"demo failed: {what} takes more than {START_WAIT:.0f} s")
        time.sleep(0.002)


@dataclass(frozen=True)
class Attempt:
    """A login. `result` is the name of libpam's result. `dialogue` lists prompts, with their answers, and messages."""

    result: str
    dialogue: tuple[str, ...]
    seconds: float


class Scene:
    """A store, a folder of PAM services, and the service `pam-totp serve`, all in `folder`."""

    def __init__(self, folder: Path, module: Path | str = MODULE) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.socket = folder / "socket"
        self.log = folder / "log"
        self._services = folder / "pam.d"
        self._module = module
        self._service: subprocess.Popen[bytes] | None = None
        self.store.mkdir(mode=0o700)
        self._services.mkdir()

    def configure(self, service: str, socket: str) -> None:
        """Write the file of a PAM service. The only line of the file calls the module."""
        line = f"auth required {self._module} store={self.store} socket={socket} nodelay second_prompt\n"
        (self._services / service).write_text(line)

    def start_service(self) -> None:
        """Start `pam-totp serve`, and wait until it listens."""
        config = self.folder / "pam_totp.toml"
        config.touch(0o644)
        command = [PAM_TOTP, "serve", "--socket", str(self.socket), "--store", str(self.store), "--config", str(config)]
        with open(self.log, "ab") as log:
            self._service = subprocess.Popen([*command, "--log", "stderr"], stderr=log, start_new_session=True)
        service = self._service
        wait_until(lambda: self.socket.exists() or service.poll() is not None, "the start of the service")

    def close(self) -> None:
        """Stop the service."""
        if self._service is not None:
            self._service.terminate()
            self._service.wait()

    def log_in(self, answers: Iterable[str], service: str) -> Attempt:
        """Log in through libpam with the next of `answers` at each prompt, and return the attempt.

        Cancel the login at a prompt after the last answer.
        """
        dialogue: list[str] = []
        left = iter(answers)

        def converse(style: int, text: str) -> bytes | None:
            answer = next(left, None) if style in PROMPTS else None
            dialogue.append(f"{text}{answer or ''}")
            return None if answer is None else answer.encode()

        begun = time.monotonic()
        with Login(service, USER, converse, folder=str(self._services)) as login:
            result = login.authenticate()
        return Attempt(result, tuple(dialogue), time.monotonic() - begun)

    def pam_totp(self, command: str, *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a pam-totp command on the store, and return its result."""
        return subprocess.run(
            [PAM_TOTP, command, "--store", self.store, *words],
            input=stdin,
            text=True,
            env=UTF_8,
            capture_output=True,
            check=False,
        )

    def talk_to_pam_totp(self, command: str, *words: str) -> Dialogue:
        """Start a pam-totp command that waits for answers, and return it."""
        return Dialogue([PAM_TOTP, command, "--store", str(self.store), *words])


class Dialogue:
    """A running command that waits for answers. Its input is a terminal, and its output and errors go to one pipe."""

    def __init__(self, command: list[str]) -> None:
        self._terminal, its_end = os.openpty()
        self._process = subprocess.Popen(
            command, env=UTF_8, stdin=its_end, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        os.close(its_end)

    def read_until(self, end: str) -> str:
        """Return the output up to `end`, or all output if the command exits first."""
        assert self._process.stdout is not None
        output = b""
        while not output.endswith(end.encode()):
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            if not more:
                break
            output += more
        return output.decode()

    def answer(self, line: str) -> None:
        """Type a line."""
        os.write(self._terminal, f"{line}\n".encode())

    def has_ended(self) -> bool:
        """Return True if the command has exited."""
        return self._process.poll() is not None

    def finish(self) -> tuple[int, str]:
        """Wait for the command. Return its exit status, and its output since the last read."""
        output = self.read_until("\0")
        return self._process.wait(), output

    def close(self) -> None:
        """Stop the command if it still runs."""
        os.close(self._terminal)
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Made:
    """A new token: its file, and its line in the vendor's seed file."""

    file: Path
    serial: str
    seed: str  # hex
    counter: str


def make_token(folder: Path) -> Made:
    """Create a token and its seed file with `token-sim factory`, and return the token."""
    out = folder / "factory"
    subprocess.run([TOKEN_SIM, "factory", "--count", "1", "--out", out], check=True, stdout=subprocess.DEVNULL)
    serial, seed, _, _, counter = (out / "seeds.csv").read_text().splitlines()[0].split(",")
    return Made(out / f"{serial}.token", serial, seed, counter)


class PluggedToken:
    """A running `token-sim run`, with a port on a pseudo-terminal."""

    def __init__(self, file: Path, port: Path) -> None:
        self.port = port
        self._process = subprocess.Popen(
            [TOKEN_SIM, "run", file, "--link", port, "--speed", str(SPEED)],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_until(lambda: port.exists() or self._process.poll() is not None, "the start of the simulated token")
        except BaseException:  # Ctrl-C too
            self.unplug()
            raise

    def press(self, times: int = 1) -> list[str]:
        """Press the button `times` times, and return the codes."""
        command = [TOKEN_SIM, "press", "--port", str(self.port), "-n", str(times)]
        return subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True).stdout.split()

    def press_by_hand(self) -> None:
        """Press the button by a signal. Another program can read the port at the same time."""
        self._process.send_signal(signal.SIGUSR1)

    def unplug(self) -> None:
        """Stop the token, which removes its port."""
        self._process.terminate()
        self._process.wait()


@contextmanager
def plugged_in(file: Path, port: Path) -> Iterator[PluggedToken]:
    """Run the token of `file` on `port` until the end of the context. Yield the running token."""
    token = PluggedToken(file, port)
    try:
        yield token
    finally:
        token.unplug()
