"""The host's side: press the button and read the code, over any port that pyserial can open.

The law:
- everything waits with a limit, and says what it waited for;
- three kinds of trouble and no others: `PortError` (missing, busy, unplugged), `Timeout`, `Refused` (by the token).
"""

from __future__ import annotations

import re
import time
from collections import deque
from typing import Any

CODE = re.compile(r"(?:\+OTP )?([0-9]{6,8})")
RETRY_S = 0.02  # after a press that came too soon


class ClientError(Exception):
    """What went wrong, and what to do."""


class PortError(ClientError):
    """The port is missing, busy, or went away."""


class Timeout(ClientError):
    """The token did not answer in time."""


class Refused(ClientError):
    """The token answered with an error. `name` is the protocol's."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Client:
    """A token at `url`, such as /tmp/token, socket://127.0.0.1:4000 or token://NAME. Use it in a `with`."""

    def __init__(self, url: str, timeout: float = 10.0) -> None:
        self.url, self.timeout = url, timeout
        self._lines: deque[str] = deque()
        self._partial = b""
        self._port = self._open()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._port.close()

    def ask(self, request: str) -> dict[str, str]:
        """Send one request and return the values of its reply. Raises Refused for ERR."""
        self._send(request)
        deadline = time.monotonic() + self.timeout
        values: dict[str, str] = {}
        events: list[str] = []
        try:
            while True:
                line = self._line(deadline, f"an answer to {request}")
                if line == "OK":
                    return values
                if line.startswith("ERR "):
                    raise Refused(line.split()[-1], f"{self.url} refused {request}: {line[4:]}")
                if line.startswith("+") or CODE.fullmatch(line):
                    events.append(line)
                else:
                    key, _, value = line.partition("=")
                    values[key] = value
        finally:
            self._lines.extendleft(reversed(events))

    def press(self) -> str:
        """Press the button until a new code comes, and return it."""
        deadline = time.monotonic() + self.timeout
        while True:
            self._press_when_free(deadline)
            while True:
                line = self._line(deadline, "a code after a press")
                if match := CODE.fullmatch(line):
                    return match[1]
                if line.startswith("+ERR "):
                    raise Refused(line[5:], f"{self.url} shows an error: {line[5:].lower()}")
                if line == "+DISP OFF":  # that press turned it off
                    break

    def wait_code(self) -> str:
        """Return the next code that somebody else's finger brings."""
        deadline = time.monotonic() + self.timeout
        while True:
            if match := CODE.fullmatch(self._line(deadline, "a code")):
                return match[1]

    def _press_when_free(self, deadline: float) -> None:
        while True:
            try:
                self.ask("PRESS")
                return
            except Refused as refused:
                if refused.name != "BUSY" or time.monotonic() > deadline:
                    raise
                time.sleep(RETRY_S)

    def _open(self) -> Any:
        try:
            import serial  # noqa: PLC0415  # an extra, and slow to load
        except ImportError as error:
            raise PortError("pyserial is missing (pip install 'pam-totp[serial]')") from error
        local = "://" not in self.url
        try:
            return serial.serial_for_url(self.url, timeout=0.05, exclusive=True if local else None)
        except (OSError, ValueError) as error:
            raise PortError(f"{self.url} cannot be opened: {_why(error)}") from error

    def _send(self, request: str) -> None:
        try:
            self._port.write(request.encode() + b"\r")
        except OSError as error:
            raise PortError(f"{self.url} went away ({_why(error)})") from error

    def _line(self, deadline: float, what: str) -> str:
        while not self._lines:
            if time.monotonic() > deadline:
                raise Timeout(f"{self.url}: no {what.removeprefix('a ').removeprefix('an ')} in {self.timeout:g} s")
            try:
                data = self._port.read(max(1, self._port.in_waiting))
            except OSError as error:
                raise PortError(f"{self.url} went away ({_why(error)})") from error
            *whole, self._partial = re.split(rb"[\r\n]+", self._partial + data)
            self._lines.extend(text for line in whole if (text := line.decode("ascii", "replace").strip()))
        return self._lines.popleft()


def _why(error: Exception) -> str:
    number = getattr(error, "errno", None)
    if number == 2:
        return "there is no such port; is 'token-sim run' running?"
    if number in (11, 16):
        return "another program has it open"
    if number == 13:
        return "permission denied"
    return str(error).splitlines()[0].lower()
