"""The command line: one command for each thing a person does with a token.

The law: one place where trouble becomes a message and an exit status; seeds come from standard input, never from
an argument; nothing is imported that the command at hand does not need.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import NoReturn

DONE, REFUSED, USAGE, OUT_OF_REACH = range(4)


class Trouble(Exception):
    """A message for the person, and the exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.do(options) or DONE)
    except Trouble as trouble:
        return _complain(str(trouble), trouble.status)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OUT_OF_REACH
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{(error.strerror or str(error)).lower()}", OUT_OF_REACH)


def _complain(message: str, status: int) -> int:
    print(f"token-sim: {message}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="token-sim")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    new = commands.add_parser("new", help="make one token")
    new.add_argument("file")
    _slot_options(new)
    new.add_argument("--counter", type=int, default=0)
    new.add_argument("--secret-stdin", action="store_true", help="read the seed, hex, from standard input")
    new.set_defaults(do=_new)

    run = commands.add_parser("run", help="let a token live on a port")
    run.add_argument("file")
    run.add_argument("--link", metavar="PATH")
    run.add_argument("--speed", type=float, default=1.0)
    run.set_defaults(do=_run)

    press = commands.add_parser("press", help="press the button and print the code")
    press.add_argument("--port", required=True)
    press.add_argument("-n", type=int, default=1, dest="times")
    press.add_argument("--timeout", type=float, default=10.0)
    press.set_defaults(do=_press)

    factory = commands.add_parser("factory", help="make many tokens, and their seed file")
    factory.add_argument("--count", type=int, default=1)
    factory.add_argument("--out", required=True, metavar="DIR")
    factory.add_argument("--first", type=int, default=1, help="the first serial number")
    _slot_options(factory)
    factory.set_defaults(do=_factory)
    return parser


def _slot_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="generic")
    parser.add_argument("--type", choices=("hotp", "totp"), dest="kind")
    parser.add_argument("--digits", type=int)
    parser.add_argument("--algorithm", choices=("SHA1", "SHA256", "SHA512"))
    parser.add_argument("--period", type=int)


def _new(options: argparse.Namespace) -> None:
    from token_sim import factory, profiles  # noqa: PLC0415

    profile = profiles.PROFILES[options.profile]
    key = _hex_from_stdin() if options.secret_stdin else None
    if os.path.lexists(options.file):
        raise Trouble(f"{options.file} exists already (a token is made once; choose another name)")
    number = int.from_bytes(os.urandom(4), "big") % 10**8
    slot = factory.new_slot(profile, **_slot(options), key=key)  # type: ignore[arg-type]
    made = factory.make(profile, factory.serial_number(profile, number), slot, options.counter)
    factory.write_token(options.file, profile, made, _now())
    print(made.csv() if key is None else made.serial)


def _run(options: argparse.Namespace) -> None:
    from token_sim.device import Device  # noqa: PLC0415
    from token_sim.file import TokenFile  # noqa: PLC0415
    from token_sim.runner import Runner  # noqa: PLC0415
    from token_sim.transports import Pty  # noqa: PLC0415

    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    file = TokenFile.open(options.file)
    try:
        device = Device(file, file.profile, file.body)
        device.elapse(max(0, _now() - file.body.now))  # the time in the drawer
        device.take_events()
        runner = Runner(device, [Pty(options.link)], options.speed)
        signal.signal(signal.SIGUSR1, lambda *_: device.press())
        try:
            print(f"{device.serial} on {runner.lines[0][0].url()}", flush=True)
            runner.run()
        finally:
            runner.close()
            file.save()
    finally:
        file.close()


def _press(options: argparse.Namespace) -> None:
    from token_sim.client import Client, ClientError, Refused  # noqa: PLC0415

    try:
        with Client(options.port, options.timeout) as client:
            for _ in range(options.times):
                print(client.press(), flush=True)
    except Refused as error:
        raise Trouble(str(error)) from error
    except ClientError as error:
        raise Trouble(str(error), OUT_OF_REACH) from error


def _factory(options: argparse.Namespace) -> None:
    from token_sim import factory, profiles  # noqa: PLC0415

    profile = profiles.PROFILES[options.profile]
    tokens = list(factory.batch(profile, options.count, options.first, **_slot(options)))
    for path in factory.write_batch(options.out, profile, tokens, _now()):
        print(path)


def _slot(options: argparse.Namespace) -> dict[str, object]:
    return {name: getattr(options, name) for name in ("kind", "digits", "algorithm", "period")}


def _hex_from_stdin() -> bytes:
    try:
        return bytes.fromhex(sys.stdin.readline().strip())
    except ValueError:
        raise Trouble("the seed on standard input is not hex", USAGE) from None


def _now() -> int:
    return time.time_ns() // 1_000_000


def _stop(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
