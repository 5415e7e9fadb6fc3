"""The port behind `serial.serial_for_url("token://NAME")`.

pyserial finds this module by its name, because `token_sim` is listed in `serial.protocol_handler_packages`.

Rules:
- The port behaves like pyserial's other ports, and raises the same errors.
- Time is virtual: a read advances the token's time, and returns without delay.
"""

from __future__ import annotations

from typing import Any

from serial.serialutil import PortNotOpenError, SerialBase, SerialException

from token_sim.testing import inprocess

FOREVER = 10 * 365 * 86_400_000  # ms: the maximum wait of a read without a timeout


class Serial(SerialBase):
    """A port to a token that `inprocess.publish` has published."""

    def open(self) -> None:
        name = str(self.portstr).partition("://")[2].strip("/")
        token = inprocess.find(name)
        if token is None or not token.simulation.is_plugged:
            raise SerialException(2, f"could not open port token://{name}: token not found in this process")
        if token.is_open:
            raise SerialException(16, f"could not open port token://{name}: another client uses the port")
        token.is_open = True
        token.inbox.clear()
        token.line.reset()
        self._token = token
        self.is_open = True

    def close(self) -> None:
        if self.is_open:
            self._token.is_open = False
            self.is_open = False

    def fileno(self) -> int:
        raise OSError("a token in this process has no file descriptor")

    @property
    def in_waiting(self) -> int:
        return len(self._plugged_token().inbox)

    @property
    def out_waiting(self) -> int:
        return 0

    def read(self, size: int = 1) -> bytes:
        token = self._plugged_token()
        if len(token.inbox) < size:
            token.advance(FOREVER if self.timeout is None else int(self.timeout * 1000))
        data = bytes(token.inbox[:size])
        del token.inbox[:size]
        return data

    def write(self, data: Any, /) -> int:
        token = self._plugged_token()
        token.simulation.receive(token.line, bytes(data))
        token.inbox += token.simulation.take_output(token.line)
        return len(data)

    def flush(self) -> None: ...

    def reset_input_buffer(self) -> None:
        self._plugged_token().inbox.clear()

    def reset_output_buffer(self) -> None: ...

    def _plugged_token(self) -> inprocess.PublishedToken:
        if not self.is_open:
            raise PortNotOpenError()
        if not self._token.simulation.is_plugged:
            # the message of pyserial's ports after a disconnect
            raise SerialException("device reports readiness to read but returned no data (device disconnected?)")
        return self._token

    # Baud rate, DTR, RTS and break are accepted, and have no effect.

    def _reconfigure_port(self) -> None: ...

    def _update_dtr_state(self) -> None: ...

    def _update_rts_state(self) -> None: ...

    def _update_break_state(self) -> None: ...

    @property
    def cts(self) -> bool:
        return True

    @property
    def dsr(self) -> bool:
        return True

    @property
    def cd(self) -> bool:
        return bool(self._plugged_token().simulation.device.chip.text)

    @property
    def ri(self) -> bool:
        return self._plugged_token().simulation.device.is_button_closed
