"""Output to a terminal of any encoding, which the user can close at any time.

Rules:
- A character that the terminal's encoding lacks becomes one ASCII character, so that drawings keep their shape.
- A path that is not valid in the terminal's encoding is written as its own bytes.
- `Terminal` drops the output after the terminal is closed, and the interface ends.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_HANDLER = "token_sim"  # the name of the error handler
ASCII = str.maketrans(
    "×·°²±§●…–→—━─│┃╭╮╰╯┌┐└┘├┤█░▒▓▌▐▎▊▁▂▃▄▅▆▇▔",
    "x.o2+s*.->--" + "-||" + "++++++++++" + "#.:##|||_____##-",
)


def use_plain_characters() -> None:
    """Configure standard output and standard error to replace characters that their encodings lack."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test can replace the streams
            plain_characters(stream)


def plain_characters(stream: io.TextIOWrapper) -> None:
    """Configure a stream to replace characters that its encoding lacks."""
    codecs.register_error(_HANDLER, _replace)
    stream.reconfigure(errors=_HANDLER)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    try:
        return os.fsencode(wrong) if all("\udc80" <= c <= "\udcff" for c in wrong) else _plain(wrong), error.end
    except UnicodeError:
        return "?" * len(wrong), error.end


def _plain(text: str) -> str:
    return "".join(c if c.isascii() else "?" for c in text.translate(ASCII))


class Terminal:
    """A terminal that textual draws on. `is_gone` is True after a failed write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.is_gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Any) -> None:
        """Drop the output if the terminal is closed, because an error would end textual's thread and block the
        app."""
        try:
            action()
        except OSError:
            self.is_gone = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # redirected, so that a flush of the stream succeeds
            os.close(nowhere)


@contextmanager
def drawing() -> Iterator[Terminal]:
    """Yield the terminal at standard error, on which textual draws in this context."""
    before, terminal = sys.__stderr__, Terminal(sys.__stderr__)
    sys.__stderr__ = cast(Any, terminal)  # type: ignore[misc]
    try:
        yield terminal
    finally:
        sys.__stderr__ = before  # type: ignore[misc]
