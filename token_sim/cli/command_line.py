"""Shared parts of the command modules: exit statuses, the error with a message for the user, and arguments.

Rules:
- A command module has `add_to`, which adds a parser for each of its commands. The function of a command returns the
  exit status, or None for DONE.
- A command imports third-party packages only when it runs.
- Seeds and keys are read from standard input, never from an argument.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

from token_sim.device.models import PROFILES
from token_sim.run.words import choose

DONE, REFUSED, WRONG_USAGE, UNAVAILABLE = range(4)
PORT_VARIABLE = "TOKEN_SIM_PORT"

Commands = Any  # argparse's type of subparsers is private


class CommandError(Exception):
    """An error that ends the command. It has the message for the user and the exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        super().__init__(message)
        self.status = status


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    summary: str,
    *examples: str,
) -> argparse.ArgumentParser:
    """Add the parser of the command `name`, and return it. The function of the command is `run`."""
    lines = "\n".join(f"  token-sim {example}" for example in examples)
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=f"examples:\n{lines}"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, one document per line")
    parser.set_defaults(run=run)
    return parser


def known(names: Iterable[str], what: str) -> Callable[[str], str]:
    """Return an argparse type for one of `names`, in upper or lower case. The type's error suggests a name."""

    def name(text: str) -> str:
        try:
            return choose(text, names, what)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return name


def number(kind: type[int] | type[float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """Return an argparse type for a number of type `kind` from `least` to `most`."""
    limits = f"{least} or more" if most == math.inf else f"{least} to {most}"

    def parsed(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            raise argparse.ArgumentTypeError(f"must be {'an integer, ' if kind is int else ''}{limits}")
        return value

    return parsed


def add_port(parser: argparse.ArgumentParser) -> None:
    """Add the option --port, for commands that use the port of a running token."""
    default = os.environ.get(PORT_VARIABLE)
    parser.add_argument(
        "--port", type=_port, default=default, help=f"the port: a path or a pyserial URL (${PORT_VARIABLE})"
    )


def _port(text: str) -> str:
    from token_sim.client import check_url

    try:
        return check_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_control(parser: argparse.ArgumentParser) -> None:
    """Add the option --control."""
    parser.add_argument("--control", metavar="PATH", help="the owner's socket (FILE.control)")


def add_owned_token(parser: argparse.ArgumentParser) -> None:
    """Add the argument `file` and the option --control, for commands of the token's owner."""
    parser.add_argument("file", help="the token file")
    add_control(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the option --profile for the model of new tokens, and the options that override the model's values."""
    models = ", ".join(f"{name} ({profile.title})" for name, profile in PROFILES.items())
    parser.add_argument(
        "--profile", type=known(PROFILES, "model"), choices=tuple(PROFILES), default="generic", metavar="MODEL",
        help=models,
    )  # fmt: skip
    types, hashes = ("hotp", "totp"), ("SHA1", "SHA256", "SHA512")
    parser.add_argument(
        "--type", type=known(types, "type"), choices=types, dest="kind", help="the type: hotp (counter) or totp (clock)"
    )
    parser.add_argument("--digits", type=int, choices=(6, 7, 8), help="the number of digits of a code")
    parser.add_argument("--algorithm", type=known(hashes, "algorithm"), choices=hashes, help="the hash function")
    parser.add_argument("--period", type=int, help="the period of a TOTP token, in seconds")


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that override the model's values. None selects the model's value."""
    return {name: getattr(options, name) for name in ("kind", "digits", "algorithm", "period")}


def print_result(options: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    """Print `document` if --json was given, otherwise `text`."""
    print(json.dumps(document) if options.json else text, flush=True)


def print_reply(options: argparse.Namespace, reply: dict[str, Any]) -> None:
    """Print `reply`, a reply of the token: JSON if --json was given, otherwise one `key=value` per line."""
    if options.json or reply:
        lines = (f"{key}={'' if value is None else value}" for key, value in reply.items())
        print_result(options, reply, "\n".join(lines))
