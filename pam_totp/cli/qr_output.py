"""The display of a token in the commands enroll, replace and qr: a QR code and the key, or a picture.

Rules:
- The command shows the key with the QR code, because some phones cannot scan. The key is beside the QR code if the
  terminal has too few lines.
- A message with the required width replaces the QR code if the terminal is too narrow. The key is still shown.
- A picture file is complete and durable before the command asks for a code.
"""

from __future__ import annotations

import argparse
import socket
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from pam_totp.cli import terminal
from pam_totp.cli.command_line import OUT_OF_REACH, WRONG_USAGE, CommandError
from pam_totp.cli.files_out import NewFile, new_file
from pam_totp.cli.key_output import Write, add_output_option, key_output, writes_file
from pam_totp.cli.printing import json_text
from pam_totp.core.record import Token, TotpToken
from pam_totp.formats import qr
from pam_totp.formats.otpauth import DEFAULT_ISSUER, to_uri
from pam_totp.operations.enroll import grouped_key, warnings
from pam_totp.system.extras import how_to_get

PICTURES = ("png", "svg")
TERMINAL, ASCII, NONE = "terminal", "ascii", "none"
AS_TEXT = (TERMINAL, ASCII)
HOW = "terminal, ascii, png=FILE, svg=FILE or none"
DIALOGUE = 8  # lines to keep free below the QR code for prompts and messages
GAP = 2  # columns between the QR code and the text beside it
LEAST_TEXT = 24  # columns: four groups of the key, and "key: "


def add_issuer_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--issuer",
        default=socket.gethostname() or DEFAULT_ISSUER,
        help="the name that apps show for this site (%(default)s)",
    )


def add_qr_options(parser: argparse.ArgumentParser) -> None:
    add_issuer_option(parser)
    parser.add_argument("--qr", metavar="HOW", help=f"output of the QR code: {HOW}")
    add_output_option(parser, "the key and the QR code as text")


def writes_new_file(args: argparse.Namespace) -> bool:
    """Return True if the command creates a file, which requires the caller's privileges."""
    return writes_file(args) or (args.qr or "").startswith(PICTURES)


def token_uri(token: Token, user: str, issuer: str) -> str:
    """Return the URI without default values, so that the QR code is small."""
    try:
        return to_uri(token, user, issuer, brief=True)
    except ValueError as e:
        raise CommandError(str(e), WRONG_USAGE) from None


def warn_about(token: Token, *, is_scanned: bool) -> None:
    """Warn about a weak key, and about properties that some apps ignore."""
    for warning in warnings(token, is_scanned=is_scanned):
        print(f"pam-totp: warning: {warning}", file=sys.stderr)


class KeyDisplay:
    """The display of one token: a picture, or text with the key and optionally the QR code."""

    def __init__(self, how: str, path: str, args: argparse.Namespace) -> None:
        self.how, self.path = how, path
        self.has_file = writes_file(args)
        self.file = args.output
        self.picture: NewFile | None = None
        self.write: Write | None = None
        self._on_terminal = args.output is None
        self._as_json = args.json

    def show(self, token: Token, uri: str) -> None:
        """Write the picture file or, without --json, the text."""
        if self.picture is not None:
            self.picture.write(qr.picture(uri, self.how))
            print(f"the QR code is in {self.path}", file=sys.stderr)
        elif self.write is not None and not self._as_json:
            self.write(_text(token, uri, self.how, on_terminal=self._on_terminal))
            if self.has_file:
                print(f"the key is in {self.file}", file=sys.stderr)

    def save_json(self, facts: object) -> None:
        """Write the JSON to the file of --output. Call this before the change, so that an error changes nothing."""
        if self._as_json and self.has_file and self.write is not None:
            self.write(json_text(facts))

    def question(self) -> str:
        """Return the question for the first code of a phone app."""
        if self.how == NONE:
            return "Type this key into your authenticator app, then the code it shows: "
        return "Scan this with your authenticator app, then type the code it shows: "


@contextmanager
def key_display(args: argparse.Namespace, default: str, *, has_key: bool = True) -> Iterator[KeyDisplay]:
    """Yield the display that --qr and --output select. Delete its files if the block raises an exception.

    `has_key` is False if the user has entered the key: the JSON and the text under --qr none then omit the key. With
    --json, `show` writes no text, and the caller passes the JSON to `write`.
    """
    how, _, path = (args.qr or default).partition("=")
    if (how in PICTURES) != bool(path) or how not in (*AS_TEXT, NONE, *PICTURES):
        raise CommandError(f"--qr must be {HOW}", WRONG_USAGE)
    try:
        if how in PICTURES or (how in AS_TEXT and not args.json):  # the import takes a third of the time of a command
            qr.load()
    except ImportError:
        if how in PICTURES:
            raise CommandError(f"--qr {how} needs segno ({how_to_get('segno')})", OUT_OF_REACH) from None
    display = KeyDisplay(how, path, args)
    with ExitStack() as stack:
        if how in PICTURES:
            display.picture = stack.enter_context(new_file(path))
        is_shown = has_key if args.json or how == NONE else how in AS_TEXT
        if is_shown:
            display.write = stack.enter_context(key_output(args))
        yield display


def _text(token: Token, uri: str, how: str, *, on_terminal: bool) -> str:
    """Return the key and, if `how` is in AS_TEXT, the QR code."""
    kind = f"every {token.period} seconds" if isinstance(token, TotpToken) else "by counter"
    text = [f"key: {grouped_key(token)}", f"     {token.type}, {kind}, {token.digits} digits, {token.algorithm}"]
    if how not in AS_TEXT:
        return _joined(text)
    try:
        code = _qr_lines(uri, how, on_terminal=on_terminal)
    except ImportError:
        return _joined([*text, f"(no QR code, because segno is missing: {how_to_get('segno')})"])
    size = terminal.size() if on_terminal else None
    if size is None:
        return _joined([*text, *code.lines])
    if code.columns > size.columns:
        what = f"(no QR code: the terminal has {size.columns} columns, and the QR code needs {code.columns}:"
        return _joined([*text, what, " make the terminal wider, or give --qr png=FILE)"])
    if len(text) + len(code.lines) + DIALOGUE <= size.lines:
        return _joined([*text, *code.lines])
    if code.columns + GAP + LEAST_TEXT <= size.columns:
        text = _beside(code, [line for part in text for line in _wrapped(part, size.columns - code.columns - GAP)])
    else:
        text = [*code.lines, *text]
    if len(code.lines) >= size.lines:
        text += [f"(the QR code needs {len(code.lines) + 1} lines: make the terminal higher, or give --qr png=FILE)"]
    return _joined(text)


class _Drawn(NamedTuple):
    lines: list[str]
    columns: int


def _qr_lines(uri: str, how: str, *, on_terminal: bool) -> _Drawn:
    colour = on_terminal and terminal.has_colour(sys.stdout)
    has_blocks = terminal.can_print(qr.BLOCKS) and (terminal.has_half_blocks() or not on_terminal)
    draw = qr.half_blocks if has_blocks and how != ASCII else qr.in_ascii
    return _Drawn(draw(uri, colour=colour), len(draw(uri, colour=False)[0]))


def _beside(code: _Drawn, text: list[str]) -> list[str]:
    """Return the lines of the QR code, with the text at the right of the last lines."""
    first = max(len(code.lines) - len(text), 0)
    right = [""] * first + text
    return [f"{line}{' ' * GAP}{more}" if more else line for line, more in zip(code.lines, right, strict=True)]


def _wrapped(text: str, columns: int) -> list[str]:
    """Return the lines of the text: at most four groups of the key a line if the whole key is too long for one line."""
    if len(text) <= columns:
        return [text]
    width = LEAST_TEXT if text.startswith("key: ") else columns
    return textwrap.wrap(text.strip(), width, initial_indent=text[: -len(text.lstrip())], subsequent_indent=" " * 5)


def _joined(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
