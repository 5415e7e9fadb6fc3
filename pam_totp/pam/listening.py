"""Where the service listens: at the socket that systemd passed on, or at one of its own.

The law: a socket of our own is there only once it answers; nobody else's is taken away, and ours goes when we end.
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
    """The service cannot start, or go on; the text says why."""


@contextmanager
def listening(path: str | None) -> Iterator[socket.socket]:
    """The socket that systemd passed on (sd_listen_fds(3)), or one made at `path`, which is gone again afterwards."""
    inherited = _inherited()
    if inherited is not None:
        with inherited:
            yield inherited
        return
    if path is None:
        raise ServiceError("no socket: give --socket PATH, or start it from a systemd socket unit")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with _alone(path):
            _bind(listener, path)
        made = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)  # held: nobody else's gets its inode's number
        try:
            yield listener
        finally:
            with suppress(OSError):
                if os.path.samestat(os.lstat(path), os.fstat(made)):
                    os.unlink(path)
            os.close(made)


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Nobody else makes a socket at `path` meanwhile: of two who find none there, one would take away the other's. The
    lock stays, as one that is deleted locks nobody out who has it open."""
    try:
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise ServiceError(f"{path}.lock: {(e.strerror or '').lower() or e}") from e
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServiceError(f"{path}: another service is starting there") from None
        yield
    finally:
        os.close(lock)


def _bind(listener: socket.socket, path: str) -> None:
    try:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise ServiceError(f"{path}: is there, and is no socket")
            if _is_heard(path):
                raise ServiceError(f"{path}: another service is listening there")
            os.unlink(path)  # left by a service that was killed
        aside = f"{path}.new"
        with suppress(FileNotFoundError):
            os.unlink(aside)
        listener.bind(aside)
        os.chmod(aside, 0o666)  # noqa: S103  anybody may ask: the kernel says who it is
        listener.listen(BACKLOG)
        os.rename(aside, path)  # it is there only once it answers
    except OSError as e:
        raise ServiceError(f"{path}: {(e.strerror or '').lower() or e}") from e


def _is_heard(path: str) -> bool:
    """Whether anybody listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # its queue is full, and we would wait for as long as that lasts
            pass
    return True


def _inherited() -> socket.socket | None:
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    inherited = socket.socket(fileno=LISTEN_FDS_START)
    if inherited.family != socket.AF_UNIX or inherited.type != socket.SOCK_SEQPACKET:
        raise ServiceError("the socket passed on by systemd is not ListenSequentialPacket=")
    return inherited
