"""The lines of log files, gzip files and standard input."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from typing import BinaryIO

from pam_totp.cli.command_line import CommandError

_GZIP = b"\x1f\x8b"  # RFC 1952
_MAX_LINE = 65536  # bytes; the lines of pam_totp are shorter


def lines_of(path: str) -> Iterator[str]:
    """Yield the lines of a file; - is standard input. Raise CommandError or OSError."""
    try:
        with ExitStack() as stack:
            file: BinaryIO = sys.stdin.buffer if path == "-" else stack.enter_context(open(path, "rb", 65536))
            if file.peek(2)[:2] == _GZIP:  # type: ignore[attr-defined]
                file = stack.enter_context(gzip.open(file))  # type: ignore[assignment]
            is_rest = False  # of a longer line: its writer could forge the start of a line there
            while line := file.readline(_MAX_LINE):
                is_whole = line.endswith(b"\n") or len(line) < _MAX_LINE
                if is_whole and not is_rest:
                    yield line.decode("ascii", "replace").rstrip("\r\n")
                is_rest = not is_whole
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise CommandError(f"{path}: damaged gzip file; nothing was changed") from None
