"""Where a line comes out (transports), and the first kind: a pseudo-terminal.

The law:
- one client at a time; a new one meets a fresh line, and what was meant for nobody is dropped, as on a real port;
- a pseudo-terminal is raw before its path is published, and whenever a client leaves;
- what was published (a link) is gone after `close`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import termios
import tty
from typing import Protocol


class Transport(Protocol):
    """One port. `read` and `write` never block; `write` says how much it took; `fresh` tells once of a new client."""

    def url(self) -> str: ...

    def descriptors(self) -> list[int]: ...

    def fresh(self) -> bool: ...

    def read(self) -> bytes: ...

    def write(self, data: bytes) -> int: ...

    def plug(self) -> None: ...

    def unplug(self) -> None: ...

    def close(self) -> None: ...


class Pty:
    """A pseudo-terminal, with a stable link to it if a path is given."""

    def __init__(self, link: str | None = None) -> None:
        self._link = link
        self._master: int | None = None
        self._name = ""
        self._client = False
        self._fresh = False
        self.plug()

    def url(self) -> str:
        return self._link or self._name

    def plug(self) -> None:
        if self._master is not None:
            return
        master, slave = os.openpty()
        tty.setraw(slave)
        self._raw = termios.tcgetattr(slave)
        os.set_blocking(master, False)
        self._name = os.ttyname(slave)
        os.close(slave)
        self._master = master
        if self._link is not None:
            _publish(self._name, self._link)

    def unplug(self) -> None:
        """Go away as a USB device does: the path is gone, and who has it open reads an error."""
        if self._master is None:
            return
        if self._link is not None:
            with contextlib.suppress(OSError):
                if os.readlink(self._link) == self._name:
                    os.unlink(self._link)
        os.close(self._master)
        self._master = None
        self._client = self._fresh = False

    close = unplug

    def descriptors(self) -> list[int]:
        """The master, but only with a client: without one it is always ready, with a hang-up."""
        self._look()
        return [self._master] if self._master is not None and self._client else []

    def fresh(self) -> bool:
        self._look()
        fresh, self._fresh = self._fresh, False
        return fresh

    def read(self) -> bytes:
        self._look()
        if self._master is None or not self._client:
            return b""
        try:
            return os.read(self._master, 4096)
        except BlockingIOError:
            return b""
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return b""

    def write(self, data: bytes) -> int:
        self._look()
        if self._master is None or not self._client:
            return len(data)
        try:
            return os.write(self._master, data)
        except BlockingIOError:
            return 0

    def _look(self) -> None:
        """Notice a client that came or went. What one left behind (`echo PRESS > port`) counts as a client too."""
        if self._master is None:
            return
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        events = sum(events for _, events in poll.poll(0))
        client = bool(events & select.POLLIN) or not events & select.POLLHUP
        if client and not self._client:
            self._fresh = True
        elif not client:
            self._make_raw()
            if self._client:
                self._drop_unread()
        self._client = client

    def _make_raw(self) -> None:
        """Undo what the last client set, however short it was there."""
        assert self._master is not None
        if termios.tcgetattr(self._master) != self._raw:
            termios.tcsetattr(self._master, termios.TCSANOW, self._raw)

    def _drop_unread(self) -> None:
        """What the client that left has not read is not for the next one. Only the other end can say so."""
        with contextlib.suppress(OSError, termios.error):
            slave = os.open(self._name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            try:
                termios.tcflush(slave, termios.TCIFLUSH)
            finally:
                os.close(slave)


def _publish(target: str, link: str) -> None:
    """Make `link` point to `target` at once, over a link that was left behind, but never over anything else."""
    if os.path.lexists(link) and not os.path.islink(link):
        raise FileExistsError(errno.EEXIST, "is in the way", link)
    aside = f"{link}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        os.symlink(target, aside)
        os.rename(aside, link)
    except OSError as error:  # symlink's own names the pseudo-terminal, and the path is what can be chosen
        raise OSError(error.errno, error.strerror, link) from error
