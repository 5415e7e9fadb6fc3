"""fault: inject a fault, or list the faults."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterable

from token_sim.cli import owner
from token_sim.cli.command_line import Commands, add_command, add_owned_token, known, number, print_result
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
        "fault fob.token --clear",
    )
    add_owned_token(parser)
    parser.add_argument(
        "name",
        nargs="?",
        type=known(DESCRIPTIONS, "fault"),
        choices=tuple(str(name) for name in DESCRIPTIONS),
        metavar="FAULT",
        help="the name of a fault (default: list the faults)",
    )
    parser.add_argument(
        "--times", type=number(int, 1), default=1, metavar="N", help="the number of times that the fault happens (1)"
    )
    parser.add_argument("--number", type=int, metavar="N", help="the extent of the fault; the list gives the unit")
    parser.add_argument("--clear", action="store_true", help="undo the fault (default: all faults)")


def run(options: argparse.Namespace) -> None:
    if options.name is None and not options.clear:
        present = owner.ask(options, {"do": "oracle"})["faults"]
        known_faults = {str(name): what for name, what in DESCRIPTIONS.items()}
        print_result(options, {"faults": present, "known": known_faults}, _listed(present))
        return
    request = {"do": "clear" if options.clear else "fault", "name": options.name}
    if not options.clear:
        request |= {"times": options.times, "number": options.number}
    reply = owner.ask(options, request)
    print_result(options, reply, f"faults: {', '.join(reply['faults']) or 'none'}")


def _listed(present: Iterable[str]) -> str:
    """Return the list of faults, wrapped to the terminal's width. `*` marks the faults in `present`."""
    lines = [f"{'*' if name in present else ' '} {name:<20} " for name in DESCRIPTIONS]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    indent = " " * len(lines[0])
    return "\n".join(
        textwrap.fill(what, max(width, 2 * len(start)), initial_indent=start, subsequent_indent=indent)
        for start, what in zip(lines, DESCRIPTIONS.values(), strict=True)
    )
