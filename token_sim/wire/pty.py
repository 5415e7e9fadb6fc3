"""The interface of a port (transport), and a port on a pseudo-terminal.

Rules:
- A port has one client at a time. The loop resets the line for each new client.
- A port without a client drops its output, as a real port does.
- `Pty` sets the terminal to raw mode before it creates the link, and after each client disconnects.
- A client's exclusive access (TIOCEXCL) ends with the client, as on a real port.
- A forked process closes its copies of the ports. Only its parent removes the links.
- `close` removes the link.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import termios
import tty
import weakref
from collections.abc import Iterator
from typing import Protocol


class Transport(Protocol):
    """A port. `read` and `write` never block. `write` returns the number of accepted bytes.

    `take_new_client` returns True once for each new client. `drop_ended_client` disconnects a client that has ended its
    input, and that has received all output.
    """

    def url(self) -> str: ...

    def descriptors(self) -> list[int]: ...

    def take_new_client(self) -> bool: ...

    def read(self) -> bytes: ...

    def write(self, data: bytes) -> int: ...

    def drop_ended_client(self) -> None: ...

    def plug(self) -> None: ...

    def unplug(self) -> None: ...

    def close(self) -> None: ...


class Pty:
    """A pseudo-terminal, with a stable link to it if a path is given."""

    def __init__(self, link: str | None = None) -> None:
        self._link = None if link is None else os.path.abspath(link)  # valid in every working directory
        self._master: int | None = None
        self._name = ""
        self._has_client = False
        self._is_client_new = False
        _OPEN.add(self)
        self.plug()

    def url(self) -> str:
        return self._link or self._name

    def plug(self) -> None:
        if self._master is not None:
            return
        master, slave = os.openpty()
        try:
            tty.setraw(slave)
            self._raw_settings = termios.tcgetattr(slave)
            os.set_blocking(master, False)
            self._name = os.ttyname(slave)
            if self._link is not None:
                _publish(self._name, self._link)
        except BaseException:
            os.close(master)
            raise
        finally:
            os.close(slave)
        self._master = master

    def unplug(self) -> None:
        """Remove the port's path, as the kernel does for a USB device. A connected client receives an error."""
        if self._master is None:
            return
        if self._link is not None:
            with contextlib.suppress(OSError):
                if os.readlink(self._link) == self._name:
                    os.unlink(self._link)
        os.close(self._master)
        self._master = None
        self._has_client = self._is_client_new = False

    close = unplug

    def abandon(self) -> None:
        """Close this process's copy of the port, so that the parent can disconnect clients. Keep the link."""
        if self._master is not None:
            os.close(self._master)
            self._master = None

    def descriptors(self) -> list[int]:
        """Return the master if it has a client. `poll` would return immediately without a client."""
        self._update_client()
        return [self._master] if self._master is not None and self._has_client else []

    def take_new_client(self) -> bool:
        self._update_client()
        if self._master is not None and not self._has_client:
            self._end_exclusive_access()
        is_new, self._is_client_new = self._is_client_new, False
        return is_new

    def read(self) -> bytes:
        self._update_client()
        if self._master is None or not self._has_client:
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
        self._update_client()
        if self._master is None or not self._has_client:
            return len(data)
        try:
            return os.write(self._master, data)
        except BlockingIOError:
            return 0

    def drop_ended_client(self) -> None:
        """Do nothing: pseudo-terminals lack a half close."""

    def _poll_client(self) -> bool:
        """Return True if the port has a client.

        Unread input counts as a client, because `echo PRESS > port` disconnects directly after its write.
        """
        assert self._master is not None
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        events = sum(events for _, events in poll.poll(0))
        return bool(events & select.POLLIN) or not events & select.POLLHUP

    def _update_client(self) -> None:
        """Detect a new client, and the end of a client."""
        if self._master is None:
            return
        has_client = self._poll_client()
        if has_client and not self._has_client:
            self._is_client_new = True
        elif not has_client:
            self._make_raw()
            if self._has_client:
                self._drop_unread()
        self._has_client = has_client

    def _make_raw(self) -> None:
        """Set the terminal to raw mode again if the last client changed the mode."""
        assert self._master is not None
        if termios.tcgetattr(self._master) != self._raw_settings:
            termios.tcsetattr(self._master, termios.TCSANOW, self._raw_settings)

    def _drop_unread(self) -> None:
        """Drop output that the last client did not read. Only the slave end can drop such output."""
        with contextlib.suppress(OSError, termios.error), self._slave() as slave:
            termios.tcflush(slave, termios.TCIFLUSH)

    def _end_exclusive_access(self) -> None:
        """End the exclusive access of the last client. Only the slave end can end the access.

        Open a new pseudo-terminal if the access also excludes this process. The access never excludes root.
        """
        try:
            with self._slave() as slave:
                fcntl.ioctl(slave, termios.TIOCNXCL)
        except OSError as error:
            if error.errno == errno.EBUSY and not self._poll_client():
                self._renew()

    @contextlib.contextmanager
    def _slave(self) -> Iterator[int]:
        slave = os.open(self._name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        try:
            yield slave
        finally:
            os.close(slave)

    def _renew(self) -> None:
        """Replace the pseudo-terminal. The kernel usually gives the same path to the new pseudo-terminal."""
        assert self._master is not None
        os.close(self._master)
        self._master = None
        with contextlib.suppress(OSError):  # the port stays unplugged after an error
            self.plug()


_OPEN: weakref.WeakSet[Pty] = weakref.WeakSet()


def _abandon_all() -> None:
    for port in _OPEN:
        port.abandon()


os.register_at_fork(after_in_child=_abandon_all)


def _publish(target: str, link: str) -> None:
    """Make `link` point to `target` atomically. Replace a symbolic link, but no other kind of file."""
    if os.path.lexists(link) and not os.path.islink(link):
        raise FileExistsError(errno.EEXIST, "file already exists (choose another path)", link)
    temporary = f"{link}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        os.symlink(target, temporary)
        os.rename(temporary, link)
    except OSError as error:  # the error names the user's link instead of the pseudo-terminal
        raise OSError(error.errno, error.strerror, link) from error
