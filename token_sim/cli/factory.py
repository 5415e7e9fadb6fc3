"""factory: create many tokens, and seed files like those of a vendor."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from token_sim.cli.command_line import (
    UNAVAILABLE,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_model,
    model_options,
    print_result,
)
from token_sim.run.wall_time import now_ms

MAX_SERIAL = 10**8 - 1  # 8 digits
TRANSPORT_KEY = 16  # bytes

Files = dict[str, bytes]  # content by name


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "factory",
        run,
        "create many tokens, and a seed file like that of a vendor",
        "factory --count 1000 --profile c100 --out batch",
        "factory --count 10 --out batch --seeds pskc-aes",
    )
    parser.add_argument("--count", type=int, default=1, help="the number of tokens (1)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the new files (required)")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first serial number (1)")
    parser.add_argument(
        "--seeds", action="append", choices=tuple(SEED_FILES), help="a format of the seed file; may be repeated (csv)"
    )
    parser.add_argument(
        "--key-stdin",
        action="store_true",
        help="read the transport key of pskc-aes (32 hex digits) from standard input",
    )
    add_model(parser)


def run(options: argparse.Namespace) -> None:
    from token_sim.device import models
    from token_sim.factory import manufacture, seed_files
    from token_sim.run import token_file

    profile = models.PROFILES[options.profile]
    last = options.first + options.count - 1
    if options.count < 1 or options.first < 0 or last > MAX_SERIAL:
        raise CommandError(f"--count must be 1 or more, and serial numbers must be 0 to {MAX_SERIAL}", WRONG_USAGE)
    key = _read_transport_key() if options.key_stdin else None
    try:
        tokens = manufacture.batch(profile, options.count, options.first, **model_options(options))
        formats = list(dict.fromkeys(options.seeds or ["csv"]))
        files = {name: data for form in formats for name, data in SEED_FILES[form](tokens, key).items()}
        paths = manufacture.write_batch(options.out, profile, tokens, now_ms())
    except ValueError as error:
        raise CommandError(str(error), WRONG_USAGE) from error
    except FileExistsError as error:
        raise CommandError(f"{error.filename} already exists (choose another --first or --out)") from error
    except seed_files.MissingPskc as error:
        raise CommandError(str(error), UNAVAILABLE) from error
    for name, data in files.items():
        token_file.write_durably(os.path.join(options.out, name), data)
    names = [os.path.join(options.out, name) for name in files]
    print_result(options, {"tokens": paths, "seeds": names}, "\n".join([*paths, *names]))


def _csv(tokens: list[Any], _: bytes | None) -> Files:
    from token_sim.factory import manufacture

    return {"seeds.csv": manufacture.csv_seeds(tokens).encode()}


def _pskc(tokens: list[Any], _: bytes | None) -> Files:
    from token_sim.factory import seed_files

    return {"seeds.pskc.xml": seed_files.pskc_seeds(tokens)}


def _pskc_aes(tokens: list[Any], given_key: bytes | None) -> Files:
    """Return the file of encrypted seeds, and a file with a new transport key if `given_key` is None."""
    from token_sim.factory import seed_files

    key = given_key or seed_files.transport_key()
    files = {"seeds.aes.pskc.xml": seed_files.pskc_seeds(tokens, key)}
    return files if given_key else {**files, "transport-key.txt": key.hex().encode() + b"\n"}


SEED_FILES: dict[str, Callable[[list[Any], bytes | None], Files]] = {
    "csv": _csv,
    "pskc": _pskc,
    "pskc-aes": _pskc_aes,
}


def _read_transport_key() -> bytes:
    try:
        key = bytes.fromhex(sys.stdin.readline().strip())
    except ValueError:
        key = b""
    if len(key) != TRANSPORT_KEY:
        raise CommandError("the transport key on standard input must be 32 hex digits", WRONG_USAGE)
    return key
