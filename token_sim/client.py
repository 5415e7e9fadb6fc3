"""A client of a token: it presses the button and reads the code, over any port that pyserial can open.

Rules:
- Every wait has a limit. A `Timeout` names the missing code or answer.
- The errors are `PortError` (the port is missing, busy or unplugged), `Timeout`, and `Refused` (the reply is ERR).
- The caller decides whether to repeat a request after a PortError or a Timeout: the token might have counted a press.
"""

from __future__ import annotations

import errno
import re
import time
from collections import deque
from typing import Any

from token_sim.extras import missing

__all__ = ["Client", "ClientError", "PortError", "Refused", "Timeout"]

CODE = re.compile(r"(?:\+OTP )?([0-9]{6,8})", re.ASCII)
IN_USE = re.compile(rb"ERR [0-9]+ IN-USE")  # the answer of a TCP port to a second client
POLL_S = 0.05  # the maximum wait of one read from the port
RETRY_S = 0.02  # the pause before the client repeats a press, after the reply BUSY
NETWORK_URL = re.compile(
    r"(?:socket|rfc2217)://(?P<host>\[[^]]*\]|[^:/?]*)(?::(?P<port>[^/?]*))?(?:[/?].*)?", re.IGNORECASE
)
MAX_PORT = 65_535
LONGEST_LINE = 4096  # bytes: the client drops the beginning of a longer line


class ClientError(Exception):
    """The base class of the errors of this module. The message contains the problem, and the reason if it is known."""


class PortError(ClientError):
    """The error if the port cannot be used: for example, the port is missing, busy or unplugged."""


class Timeout(ClientError):
    """The error if the token does not answer in time."""


class Refused(ClientError):
    """The error if the reply of the token is ERR. `name` is the error's name in the protocol, such as BUSY."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


class Client:
    """A connection to the token at `url`, such as /tmp/token, socket://127.0.0.1:4000 or token://NAME.

    `timeout` (seconds) limits each call. A call first waits up to `patience` seconds for a port that is missing, busy
    or unplugged. The call fails if the port disappears during the call.
    """

    def __init__(self, url: str, timeout: float = 10.0, patience: float = 0.0) -> None:
        self.url, self.timeout, self.patience = url, timeout, patience
        self._lines: deque[str] = deque()
        self._partial = b""
        self._port: Any = None
        self._connect()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None

    def ask(self, request: str) -> dict[str, str]:
        """Send a request, and return the values of its reply. Raise Refused if the reply is ERR."""
        self._connect()
        return self._ask(request, _Limit(self.timeout))

    def press(self, ms: int | None = None) -> str:
        """Press the button until a new code appears, and return the code.

        `ms` is the length of a press in milliseconds (default: the model's value).
        """
        self._connect()
        limit = _Limit(self.timeout)
        request = "PRESS" if ms is None else f"PRESS {ms}"
        self._press_when_free(request, limit)
        while True:
            line = self._line(limit, "new code after a press")
            if match := CODE.fullmatch(line):
                return match[1]
            if line.startswith("+ERR "):
                raise Refused(line[5:], f"{self.url} shows an error: {line[5:].lower()}")
            # The press, or the end of the display time, turned the display off. Press again if the token is asleep.
            if line == "+DISP OFF" and self._ask("*TST?", limit)["state"] == "asleep":
                self._press_when_free(request, limit)

    def wait_code(self) -> str:
        """Wait until another client or a user presses the button, and return the code."""
        self._connect()
        limit = _Limit(self.timeout)
        while True:
            if match := CODE.fullmatch(self._line(limit, "code")):
                return match[1]

    def _ask(self, request: str, limit: _Limit) -> dict[str, str]:
        self._send(request)
        values: dict[str, str] = {}
        events: list[str] = []
        try:
            while True:
                line = self._line(limit, f"answer to {request}")
                if line == "OK":
                    return values
                if line.startswith("ERR "):
                    name = line.rsplit(maxsplit=1)[-1]
                    raise Refused(name, f"{self.url} refused {request}: {name.lower()}")
                if line.startswith("+") or CODE.fullmatch(line):
                    events.append(line)
                else:
                    key, _, value = line.partition("=")
                    values[key] = value
        finally:
            self._lines.extendleft(reversed(events))

    def _press_when_free(self, request: str, limit: _Limit) -> None:
        while True:
            self._read_port(0, limit)
            self._lines.clear()  # earlier lines cannot contain the code of this press
            try:
                self._ask(request, limit)
                return
            except Refused as refused:
                if refused.name != "BUSY" or limit.is_over():
                    raise
            self._read_port(RETRY_S, limit)

    # --- the port

    def _connect(self) -> None:
        limit = _Limit(self.patience)
        while self._port is None:
            try:
                self._port = _open(self.url)
            except PortError:
                if limit.is_over():
                    raise
                time.sleep(POLL_S)

    def _send(self, request: str) -> None:
        try:
            self._port.write(request.encode() + b"\r")
        except OSError as error:
            raise self._disconnected(error) from error

    def _line(self, limit: _Limit, what: str) -> str:
        while not self._lines:
            if limit.is_over():
                raise Timeout(f"{self.url}: no {what} in {self.timeout:g} s")
            self._read_port(POLL_S, limit)
        return self._lines.popleft()

    def _read_port(self, seconds: float, limit: _Limit) -> None:
        """Read for at most `seconds` (virtual for a token:// port), and split the bytes into lines."""
        try:
            self._port.timeout = seconds
            data = self._port.read(max(1, self._port.in_waiting))
        except OSError as error:
            raise self._disconnected(error) from error
        if not data:
            limit.spend(seconds)
        *lines, self._partial = re.split(rb"[\r\n]+", (self._partial + data)[-LONGEST_LINE:])
        for line in lines:
            if IN_USE.fullmatch(line):
                self.close()
                raise PortError(f"{self.url} cannot be used: another client uses the port")
            if text := line.decode("ascii", "replace").strip():
                self._lines.append(text)

    def _disconnected(self, error: OSError) -> PortError:
        self.close()
        self._lines.clear()
        self._partial = b""
        return PortError(f"{self.url} disappeared: unplugged, or the simulator ended ({_reason(error)})")


def check_url(url: str) -> str:
    """Return `url`. Raise ValueError for a network URL with an invalid host or port."""
    if network := NETWORK_URL.fullmatch(url):
        text = network["port"] or ""
        if not (network["host"] and text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_PORT):
            raise ValueError(f"{url} must have a host and a port of 1 to {MAX_PORT}, as in socket://127.0.0.1:4000")
    return url


class _Limit:
    """A time limit in seconds. `spend` counts reads without data, because a token:// port waits in virtual time."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._deadline = time.monotonic() + seconds

    def spend(self, seconds: float) -> None:
        self._left -= seconds

    def is_over(self) -> bool:
        """Return True if the limit is reached."""
        return self._left <= 0 or time.monotonic() >= self._deadline


def _open(url: str) -> Any:
    try:
        check_url(url)
    except ValueError as error:
        raise PortError(f"{url} cannot be opened: {str(error).removeprefix(url).strip()}") from None
    try:
        import serial  # pyserial is optional, and slow to load
    except ImportError:
        raise PortError(missing("pyserial")) from None
    if "://" not in url:
        # Without `exclusive`, two clients could each receive a part of the bytes.
        options: dict[str, Any] = {"exclusive": True}
    else:
        options = {}
    try:
        return serial.serial_for_url(url, timeout=POLL_S, **options)
    except (OSError, ValueError) as error:
        raise PortError(f"{url} cannot be opened: {_reason(error)}") from error


_REASONS = {
    errno.ENOENT: "port not found (start the token with 'token-sim run')",
    errno.EAGAIN: "another client uses the port",
    errno.EBUSY: "another client uses the port",
    errno.EACCES: "permission denied",
    errno.ENOTTY: "the path must be a serial port",
    errno.ECONNREFUSED: "connection refused (start the token with 'token-sim run')",
}


def _reason(error: BaseException) -> str:
    for cause in (error, error.__context__):  # some errors of pyserial have their errno only in the context
        number = getattr(cause, "errno", None) or (cause.args[0] if cause is not None and cause.args else None)
        if number in _REASONS:
            return _REASONS[number]
    if isinstance(error.__context__, OSError) and error.__context__.strerror:  # shorter than pyserial's message
        return error.__context__.strerror.lower()
    return str(error).splitlines()[0].lower()
