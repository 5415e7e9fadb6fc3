"""Asking a service, or a helper, whether it is there: a hello of a version that nobody speaks, and its refusal.

The law: a probe names no user, uses up no code and is not counted; only the answer of our own protocol is a yes.
"""

from __future__ import annotations

import os
import signal
import socket

_HELLO = b"Hversion=0\0service=doctor\0user=nobody"
_REFUSAL = b"r3"  # PAM_SERVICE_ERR, for an unknown version
_WAIT = 5.0  # seconds: an interpreter has to start


def service(path: str) -> str | None:
    """What is wrong with the service that listens at `path`; None where it answers. Raises FileNotFoundError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(_WAIT)
        try:
            channel.connect(path)
        except FileNotFoundError:
            raise
        except OSError as e:
            return f"nobody listens ({(e.strerror or str(e)).lower()})"
        return _asked(channel)


def helper(interpreter: str, path: str) -> str | None:
    """What is wrong with the helper, started as the relay does; None where it answers."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    complaints = os.memfd_create("complaints")
    with ours, its, open(complaints, "rb") as said:
        ours.settimeout(_WAIT)
        actions = (
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, complaints, 2),
            (os.POSIX_SPAWN_DUP2, its.fileno(), 3),
        )
        try:
            child = os.posix_spawn(interpreter, [interpreter, "-I", "-S", path], {}, file_actions=actions)
        except OSError as e:
            return f"cannot be started: {(e.strerror or str(e)).lower()}"
        its.close()
        try:
            wrong = _asked(ours)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        said.seek(0)
        last = said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
    return f"{wrong} ({last})" if wrong is not None and last else wrong


def _asked(channel: socket.socket) -> str | None:
    try:
        channel.send(_HELLO, socket.MSG_NOSIGNAL)
        answer = channel.recv(4096)
    except TimeoutError:
        return f"gives no answer within {_WAIT:g} s"
    except OSError as e:
        return f"hangs up ({(e.strerror or str(e)).lower()})"
    return None if answer == _REFUSAL else "gives an answer that is not in the protocol" if answer else "hangs up"
