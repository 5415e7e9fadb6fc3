"""advance: advance the token's time at once."""

from __future__ import annotations

import argparse

from token_sim.cli import owner
from token_sim.cli.command_line import (
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_owned_token,
    print_reply,
)


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "advance",
        run,
        "advance the token's time at once",
        "advance fob.token 24h",
        "advance fob.token 90d --temp 35",
        "advance fob.token 2w --only-token",
    )
    add_owned_token(parser)
    parser.add_argument("by", metavar="time", help="the time to pass, such as 90d, 36h, 1h30m or 250ms")
    parser.add_argument("--temp", type=int, default=25, help="the temperature in degrees Celsius (25)")
    parser.add_argument("--only-token", action="store_true", help="advance only the token's clock, not the true time")


def run(options: argparse.Namespace) -> None:
    from token_sim.run.wall_time import parse_span

    try:
        parse_span(options.by)
    except ValueError as error:
        raise CommandError(str(error), WRONG_USAGE) from error
    request = {"do": "advance", "by": options.by, "temp": options.temp, "only_token": options.only_token}
    print_reply(options, owner.ask(options, request))
