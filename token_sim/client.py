"""The host's side: press the button and read the code, over any port that pyserial can open.

The law:
- everything waits with a limit, and says what it waited for;
- three kinds of trouble and no others: `PortError` (missing, busy, unplugged), `Timeout`, `Refused` (by the token);
- a request is never sent twice by itself: a press that may have counted is the caller's to repeat.
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
IN_USE = re.compile(rb"ERR [0-9]+ IN-USE")  # a TCP port that has a client
POLL_S = 0.05  # one look at the port
RETRY_S = 0.02  # after a press that came too soon
LONGEST_LINE = 4096  # bytes without an end of line: noise


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
    """A token at `url`, such as /tmp/token, socket://127.0.0.1:4000 or token://NAME. Use it in a `with`.

    `timeout` (seconds) is for each call. With `patience` (seconds), a port that is missing, busy or unplugged is
    waited for so long at the start of a call; what is under way when a port goes away fails all the same.
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
        """Send one request and return the values of its reply. Raises Refused for ERR."""
        self._connect()
        return self._ask(request, _Limit(self.timeout))

    def press(self, ms: int | None = None) -> str:
        """Press the button (for `ms`, or as long as the token's model needs) until a new code comes; return it."""
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
            # Off, by that press or because the old code's time was over: only asleep does it want another press.
            if line == "+DISP OFF" and self._ask("*TST?", limit)["state"] == "asleep":
                self._press_when_free(request, limit)

    def wait_code(self) -> str:
        """Return the next code that somebody else's finger brings."""
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
            self._lines.clear()  # what came before this press is not its code
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
        """Read what comes, for at most `seconds` of the port's time."""
        try:
            self._port.timeout = seconds
            data = self._port.read(max(1, self._port.in_waiting))
        except OSError as error:
            raise self._disconnected(error) from error
        if not data:
            limit.spend(seconds)
        *whole, self._partial = re.split(rb"[\r\n]+", (self._partial + data)[-LONGEST_LINE:])
        for line in whole:
            if IN_USE.fullmatch(line):
                self.close()
                raise PortError(f"{self.url} cannot be used: another client has it open")
            if text := line.decode("ascii", "replace").strip():
                self._lines.append(text)

    def _disconnected(self, error: OSError) -> PortError:
        self.close()
        self._lines.clear()
        self._partial = b""
        return PortError(f"{self.url} went away: unplugged, or the simulator ended ({_reason(error)})")


class _Limit:
    """A limit in seconds, by the clock and by what was spent on the port, which may run on virtual time."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._deadline = time.monotonic() + seconds

    def spend(self, seconds: float) -> None:
        self._left -= seconds

    def is_over(self) -> bool:
        return self._left <= 0 or time.monotonic() >= self._deadline


def _open(url: str) -> Any:
    try:
        import serial  # an extra, and slow to load
    except ImportError:
        raise PortError(missing("pyserial")) from None
    if "://" not in url:
        # exclusive: a second client is refused, and not given every other byte
        options: dict[str, Any] = {"exclusive": True}
    else:
        options = {}
    try:
        return serial.serial_for_url(url, timeout=POLL_S, **options)
    except (OSError, ValueError) as error:
        raise PortError(f"{url} cannot be opened: {_reason(error)}") from error


_REASONS = {
    errno.ENOENT: "there is no such port (is 'token-sim run' running?)",
    errno.EAGAIN: "another client has it open",
    errno.EBUSY: "another client has it open",
    errno.EACCES: "permission denied",
    errno.ENOTTY: "it is not a serial port",
    errno.ECONNREFUSED: "nobody listens there (is 'token-sim run' running?)",
}


def _reason(error: BaseException) -> str:
    for cause in (error, error.__context__):  # pyserial puts some numbers only into its words
        number = getattr(cause, "errno", None) or (cause.args[0] if cause is not None and cause.args else None)
        if number in _REASONS:
            return _REASONS[number]
    if isinstance(error.__context__, OSError) and error.__context__.strerror:  # pyserial's words say the port again
        return error.__context__.strerror.lower()
    return str(error).splitlines()[0].lower()
