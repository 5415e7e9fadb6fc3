"""The command line: what there is to say, and the one place where trouble becomes a message and an exit status.

The law: seeds come from standard input, never from an argument; nothing is imported that the command at hand does
not need; exit status 0 done, 1 refused or failed, 2 wrong usage, 3 out of reach (port, file, permission, extra).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from token_sim import __version__
from token_sim.cli import commands
from token_sim.cli import run as running
from token_sim.cli.commands import DONE, OUT_OF_REACH, USAGE, Trouble
from token_sim.device.faults import WHAT
from token_sim.device.models import PROFILES

EXAMPLES = """\
examples:
  token-sim new fob.token                              make a token; prints its serial number and seed
  token-sim run fob.token --link /tmp/fob              let it live on a serial port
  token-sim press --port /tmp/fob                      press its button: 755224
  token-sim run fob.token -- sh -c 'token-sim press'   a command while the token lives, with TOKEN_SIM_PORT set
  token-sim run fob.token --tui                        the token itself, in the terminal (space presses)
  token-sim advance fob.token 90d --temp 35            three hot months in a moment
  token-sim fault fob.token torn-write                 and what if the power goes just then?

exit status: 0 done, 1 refused, 2 wrong usage, 3 out of reach (port, file, permission, extra)
"""


def main(arguments: list[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    child: list[str] = []
    if words[:1] == ["run"] and "--" in words:
        at = words.index("--")
        words, child = words[:at], words[at + 1 :]
    options = _parser().parse_args(words)
    options.child = child
    if "port" in options and options.port is None:
        return _complain("which port? give --port, or set TOKEN_SIM_PORT", USAGE)
    try:
        return int(options.do(options) or DONE)
    except Trouble as trouble:
        return _complain(str(trouble), trouble.status)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUT_OF_REACH
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{(error.strerror or str(error)).lower()}", OUT_OF_REACH)


def _complain(message: str, status: int) -> int:
    print(f"token-sim: {message}", file=sys.stderr)
    return status


_Adder = Callable[[str, str, object, str], argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    """Complains in one line, and shows its examples as they are."""

    def __init__(self, **given: object) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **given  # type: ignore[arg-type]
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        self.exit(_complain(f"{message} (see '{self.prog} --help')", 2))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="token-sim", description="A hardware token on a serial port.", epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"token-sim {__version__}")
    adding = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    def command(name: str, what: str, do: object, examples: str) -> argparse.ArgumentParser:
        lines = "\n".join(f"  token-sim {line}" for line in examples.splitlines())
        added = adding.add_parser(
            name, help=what, description=f"{what[0].upper()}{what[1:]}.", epilog=f"examples:\n{lines}"
        )
        added.add_argument("--json", action="store_true", help="print JSON, one document a line")
        added.set_defaults(do=do)
        return added

    _add_makers(command)
    _add_run(command)
    _add_clients(command)
    _add_owners(command)
    return parser


def _add_makers(command: _Adder) -> None:
    new = command("new", "make one token", commands.new, "new fob.token\nnew fob.token --profile c200 --json\n"
        "new fob.token --secret-stdin --digits 8 < seed.hex")  # fmt: skip
    new.add_argument("file")
    _model(new)
    new.add_argument("--counter", type=int, default=0, help="of the first code (0)")
    new.add_argument("--serial", help="12 letters and digits (made up)")
    new.add_argument("--slot2", action="store_true", help="a seed for the long touch too (yubikey)")
    new.add_argument("--secret-stdin", action="store_true", help="read the seed, hex or base32, from standard input")

    factory = command("factory", "make many tokens, and the seed file that a vendor would ship", commands.factory,
        "factory --count 1000 --profile c100 --out batch\nfactory --count 10 --out batch --seeds pskc-aes")  # fmt: skip
    factory.add_argument("--count", type=int, default=1)
    factory.add_argument("--out", required=True, metavar="DIR")
    factory.add_argument("--first", type=int, default=1, metavar="N", help="the first serial number (1)")
    factory.add_argument("--seeds", action="append", choices=tuple(commands.SEED_FILES),
        help="the seed file's form, may be repeated (csv)")  # fmt: skip
    factory.add_argument("--key-stdin", action="store_true", help="read the transport key of pskc-aes, 32 hex digits")
    _model(factory)


def _add_run(command: _Adder) -> None:
    run = command("run", "let a token live on a port, until Ctrl-C or for as long as a command runs", running.run,
        "run fob.token --link /tmp/fob\nrun fob.token --tcp 4000 --rfc2217 4001\n"
        "run fob.token --speed 60 -- make test\nrun fob.token --tui")  # fmt: skip
    run.add_argument("file")
    run.add_argument("--link", metavar="PATH", help="a stable path for the pseudo-terminal")
    run.add_argument("--tcp", type=int, metavar="PORT", help="socket:// on loopback (0: any free port)")
    run.add_argument("--rfc2217", type=int, metavar="PORT", help="rfc2217:// on loopback (0: any free port)")
    run.add_argument("--speed", type=float, default=1.0, help="seconds of the token's in a real one (1)")
    run.add_argument("--seed", type=int, default=0, help="for noise and rot: the same again with the same number")
    run.add_argument("--tui", action="store_true", help="show the token in the terminal")
    _control(run)
    run.usage = f"{run.format_usage().removeprefix('usage: ').rstrip()} [-- COMMAND ...]"


def _add_clients(command: _Adder) -> None:
    for name, what, do in (
        ("press", "press the button and print the code", commands.press),
        ("watch", "print the codes that others press for", commands.watch),
    ):
        one = command(name, what, do, f"{name} --port /tmp/fob\n{name} --port socket://127.0.0.1:4000 -n 3 --lcd")
        _port(one)
        one.add_argument(
            "-n", type=int, dest="times", default=1 if name == "press" else None, metavar="N", help="so many codes"
        )
        one.add_argument("--timeout", type=float, default=60.0 if name == "press" else 3600.0, metavar="S",
            help="seconds to wait for each code (%(default)g)")  # fmt: skip
        one.add_argument("--wait", type=float, default=0.0, metavar="S",
            help="seconds to wait for a port that is not there yet (%(default)g)")  # fmt: skip
        one.add_argument("--lcd", action="store_true", help="draw the display")
        if name == "press":
            one.add_argument("--ms", type=int, help="hold the button for so long")

    term = command("term", "talk to the token in pyserial's miniterm", commands.term, "term --port /tmp/fob")
    _port(term)


def _add_owners(command: _Adder) -> None:
    advance = command("advance", "let the token's time pass at once", commands.advance,
        "advance fob.token 24h\nadvance fob.token 90d --temp 35\nadvance fob.token 2w --only-token")  # fmt: skip
    _owner(advance)
    advance.add_argument("by", help="such as 90d, 36h, 1h30m or 250ms")
    advance.add_argument("--temp", type=int, default=25, help="degrees Celsius meanwhile (25)")
    advance.add_argument("--only-token", action="store_true", help="the token ages and drifts, the world's time stays")

    fault = command("fault", "make something go wrong, or list what can", commands.fault,
        "fault fob.token\nfault fob.token torn-write\nfault fob.token line-noise --number 10\n"
        "fault fob.token stuck-button --clear")  # fmt: skip
    _owner(fault)
    fault.add_argument("name", nargs="?", choices=tuple(str(name) for name in WHAT), metavar="FAULT",
        help="see the list: it is printed where none is named")  # fmt: skip
    fault.add_argument("--times", type=int, default=1, metavar="N", help="how often it happens (1)")
    fault.add_argument("--number", type=int, metavar="N", help="how much of it; the list says what of each")
    fault.add_argument("--clear", action="store_true", help="undo it")

    for name, what, to in (
        ("snapshot", "copy the token to a new file", "to"),
        ("restore", "put a copy back: a clone", "from_"),
    ):
        copy = command(name, what, commands.copy, f"{name} fob.token monday.token")
        _owner(copy)
        copy.add_argument("copy", metavar="COPY")
        copy.set_defaults(name=name, key=to.rstrip("_"))
    for name, what in (
        ("oracle", "tell what nobody can see: true counter, true time, last code"),
        ("unplug", "pull the token out of its port"),
        ("plug", "put it back"),
    ):
        plain = command(name, what, commands.plain, f"{name} fob.token")
        _owner(plain)
        plain.set_defaults(name=name)


def _model(parser: argparse.ArgumentParser) -> None:
    models = ", ".join(f"{name} ({profile.title})" for name, profile in PROFILES.items())
    parser.add_argument("--profile", choices=tuple(PROFILES), default="generic", metavar="MODEL", help=models)
    parser.add_argument("--type", choices=("hotp", "totp"), dest="kind")
    parser.add_argument("--digits", type=int, choices=(6, 7, 8))
    parser.add_argument("--algorithm", choices=("SHA1", "SHA256", "SHA512"))
    parser.add_argument("--period", type=int, help="seconds")


def _port(parser: argparse.ArgumentParser) -> None:
    usual = os.environ.get("TOKEN_SIM_PORT")
    parser.add_argument("--port", default=usual, help="path or pyserial URL ($TOKEN_SIM_PORT)")


def _control(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--control", metavar="PATH", help="the owner's socket (FILE.control)")


def _owner(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file")
    _control(parser)
