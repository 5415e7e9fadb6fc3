"""The terminal of a command: its character set, its colours and its size.

Rules:
- A character outside the stream's encoding becomes an escape, so output never raises UnicodeEncodeError.
- A terminal gets only characters of its character set. The locale's variables name this set, even if the locale is
  missing on the host: Python would then assume UTF-8 (PEP 538, PEP 540). UTF-8 is assumed if no variable is set.
- A terminal gets colour if terminfo lists colours for it, or does not know it. NO_COLOR (no-color.org), TERM=dumb
  and an unset TERM disable colour.
- A dumb terminal gets ASCII in place of half blocks. The Linux console gets ASCII, too, because its fonts on Debian
  lack half blocks.
- The output to a file or pipe has no colour. Its line breaks are independent of any width.
"""

from __future__ import annotations

import codecs
import functools
import io
import locale
import os
import sys
from contextlib import suppress
from typing import NamedTuple, TextIO

_COERCED = "C.UTF-8"  # LC_CTYPE after Python has replaced the locale C (PEP 538)
_COLOURS = 8  # the number of colours that the escape sequences need
_STYLES = {"heading": "1", "good": "32", "error": "1;31", "warning": "33", "note": "36"}


class Size(NamedTuple):
    columns: int
    lines: int


def prepare_output() -> None:
    """Set the encoding of standard output and standard error. Call this function before the first output."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if stream.isatty() and sys.flags.utf8_mode:
            stream.reconfigure(encoding=_charset(stream.encoding))
        stream.reconfigure(errors="backslashreplace")


def _charset(assumed: str) -> str:
    """Return the character set that the locale's variables name, or `assumed` if they name none that
    Python supports."""
    ctype = os.environ.get("LC_CTYPE", "")
    name = os.environ.get("LC_ALL") or (ctype if ctype != _COERCED else "") or os.environ.get("LANG", "")
    if name in ("C", "POSIX"):
        return "ascii"
    with suppress(LookupError):
        return codecs.lookup(locale.normalize(name).partition(".")[2].partition("@")[0]).name
    return assumed


def can_print(text: str) -> bool:
    """Return True if the character set of standard output has all characters of the text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def is_dumb() -> bool:
    """Return True if the terminal supports no escape sequences."""
    return os.environ.get("TERM", "") in ("", "dumb")


def has_half_blocks() -> bool:
    """Return True if the font of the terminal has the half blocks. See `can_print` for the character set."""
    return not is_dumb() and os.environ["TERM"] != "linux"


def has_colour(stream: TextIO) -> bool:
    return stream.isatty() and not is_dumb() and not os.environ.get("NO_COLOR") and _knows_colour(os.environ["TERM"])


@functools.cache
def _knows_colour(term: str) -> bool:
    """Return True if terminfo lists colours for this type of terminal, or if terminfo or its entry is missing."""
    try:
        import curses  # imported here: most output is not to a terminal

        curses.setupterm(term)
    except (ImportError, ValueError, OSError):  # terminfo or standard output is missing
        return True
    except curses.error:  # an unknown type of terminal
        return True
    return curses.tigetnum("colors") >= _COLOURS


def size() -> Size | None:
    """Return the size of the terminal on standard output, or None if the size is unknown."""
    try:
        found = Size(*os.get_terminal_size(sys.stdout.fileno()))
    except (OSError, ValueError):
        return None
    return found if found.columns and found.lines else None


def styled(text: str, style: str) -> str:
    """Return the text in a style of `_STYLES`, or the unchanged text if standard output has no colour."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if has_colour(sys.stdout) else text
