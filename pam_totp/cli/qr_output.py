"""The display of a token in the commands enroll and qr: a QR code on the terminal, a PNG or SVG file, or nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pam_totp.cli.command_line import OUT_OF_REACH, WRONG_USAGE, CommandError
from pam_totp.cli.files_out import new_file
from pam_totp.core.record import Token, TotpToken
from pam_totp.formats import qr
from pam_totp.formats.otpauth import DEFAULT_ISSUER, to_uri
from pam_totp.operations.enroll import grouped_key, warnings
from pam_totp.system.extras import how_to_get

PICTURES = ("png", "svg")

ShowToken = Callable[[Token, str], None]  # arguments: the token and its URI


def add_qr_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--issuer", default=DEFAULT_ISSUER, help="the name that apps show for this site (%(default)s)")
    parser.add_argument("--qr", metavar="HOW", help="destination of the QR code: terminal, png=FILE, svg=FILE or none")


def writes_picture(args: argparse.Namespace) -> bool:
    return (args.qr or "").startswith(PICTURES)


def token_uri(token: Token, user: str, issuer: str) -> str:
    try:
        return to_uri(token, user, issuer)
    except ValueError as e:
        raise CommandError(str(e), WRONG_USAGE) from None


def warn_about(token: Token, *, scanned: bool) -> None:
    """Warn about a weak key, and about properties that some apps ignore."""
    for warning in warnings(token, scanned=scanned):
        print(f"pam-totp: warning: {warning}", file=sys.stderr)


@contextmanager
def qr_output(args: argparse.Namespace, default: str) -> Iterator[ShowToken]:
    """Yield a function that shows a token as --qr selects. Delete the picture if the block raises an exception."""
    how, _, path = (args.qr or default).partition("=")
    if (how in PICTURES) != bool(path) or how not in ("terminal", "none", *PICTURES):
        raise CommandError("--qr must be terminal, png=FILE, svg=FILE or none", WRONG_USAGE)
    if how == "none" or (how == "terminal" and args.json):
        yield lambda token, uri: None
        return
    try:
        qr.load()
    except ImportError:
        if how != "terminal":
            raise CommandError(f"--qr {how} needs segno ({how_to_get('segno')})", OUT_OF_REACH) from None
    if how == "terminal":
        yield _print_token
        return
    with new_file(path) as file:
        yield lambda token, uri: file.write(qr.picture(uri, how))


def _print_token(token: Token, uri: str) -> None:
    """Print the key, then the QR code: on a terminal of 80 × 24, the QR code and the next prompt fill the screen."""
    kind = f"every {token.period} seconds" if isinstance(token, TotpToken) else "by counter"
    print(f"key: {grouped_key(token)}\n     {token.type}, {kind}, {token.digits} digits, {token.algorithm}")
    try:
        print(qr.terminal(uri, colour=sys.stdout.isatty()), end="", flush=True)
    except ImportError:
        print(f"(no QR code, because segno is missing: {how_to_get('segno')})")
