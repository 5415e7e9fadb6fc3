"""new: create a token."""

from __future__ import annotations

import argparse
import os
import sys

from token_sim.cli.command_line import (
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_model,
    model_options,
    print_result,
)
from token_sim.run import words
from token_sim.run.wall_time import now_ms


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "new",
        run,
        "create a token",
        "new fob.token",
        "new fob.token --profile c200 --json",
        "new fob.token --secret-stdin --digits 8 < seed.hex",
    )
    parser.add_argument("file", help="the new token file")
    add_model(parser)
    parser.add_argument("--counter", type=int, default=0, help="the counter of the first code (0)")
    parser.add_argument("--serial", help="the serial number, 12 letters and digits (random)")
    parser.add_argument("--slot2", action="store_true", help="a second seed, for the long touch (yubikey)")
    parser.add_argument("--secret-stdin", action="store_true", help="read the seed, hex or base32, from standard input")


def run(options: argparse.Namespace) -> None:
    from token_sim.device import models
    from token_sim.factory import manufacture
    from token_sim.run import token_file

    profile = models.PROFILES[options.profile]
    if os.path.lexists(options.file):
        raise CommandError(f"{options.file} already exists (choose another name)")
    if options.slot2 and profile.slots < 2:
        raise CommandError(f"--slot2 requires --profile yubikey: a {profile.name} token has one slot", WRONG_USAGE)
    key = _read_seed() if options.secret_stdin else None
    number = int.from_bytes(os.urandom(4), "big") % 10**8
    serial = options.serial or manufacture.serial_number(profile, number)
    try:
        slot = manufacture.new_slot(profile, **model_options(options), key=key)
        made = [manufacture.make(profile, serial, slot, options.counter)]
        if options.slot2:
            slot = manufacture.new_slot(profile, **model_options(options))
            made.append(manufacture.make(profile, serial, slot, 0))
        text = manufacture.token_text(profile, made, now_ms())
    except ValueError as error:
        raise CommandError(str(error), WRONG_USAGE) from error
    token_file.write_durably(options.file, text.encode())
    for token in made:
        is_given = token.slot.key == key  # the user supplied this seed, so `new` does not print it
        print_result(options, token.to_doc(with_seed=not is_given), token.serial if is_given else token.csv())


def _read_seed() -> bytes:
    try:
        return words.seed(sys.stdin.readline())
    except ValueError as error:
        raise CommandError(f"the seed on standard input {error}", WRONG_USAGE) from None
