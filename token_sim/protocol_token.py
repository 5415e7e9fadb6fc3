"""`serial.serial_for_url("token://NAME")`: pyserial finds this module by its name (serial.protocol_handler_packages).

The law: to a program it is a serial port like any other, errors included; only that its waiting takes no time.
"""

from __future__ import annotations

from typing import Any

from serial.serialutil import PortNotOpenError, SerialBase, SerialException

from token_sim.testing import inprocess

FOREVER = 10 * 365 * 86_400_000  # ms: what a read without a timeout waits for at most


class Serial(SerialBase):
    """A port to a token that `inprocess.publish` made known."""

    def open(self) -> None:
        name = str(self.portstr).partition("://")[2].strip("/")
        wire = inprocess.find(name)
        if wire is None or not wire.simulation.plugged:
            raise SerialException(2, f"could not open port token://{name}: there is no such token here")
        if wire.in_use:
            raise SerialException(16, f"could not open port token://{name}: another client has it open")
        wire.in_use = True
        wire.inbox.clear()
        wire.line.reset()
        self._wire = wire
        self.is_open = True

    def close(self) -> None:
        if self.is_open:
            self._wire.in_use = False
            self.is_open = False

    def fileno(self) -> int:
        raise OSError("a token in this process has no file descriptor")

    @property
    def in_waiting(self) -> int:
        return len(self._plugged().inbox)

    @property
    def out_waiting(self) -> int:
        return 0

    def read(self, size: int = 1) -> bytes:
        wire = self._plugged()
        if len(wire.inbox) < size:
            wire.pump(FOREVER if self.timeout is None else int(self.timeout * 1000))
        data = bytes(wire.inbox[:size])
        del wire.inbox[:size]
        return data

    def write(self, data: Any, /) -> int:
        wire = self._plugged()
        wire.simulation.receive(wire.line, bytes(data))
        wire.inbox += wire.simulation.take(wire.line)
        return len(data)

    def flush(self) -> None: ...

    def reset_input_buffer(self) -> None:
        self._plugged().inbox.clear()

    def reset_output_buffer(self) -> None: ...

    def _plugged(self) -> inprocess.Wire:
        if not self.is_open:
            raise PortNotOpenError()
        if not self._wire.simulation.plugged:
            raise SerialException("device reports readiness to read but returned no data (device disconnected?)")
        return self._wire

    # settings and modem lines: taken, and of no effect

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
        return bool(self._plugged().simulation.device.chip.text)

    @property
    def ri(self) -> bool:
        return self._plugged().simulation.device.closed
