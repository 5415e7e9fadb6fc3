"""press: press the button and print the code."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from token_sim.cli.command_line import (
    UNAVAILABLE,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_port,
    number,
    print_result,
)

if TYPE_CHECKING:
    from token_sim.client import Client

MAX_PRESS = 60_000  # milliseconds


def add_to(commands: Commands) -> None:
    examples = ("press --port /tmp/fob", "press --port socket://127.0.0.1:4000 -n 3 --lcd")
    parser = add_command(commands, "press", run, "press the button and print the code", *examples)
    add_code_options(parser, count=1, timeout=60.0)
    parser.add_argument(
        "--ms", type=int, help="the milliseconds for which the button is held (default: the model's value)"
    )


def run(options: argparse.Namespace) -> None:
    if options.ms is not None and not 1 <= options.ms <= MAX_PRESS:
        raise CommandError(f"--ms must be 1 to {MAX_PRESS}", WRONG_USAGE)
    print_codes(options, lambda client: client.press(options.ms))


def add_code_options(parser: argparse.ArgumentParser, *, count: int | None, timeout: float) -> None:
    """Add the options of commands that print `count` codes (None: until an interrupt)."""
    add_port(parser)
    default = "until Ctrl-C" if count is None else count
    parser.add_argument(
        "-n", type=number(int, 1), dest="times", default=count, metavar="N", help=f"number of codes ({default})"
    )
    parser.add_argument(
        "--timeout",
        type=number(float, 0),
        default=timeout,
        metavar="S",
        help="maximum seconds to wait for each code (%(default)g)",
    )
    parser.add_argument(
        "--wait",
        type=number(float, 0),
        default=0.0,
        metavar="S",
        help="maximum seconds to wait for the port to appear (%(default)g)",
    )
    parser.add_argument("--lcd", action="store_true", help="draw the display")


def print_codes(options: argparse.Namespace, next_code: Callable[[Client], str]) -> None:
    """Print the codes that `next_code` returns."""
    from token_sim.client import Client, ClientError, Refused
    from token_sim.device import seven_segment

    left = options.times
    try:
        with Client(options.port, options.timeout, options.wait) as client:
            while left is None or left > 0:
                code = next_code(client)
                drawn = "\n".join(seven_segment.small(seven_segment.light(code))) if options.lcd else ""
                print_result(options, {"code": code}, f"{drawn}\n{code}" if drawn else code)
                left = None if left is None else left - 1
    except Refused as error:
        raise CommandError(str(error)) from error
    except ClientError as error:
        raise CommandError(str(error), UNAVAILABLE) from error
