"""term: talk to the token in pyserial's miniterm."""

from __future__ import annotations

import argparse
import sys

from token_sim.cli.command_line import UNAVAILABLE, CommandError, Commands, add_command, add_port


def add_to(commands: Commands) -> None:
    add_port(add_command(commands, "term", run, "talk to the token in pyserial's miniterm", "term --port /tmp/fob"))


def run(options: argparse.Namespace) -> None:
    from token_sim.client import Client, ClientError

    try:
        Client(options.port).close()  # check the port first, because Client's messages are clearer than miniterm's
    except ClientError as error:
        raise CommandError(str(error), UNAVAILABLE) from error
    from serial.tools import miniterm

    sys.argv = ["miniterm", "--echo", options.port, "9600"]
    miniterm.main()
