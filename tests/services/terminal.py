"""A dialogue with a program on a terminal, and the log of the machine."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pexpect

from pam_totp.core.settings import NEXT_PROMPT
from tests.support.site import PATIENCE


class Talk:
    """A dialogue with a program on a terminal."""

    def __init__(self, terminal: pexpect.spawn[bytes]) -> None:
        self.terminal = terminal
        self.terminal.delaybeforesend = None  # send without delay, because `asks` waits for the prompt
        self.terminal.ptyproc.delayafterclose = self.terminal.delayafterclose = 0

    def asks(self, prompt: str) -> Talk:
        """Wait for `prompt`. Store the output that precedes the prompt in `before`. Return this dialogue."""
        self.terminal.expect_exact(prompt.encode())
        return self

    @property
    def before(self) -> str:
        """Return the output between the last two prompts."""
        shown: bytes = self.terminal.before or b""
        return shown.decode(errors="surrogateescape")

    def says(self, answer: str | bytes) -> Talk:
        self.terminal.sendline(answer)
        return self

    def fails(self, answer: str | bytes) -> Talk:
        """Give a wrong answer at the first and at the second prompt. Both are one failure. Return this dialogue."""
        return self.says(answer).asks(NEXT_PROMPT).says(answer)

    def presses_ctrl_c(self) -> Talk:
        self.terminal.sendintr()
        return self

    def interrupts(self) -> tuple[int, str]:
        """Press Ctrl-C until the program ends. Return the exit status and the output.

        sudo, su and ssh miss a Ctrl-C that arrives between their prompt and their read.
        """
        give_up = time.monotonic() + PATIENCE
        while self.presses_ctrl_c().terminal.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=1) != 0:
            assert time.monotonic() < give_up, "the program ends after Ctrl-C"
        return self._close()

    def ends(self) -> tuple[int, str]:
        """Wait until the program ends. Answer a second prompt with an empty line. Return exit status and output."""
        shown = ""
        while self.terminal.expect_exact([NEXT_PROMPT.encode(), pexpect.EOF]) == 0:
            shown += self.before
            self.says("")
        status, last = self._close()
        return status, shown + last

    def _close(self) -> tuple[int, str]:
        shown = self.before
        self.terminal.wait()
        status = self.terminal.exitstatus
        self.terminal.close()
        return (-1 if status is None else status), shown

    def hangs_up(self) -> None:
        """Close the terminal."""
        if not self.terminal.closed:
            self.terminal.close(force=True)


class Syslog:
    """The log of the machine, read from its /dev/log."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._path = str(path)
        self._marks = 0
        path.chmod(0o666)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        while datagram := self._socket.recv(65536):
            with self._changed:
                self._lines.append(datagram.decode(errors="surrogateescape"))
                self._changed.notify_all()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._listener.join(PATIENCE)
        self._socket.close()

    def clear(self) -> None:
        self._catch_up()
        with self._changed:
            self._lines.clear()

    def lines(self) -> list[str]:
        self._catch_up()
        with self._changed:
            return list(self._lines)

    def _catch_up(self) -> None:
        """Wait until all lines that were logged before this call have been received."""
        self._marks += 1
        mark = f"mark {self._marks}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.sendto(mark.encode(), self._path)
        self.wait_for(mark)
        with self._changed:
            self._lines.remove(mark)

    def module_lines(self) -> list[str]:
        """Return all lines that pam_totp logged, without the text before `pam_totp(`."""
        return [line[line.index("pam_totp(") :] for line in self.lines() if "pam_totp(" in line]

    def wait_for(self, *words: str) -> str:
        """Wait for a line that contains all of `words`, and return the line."""
        give_up = time.monotonic() + PATIENCE
        with self._changed:
            while True:
                for line in self._lines:
                    if all(word in line for word in words):
                        return line
                if not self._changed.wait(give_up - time.monotonic()):
                    raise AssertionError(f"not logged: {words}; lines: {self._lines}")
