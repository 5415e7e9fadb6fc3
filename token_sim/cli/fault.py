"""fault: inject a fault, or list the faults."""

from __future__ import annotations

import argparse

from token_sim.cli import owner
from token_sim.cli.command_line import Commands, add_command, add_owned_token, print_result
from token_sim.device.faults import DESCRIPTIONS


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "fault",
        run,
        "inject a fault, or list the faults",
        "fault fob.token",
        "fault fob.token torn-write",
        "fault fob.token line-noise --number 10",
        "fault fob.token stuck-button --clear",
    )
    add_owned_token(parser)
    parser.add_argument(
        "name",
        nargs="?",
        choices=tuple(str(name) for name in DESCRIPTIONS),
        metavar="FAULT",
        help="the name of a fault (default: list the faults)",
    )
    parser.add_argument(
        "--times", type=int, default=1, metavar="N", help="the number of times that the fault happens (1)"
    )
    parser.add_argument("--number", type=int, metavar="N", help="the extent of the fault; the list gives the unit")
    parser.add_argument("--clear", action="store_true", help="undo the fault")


def run(options: argparse.Namespace) -> None:
    if options.name is None:
        armed = owner.ask(options, {"do": "oracle"})["faults"]
        lines = (f"{'*' if name in armed else ' '} {name:<20} {what}" for name, what in DESCRIPTIONS.items())
        known = {str(name): what for name, what in DESCRIPTIONS.items()}
        print_result(options, {"faults": armed, "known": known}, "\n".join(lines))
        return
    request = {"do": "clear" if options.clear else "fault", "name": options.name}
    if not options.clear:
        request |= {"times": options.times, "number": options.number}
    reply = owner.ask(options, request)
    print_result(options, reply, f"armed: {', '.join(reply['faults']) or 'none'}")
