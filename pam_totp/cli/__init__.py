"""The command line `pam-totp`.

Rules:
- Each command has a module, with the functions `add_to` and `run`. COMMANDS lists the modules.
- A command imports its own module only, because the imports take most of the time of a short command.
- Only `main` converts exceptions to messages and exit statuses.
- A message is one line: the error, the reason and the remedy. A message never shows a secret.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NoReturn

from pam_totp import __version__
from pam_totp.cli.command_line import OUT_OF_REACH, REFUSED, WRONG_USAGE, CommandError
from pam_totp.cli.remedies import remedy
from pam_totp.cli.terminal import prepare_output
from pam_totp.core.record import RecordError
from pam_totp.core.settings import SettingsError
from pam_totp.pam.listening import ServiceError
from pam_totp.store import StoreError
from pam_totp.system.audit import Audit

COMMANDS = {  # names and modules, in the order of --help
    "enroll": "enroll",
    "invite": "invite",
    "stock": "stock",
    "assign": "assign",
    "unassign": "unassign",
    "return": "return_",
    "replace": "replace",
    "qr": "qr",
    "list": "list_",
    "rename": "rename",
    "enable-token": "enable_token",
    "disable-token": "disable_token",
    "remove": "remove",
    "recovery": "recovery",
    "verify": "verify",
    "resync": "resync",
    "unlock": "unlock",
    "desk": "desk",
    "import": "import_",
    "export": "export",
    "restored": "restored",
    "enable": "enable",
    "disable": "disable",
    "doctor": "doctor",
    "rehearse": "rehearse",
    "policy": "policy",
    "stats": "stats",
    "serve": "serve",
    "portal": "portal",
    "store": "store",
    "seal": "seal",
    "join": "join",
    "authority": "authority",
    "member": "member",
}
WORD_LISTS = ("code", "argument", "file", "names")  # arguments that take any number of words
SHORT_HELP = """\
pam-totp manages one-time codes as a second factor. The first steps:

  pam-totp enroll alice        give a user a phone app or a key fob
  pam-totp list                show users and their tokens
  pam-totp enable sudo         require a code at sudo, on trial at first
  pam-totp doctor              find problems that lock users out

Later: 'replace' for a lost phone, 'recovery', 'import', 'export', 'resync'.
'pam-totp --help' lists all commands; 'pam-totp COMMAND --help' has examples.
"""
EXAMPLES = """\
examples:
  pam-totp enroll alice          new phone: show a QR code, ask for a code
  pam-totp enroll alice --type hotp --name fob --secret-stdin < key.txt
  pam-totp replace alice phone   lost phone: a new key in place of the old key
  pam-totp list                  show all users and their tokens
  pam-totp verify alice 755224   check a code, and use up a right code
  pam-totp resync alice --port /dev/ttyUSB0
                                 resynchronise a key fob: press it twice
  pam-totp enable sudo           require a code at sudo, on trial at first
  pam-totp doctor                find problems that lock users out, or let them
                                 in without a code

exit status:
  0 done or accepted             1 refused, or a check failed
  2 wrong usage                  3 no access (permission, store, device)
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line."""

    def check_command(self, word: str) -> None:
        """Exit with an error if the command is unknown. argparse's error would list all commands in one long line."""
        if word.startswith("-") or word in COMMANDS:
            return
        import difflib

        similar = difflib.get_close_matches(word, COMMANDS, 1)
        self.error(f"unknown command '{word}'" + (f": did you mean '{similar[0]}'?" if similar else ""))

    def error(self, message: str) -> NoReturn:
        self.exit(_report(f"{message} (see '{self.prog} --help')", WRONG_USAGE))


def parser(names: Iterable[str] = COMMANDS) -> _Parser:
    """Return the parser of the whole command line, or of the commands `names`."""
    top = _Parser(
        prog="pam-totp",
        description="Manage one-time codes as a second factor: tokens, codes and services.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"pam-totp {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for name in names:
        importlib.import_module(f"pam_totp.cli.{COMMANDS[name]}").add_to(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    by_root = os.geteuid() == 0  # before the command drops its privileges
    prepare_output()
    if not (sys.argv[1:] if arguments is None else arguments):
        print(SHORT_HELP, end="", file=sys.stderr)
        return WRONG_USAGE
    args = parse(arguments)
    _prevent_core_dump()
    # Restore the default action for SIGCHLD: a process that was started with SIGCHLD ignored cannot wait for a child.
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    args.audit = Audit()  # before the command drops its privileges
    try:
        status = int(args.run(args))
        sys.stdout.flush()  # flush here, so that `main` reports a write error
        return status
    except CommandError as e:
        return _report(str(e), e.status)
    except (StoreError, ServiceError) as e:
        hint = remedy(e.__cause__, by_root=by_root, store=args.audit.store)
        return _report(f"{e}; nothing was changed{hint}" if hint else str(e), OUT_OF_REACH)
    except (RecordError, SettingsError) as e:
        is_unreadable = isinstance(e.__cause__, OSError)
        return _report(
            f"{e}{remedy(e.__cause__, by_root=by_root, store=args.audit.store)}",
            OUT_OF_REACH if is_unreadable else REFUSED,
        )
    except OSError as e:
        _discard_output()
        if isinstance(e, BrokenPipeError):  # the reader closed the pipe, as in `pam-totp list | head`
            return 128 + signal.SIGPIPE
        what = f"{e.filename}: " if e.filename else ""
        return _report(
            f"{what}{(e.strerror or str(e)).lower()}{remedy(e, by_root=by_root, store=args.audit.store)}", OUT_OF_REACH
        )
    except KeyboardInterrupt:
        return _report("interrupted, perhaps after the change was made (see 'pam-totp list')", 128 + signal.SIGINT)


def _prevent_core_dump() -> None:
    """Prevent core dumps, which would contain keys. The kernel starts no program of core_pattern if the limit is 1
    (core(5)).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    with suppress(OSError, ValueError):  # a service unit may forbid this call, and set LimitCORE=0 instead
        resource.setrlimit(resource.RLIMIT_CORE, (1, hard or 1))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line, and return the arguments.

    In Python 3.11, argparse ends a list of words at the first option. This function adds the words after the option, as
    in `resync alice --token fob 755224 287082`.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    top = parser([name for name in arguments[:1] if name in COMMANDS] or COMMANDS)
    if arguments:
        top.check_command(arguments[0])
    args, rest = top.parse_known_args(arguments)
    name = next((name for name in WORD_LISTS if hasattr(args, name)), None)
    words = [word for word in rest if word != "--"]
    if words and (name is None or any(word.startswith("-") and word != "-" for word in words)):
        args.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if name is not None:
        setattr(args, name, [*getattr(args, name), *words])
    return args


def _discard_output() -> None:
    """Discard the buffered output. Otherwise the interpreter would write the output again at exit, and fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(problem: str, status: int) -> int:
    """Print `problem` on standard error and return `status`."""
    print(f"pam-totp: {problem}", file=sys.stderr)
    return status
