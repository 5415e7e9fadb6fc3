"""The output of keys and recovery codes: a terminal, a new file, or standard output that the user names.

Rules:
- A key is printed on a terminal, or written to a new file of mode 0600 (`--output FILE`).
- A pipe or a redirected file requires `--output -`, because other accounts may read such output.
- The command checks the destination before it asks a question or makes a change.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pam_totp.cli.command_line import WRONG_USAGE, CommandError
from pam_totp.cli.files_out import new_file

STANDARD_OUTPUT = "-"

Write = Callable[[str | bytes], None]  # writes and flushes the whole output; bytes are the content of a file


def add_output_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--output",
        metavar="FILE",
        help=f"write {what} to this new file, or with - to standard output, also if it is not a terminal",
    )


def writes_file(args: argparse.Namespace) -> bool:
    return args.output not in (None, STANDARD_OUTPUT)


def require_destination(args: argparse.Namespace) -> None:
    """Raise CommandError if standard output is not a terminal, and --output is missing."""
    if args.output is None and not sys.stdout.isatty():
        what = "keys and codes are printed only on a terminal; nothing was changed"
        raise CommandError(f"{what} (omit the pipe, or add '--output FILE', or '--output -' for the pipe)", WRONG_USAGE)


@contextmanager
def key_output(args: argparse.Namespace) -> Iterator[Write]:
    """Yield a function that writes keys to the destination of --output. The caller calls the function at most once.

    Delete the new file if the block raises an exception.
    """
    require_destination(args)
    if not writes_file(args):
        yield _write_to_standard_output
        return
    with new_file(args.output) as file:
        yield lambda data: file.write(data if isinstance(data, bytes) else data.encode("utf-8", "surrogateescape"))


def _write_to_standard_output(data: str | bytes) -> None:
    if isinstance(data, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.flush()
    else:
        print(data, end="", flush=True)
