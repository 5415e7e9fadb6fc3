"""The command line `token-sim`.

Rules:
- A module in COMMANDS contains the command of the same name. Opposite commands share a module: snapshot and restore
  (`snapshot.py`), unplug and plug (`unplug.py`).
- Only `main` turns exceptions into messages and exit statuses: 0 done, 1 refused or failed, 2 wrong usage,
  3 unavailable (port, file, permission, missing package).
- A command imports only the modules that it uses.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any, NoReturn

from token_sim import __version__
from token_sim.cli import advance, factory, fault, new, oracle, press, run, snapshot, term, terminal, unplug, watch
from token_sim.cli.command_line import DONE, PORT_VARIABLE, UNAVAILABLE, WRONG_USAGE, CommandError
from token_sim.run.words import unknown

COMMANDS = (new, factory, run, press, watch, term, advance, fault, snapshot, oracle, unplug)  # in the order of --help
EXAMPLES = """\
examples:
  token-sim new fob.token                     create a token, print its seed
  token-sim run fob.token --link /tmp/fob     run it on a serial port
  token-sim press --port /tmp/fob             press its button: 755224
  token-sim run fob.token -- ./login-test     run it while the command runs
  token-sim run fob.token --tui               show it in the terminal
  token-sim advance fob.token 90d --temp 35   let three hot months pass
  token-sim fault fob.token torn-write        cut power in the next write

exit status:
  0 done, 1 refused, 2 wrong usage
  3 unavailable: port, file, permission, or a missing package
"""


class _Parser(argparse.ArgumentParser):
    """A parser that prints an error in one line, and examples with their own line breaks."""

    def __init__(self, **given: object) -> None:
        self._is_mixing = False
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **given  # type: ignore[arg-type]
        )  # fmt: skip

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse options and arguments in any order. argparse would not accept `fault FILE --times 2 bounce`."""
        if self._is_mixing or any(action.nargs == argparse.PARSER for action in self._actions):
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False

    def check_command(self, words: list[str]) -> None:
        """Exit with an error if the first word is an unknown command, and suggest a command (argparse would not)."""
        names = next(list(action.choices or ()) for action in self._actions if action.nargs == argparse.PARSER)
        if words and not words[0].startswith("-") and words[0] not in names:
            self.error(unknown(words[0], names, "command"))

    def error(self, message: str) -> NoReturn:
        self.exit(_report(f"{message} (see '{self.prog} --help')", WRONG_USAGE))


def main(arguments: list[str] | None = None) -> int:
    """Run the command in `arguments` (default: sys.argv), and return the exit status."""
    terminal.use_plain_characters()
    words = list(sys.argv[1:] if arguments is None else arguments)
    child: list[str] = []
    if words[:1] == ["run"] and "--" in words:
        at = words.index("--")
        words, child = words[:at], words[at + 1 :]
    parser = _parser()
    parser.check_command(words[:1])
    options = parser.parse_args(words)
    options.child = child
    if "port" in options and options.port is None:
        return _report(f"missing option --port (give it, or set {PORT_VARIABLE})", WRONG_USAGE)
    try:
        return int(options.run(options) or DONE)
    except CommandError as error:
        return _report(str(error), error.status)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNAVAILABLE
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _report(f"{name}{(error.strerror or str(error)).lower()}", UNAVAILABLE)


def _parser() -> _Parser:
    parser = _Parser(prog="token-sim", description="A simulated hardware token on a serial port.", epilog=EXAMPLES)
    parser.add_argument("--version", action="version", version=f"token-sim {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for module in COMMANDS:
        module.add_to(commands)
    return parser


def _report(message: str, status: int) -> int:
    """Print a message, and return the exit status."""
    print(f"token-sim: {message}", file=sys.stderr)
    return status
