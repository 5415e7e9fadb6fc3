"""Probes of a service or a helper: a hello packet with an unknown version, which must be refused.

Rules:
- The process refuses the unknown version before it reads a record, so every record is unchanged.
- Only a refusal in the relay's own protocol counts as an answer.
"""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from enum import StrEnum

_HELLO = b"Hversion=0\0service=doctor\0user=nobody"
_REFUSAL = b"r3"  # PAM_SERVICE_ERR, for an unknown version
_WAIT = 5.0  # seconds to wait for an answer: a helper starts an interpreter first


class Code(StrEnum):
    """The reason why a probe got no valid answer."""

    NOT_LISTENING = "not-listening"
    NOT_STARTED = "not-started"
    NO_ANSWER = "no-answer"
    CLOSED = "closed"
    INVALID_ANSWER = "invalid-answer"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of a service or helper: a code for programs, and a text for users."""

    code: Code
    text: str


def service(path: str) -> Problem | None:
    """Probe the service that listens at `path`. Return the problem, or None if the service answers.

    Raise FileNotFoundError if there is no socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(_WAIT)
        try:
            channel.connect(path)
        except FileNotFoundError:
            raise
        except OSError as e:
            return Problem(Code.NOT_LISTENING, f"no process is listening on this socket ({_reason(e)})")
        return _exchange(channel)


def helper(interpreter: str, path: str) -> Problem | None:
    """Start the helper `path` as the relay does, and probe it. Return the problem, or None if the helper answers."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stderr = os.memfd_create("stderr")
    with near, far, open(stderr, "rb") as output:
        near.settimeout(_WAIT)
        actions = (
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, stderr, 2),
            (os.POSIX_SPAWN_DUP2, far.fileno(), 3),
        )
        try:
            child = os.posix_spawn(interpreter, [interpreter, "-I", "-S", path], {}, file_actions=actions)
        except OSError as e:
            return Problem(Code.NOT_STARTED, f"the helper cannot be started: {_reason(e)}")
        far.close()
        try:
            problem = _exchange(near)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        output.seek(0)
        last_line = output.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
    if problem is None or not last_line:
        return problem
    return Problem(problem.code, f"{problem.text} ({last_line})")


def _exchange(channel: socket.socket) -> Problem | None:
    try:
        channel.send(_HELLO, socket.MSG_NOSIGNAL)
        answer = channel.recv(4096)
    except TimeoutError:
        return Problem(Code.NO_ANSWER, f"the process did not answer within {_WAIT:g} s")
    except OSError as e:
        return Problem(Code.CLOSED, f"the process closed the connection ({_reason(e)})")
    if answer == _REFUSAL:
        return None
    if answer:
        return Problem(Code.INVALID_ANSWER, "the process sent an answer outside the protocol")
    return Problem(Code.CLOSED, "the process closed the connection")


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
