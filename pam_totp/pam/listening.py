"""The service's listening socket, from systemd or from this module.

Rules:
1. A new socket appears at its path only after the service listens on it.
2. A service never unlinks the socket of another running service.
3. At the end, the service unlinks its socket, unless another socket has replaced it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

BACKLOG = 512
LISTEN_FDS_START = 3  # sd_listen_fds(3)


class ServiceError(Exception):
    """The error of a service that cannot start or continue. The text states the reason."""


@contextmanager
def listening(path: str | None) -> Iterator[socket.socket]:
    """Yield the socket from systemd (sd_listen_fds(3)), or a new socket at `path`. Unlink the new socket at the end."""
    inherited = _inherited()
    if inherited is not None:
        with inherited:
            yield inherited
        return
    if path is None:
        raise ServiceError("missing socket (give --socket PATH, or start the service from a systemd socket unit)")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with _locked(path):
            _bind(listener, path)
        # The kernel does not reuse the socket's inode number while this descriptor is open.
        made = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield listener
        finally:
            with suppress(OSError):
                if os.path.samestat(os.lstat(path), os.fstat(made)):
                    os.unlink(path)
            os.close(made)


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the lock of `path`. Otherwise, two services that start at once could unlink each other's socket.

    Never delete the lock file. Otherwise, two processes could lock different files at the same path.
    """
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise ServiceError(f"{path}.lock: {(e.strerror or '').lower() or e}") from e
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(f"{path}: another service is starting at this path") from None
        yield
    finally:
        os.close(lock)


def _bind(listener: socket.socket, path: str) -> None:
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise ServiceError(f"{path}: must be a socket (delete the file, or give another path)")
            if _has_listener(path):
                raise ServiceError(f"{path}: another service is listening at this path")
            os.unlink(path)  # the socket of a killed service
        temporary = f"{path}.new"
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        listener.bind(temporary)
        os.chmod(temporary, 0o666)  # noqa: S103  any account may connect: see `admission`
        listener.listen(BACKLOG)
        os.rename(temporary, path)  # rule 1
    except OSError as e:
        raise ServiceError(f"{path}: {(e.strerror or '').lower() or e}") from e


def _has_listener(path: str) -> bool:
    """Return True if a process listens at the socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # the listener's queue is full
            pass
    return True


def _inherited() -> socket.socket | None:
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    inherited = socket.socket(fileno=LISTEN_FDS_START)
    if inherited.family != socket.AF_UNIX or inherited.type != socket.SOCK_SEQPACKET:
        raise ServiceError("the socket from systemd must be configured by ListenSequentialPacket=")
    return inherited
