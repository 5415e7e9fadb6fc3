"""The protocol of the serial line, which turns requests into replies. The module does no input or output.

Rules:
- A request is a line of at most 128 bytes of printable ASCII, ended by CR, LF or both. The session ignores empty lines.
- A reply is `key=value` lines, then exactly one `OK` or `ERR n NAME`. An event is a line that starts with `+`.
- Invalid input, in chunks of any size, does not affect the next line.
- Typed characters never appear inside a reply: the session holds replies until the typing ends.
- No request reads a seed. A request can change only the state that the token's user can also change by hand.
"""

from __future__ import annotations

from collections.abc import Callable

from token_sim import __version__
from token_sim.device.chip import Event
from token_sim.device.states import State
from token_sim.device.token import Device

MAX_REQUEST = 128  # bytes, without the end of the line
LONGEST_PRESS = 60_000  # ms
EOL = b"\r\n"
_BACKSPACES = b"\b\x7f"  # the bytes that terminals send for the Backspace key

ERRORS = {"UNKNOWN": 1, "ARGUMENT": 2, "TOO-LONG": 3, "NOT-TEXT": 4, "BUSY": 5, "DEAD": 6, "BLANK": 7, "IN-USE": 8}


class Refusal(Exception):
    """The refusal of a request. The argument is the name of an error in ERRORS."""


class Session:
    """The device's end of a line. `receive` accepts input, `notify` accepts events, `take_output` returns output."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._errors: list[str] = []
        self._requests: list[str] = []
        self.reset()

    def reset(self) -> None:
        """Drop partial lines and settings, for a new client."""
        self._line = bytearray()
        self._line_error = ""
        self._echo = False
        self._typing = False
        self._held_output = bytearray()
        self._out = bytearray()
        self._errors.clear()

    def receive(self, data: bytes) -> None:
        for byte in data:
            if byte in b"\r\n":
                self._end_line()
            elif byte in _BACKSPACES:
                if self._line and not self._line_error:
                    self._line.pop()
                    self._echo_back(b"\b \b")
            else:
                self._add_byte(byte)

    def notify(self, event: Event) -> None:
        if event.name == "TYPE":
            self._typing = event.text != "\r"
            self._out += event.text.encode()
            if not self._typing:
                self._out += self._held_output
                self._held_output.clear()
        else:
            self._send(f"+{event.name} {event.text}".encode() + EOL)

    def take_output(self) -> bytes:
        """Return the output since the last call."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def take_requests(self) -> list[str]:
        """Return the requests since the last call, for the log."""
        requests, self._requests = self._requests, []
        return requests

    def _add_byte(self, byte: int) -> None:
        if len(self._line) >= MAX_REQUEST:
            self._line_error = "TOO-LONG"
        elif not 0x20 <= byte < 0x7F:
            self._line_error = self._line_error or "NOT-TEXT"
        if not self._line_error:
            self._line.append(byte)
            self._echo_back(bytes((byte,)))

    def _end_line(self) -> None:
        request, line_error = bytes(self._line).decode("ascii").strip(), self._line_error
        self._line.clear()
        self._line_error = ""
        if not request and not line_error:
            return
        self._requests.append(f"({line_error.lower()})" if line_error else request)
        self._echo_back(EOL)
        try:
            if line_error:
                raise Refusal(line_error)
            lines = self._answer(request)
        except Refusal as refusal:
            name = str(refusal)
            self._errors.append(name)
            del self._errors[:-16]
            lines = [f"ERR {ERRORS[name]} {name}"]
        else:
            lines = [*lines, "OK"]
        self._send(b"".join(line.encode() + EOL for line in lines))

    def _answer(self, request: str) -> list[str]:
        verb, *arguments = request.upper().split()
        if verb not in _VERBS:
            raise Refusal("UNKNOWN")
        max_arguments, _, answer = _VERBS[verb]
        if len(arguments) > max_arguments:
            raise Refusal("ARGUMENT")
        return answer(self, arguments)

    def _echo_back(self, data: bytes) -> None:
        if self._echo:
            self._send(data)

    def _send(self, data: bytes) -> None:
        (self._held_output if self._typing else self._out).extend(data)

    # --- one method for each verb

    def _identity(self, _: list[str]) -> list[str]:
        device = self._device
        return ["maker=token_sim", f"model={device.profile.name}", f"serial={device.serial}", f"version={__version__}"]

    def _reset(self, _: list[str]) -> list[str]:
        self._errors.clear()
        self._device.reset()
        return []

    def _self_test(self, _: list[str]) -> list[str]:
        return [f"selftest={'pass' if self._device.is_healthy else 'fail'}", f"state={self._device.state}"]

    def _error(self, _: list[str]) -> list[str]:
        name = self._errors.pop(0) if self._errors else ""
        return [f"error={ERRORS[name]} {name}" if name else "error=0 NONE"]

    def _press(self, arguments: list[str]) -> list[str]:
        ms = None
        if arguments:
            text = arguments[0]
            if not (text.isdigit() and len(text) <= 5 and 1 <= int(text) <= LONGEST_PRESS):
                raise Refusal("ARGUMENT")
            ms = int(text)
        if self._device.state is State.DEAD:
            raise Refusal("DEAD")
        if self._device.state in (State.BLANK, State.ZEROISED):
            raise Refusal("BLANK")
        if self._device.is_busy:
            raise Refusal("BUSY")
        self._device.press(ms)
        return []

    def _display(self, _: list[str]) -> list[str]:
        return [f"text={self._device.visible_text()}"]

    def _battery(self, _: list[str]) -> list[str]:
        hardware = self._device.hardware
        state = "DEAD" if self._device.state is State.DEAD else "LOW" if hardware.is_battery_low else "OK"
        return [f"level={hardware.battery_level}", f"state={state}"]

    def _help(self, _: list[str]) -> list[str]:
        return [f"{verb}={what}" for verb, (_, what, _) in _VERBS.items()]

    def _set_echo(self, arguments: list[str]) -> list[str]:
        if arguments not in (["ON"], ["OFF"]):
            raise Refusal("ARGUMENT")
        self._echo = arguments == ["ON"]
        return []


_VERBS: dict[str, tuple[int, str, Callable[[Session, list[str]], list[str]]]] = {
    # verb: (maximum number of arguments, text of HELP, method)
    "*IDN?": (0, "maker, model, serial number and version", Session._identity),
    "*RST": (0, "remove the battery and put it back", Session._reset),
    "*TST?": (0, "self-test", Session._self_test),
    "SYST:ERR?": (0, "the oldest unread error", Session._error),
    "PRESS": (1, "press the button (argument: milliseconds)", Session._press),
    "DISP?": (0, "the text on the display", Session._display),
    "BATT?": (0, "level and state of the battery", Session._battery),
    "HELP": (0, "this list", Session._help),
    "ECHO": (1, "ON or OFF: send typed characters back", Session._set_echo),
}
