"""Inputs for fuzz_relay.c. `python -m tests.torture.relay_corpus FOLDER` writes each input to a file with its name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def _text(text: bytes | None) -> bytes:
    if text is None:
        return b"\xff"
    size = len(text) if len(text) % 16 != 15 and len(text) < 255 else 15 + 16 * (len(text) // 256)
    return bytes([size]) + text.ljust(size * 16 if size % 16 == 15 else size, b"x")


def _login(
    *messages: bytes,
    items: Sequence[bytes | None] = (b"sshd", b"alice", b"ssh", b"192.0.2.7", None),
    authtok: bytes | None = b"password",
    arguments: Sequence[bytes] = (b"nodelay",),
    answers: Sequence[bytes | None] = (b"123456",),
) -> bytes:
    """Return a login as bytes: the arguments and items of the host, the user's answers, the messages of the service."""
    host = b"".join(map(_text, items)) + _text(authtok)
    host += bytes([len(arguments)]) + b"".join(map(_text, arguments))
    replies = b"".join(b"\0" if a is None else b"\2" + _text(a) for a in answers)
    replies = replies.ljust(-(-len(replies) // 16) * 16, b"\0")
    said = b"".join(len(m).to_bytes(2, "little") + m for m in messages)
    return host + bytes([len(replies) // 16]) + replies + said


SEEDS = {
    "accepted": _login(b"pOne-time code: ", b"r0"),
    "full": _login(b"f"),
    "full-too-late": _login(b"pOne-time code: ", b"f"),
    "refused": _login(b"pOne-time code: ", b"erefused", b"r7"),
    "echo-and-remark": _login(b"PCode: ", b"irecovery code used, 3 left", b"r0"),
    "first-pass": _login(b"g", b"r0"),
    "forward-pass": _login(b"pBoth: ", b"spassword", b"r0"),
    "no-answer": _login(b"pOne-time code: ", b"r19", answers=(None,)),
    "nothing-set": _login(b"r25", items=(None,) * 5, authtok=None, arguments=()),
    "no-result": _login(b"pOne-time code: "),
    "almost-results": _login(b"i", b"r00"),
    "with-a-nul": _login(b"pA\0B", b"r0"),
    "empty": _login(b"", b"r0"),
    "too-long": _login(b"p" + b"x" * 4096, b"r0"),
    "as-long-as-can-be": _login(b"p" + b"%n" * 2047, b"r0", answers=(b"7" * 512, b"7" * 600)),
    "arguments": _login(b"r3", arguments=(b"socket=none", b"helper=/x/../y", b"secret=~/x", b"socket=x", b"helper=x")),
    "too-much-to-say": _login(b"r3", arguments=(b"prompt=" + b"x" * 3800,) * 8),
    "too-many-turns": _login(*(b"i",) * 64, b"r0"),
}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in SEEDS.items():
        (folder / name).write_bytes(content)
