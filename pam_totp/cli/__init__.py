"""The command line, `pam-totp`: a thin shell over the core. One place makes messages of errors, and exit statuses."""

from __future__ import annotations

import argparse
import difflib
import errno
import os
import signal
import sys
from collections.abc import Collection, Sequence
from typing import NoReturn

from pam_totp import __version__
from pam_totp.cli import codes, doctor, enroll, export, import_, policy, portal, recovery, serve, services, tokens
from pam_totp.cli.common import OUT_OF_REACH, REFUSED, WRONG_USAGE, CommandError
from pam_totp.core.record import RecordError
from pam_totp.core.settings import SettingsError
from pam_totp.pam.listening import ServiceError
from pam_totp.store import StoreError

COMMANDS = (  # in the order of --help
    enroll,
    tokens,
    recovery,
    codes,
    import_,
    export,
    services,
    doctor,
    policy,
    serve,
    portal,
)
REMEDIES = {
    errno.ENOSPC: "make room on that disk, and run the command again",
    errno.EDQUOT: "the owner's quota is used up; make room, and run the command again",
    errno.EROFS: "make that disk writable (mount -o remount,rw), and run the command again",
    errno.EACCES: "run the command as root, or as the owner of that folder",
    errno.ENOENT: "is the name right?",
    errno.EISDIR: "name a file in it",
    errno.EADDRINUSE: "stop what listens there, or name another port with --listen",
}
EXAMPLES = """\
examples:
  pam-totp enroll alice                      a new phone: shows a QR code, asks for the first code
  pam-totp enroll alice --type hotp --name fob --secret-stdin < key.txt
  pam-totp list                              who has which tokens
  pam-totp verify alice 755224               is this code right? uses it up
  pam-totp resync alice --port /dev/ttyUSB0  bring a token back into step by pressing it twice
  pam-totp enable sudo                       ask for a code at sudo: on trial first, taken back unless confirmed
  pam-totp doctor                            what may keep people out, or let them in without a code

exit status: 0 done or accepted, 1 refused or a check failed, 2 wrong usage, 3 out of reach (permission, store, device)
"""


class _Parser(argparse.ArgumentParser):
    """Complains in one line."""

    commands: Collection[str] = ()  # the names of all commands, of the top parser

    def check_command(self, word: str) -> None:
        """End with an error for an unknown command: argparse would list all commands, which does not fit a line."""
        if word.startswith("-") or word in self.commands:
            return
        similar = difflib.get_close_matches(word, self.commands, 1)
        self.error(f"there is no command {word}" + (f"; {similar[0]}?" if similar else ""))

    def error(self, message: str) -> NoReturn:
        self.exit(_say(f"{message} (see '{self.prog} --help')", WRONG_USAGE))


def parser() -> _Parser:
    """The whole command line."""
    top = _Parser(
        prog="pam-totp",
        description="One-time codes as a second factor: tokens, codes and the service behind the PAM module.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"pam-totp {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    for module in COMMANDS:
        module.add_to(commands)
    top.commands = commands.choices
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    top = parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments:
        top.check_command(arguments[0])
    chosen, rest = top.parse_known_args(arguments)
    # argparse of Python 3.11 ends a list of words at the first option: `resync alice --token fob 755224 287082`.
    words = next((name for name in ("code", "argument") if hasattr(chosen, name)), None)
    more = [word for word in rest if word != "--"]
    if more and (words is None or any(word.startswith("-") for word in more)):
        chosen.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if words is not None:
        setattr(chosen, words, [*getattr(chosen, words), *more])
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # as some daemons leave it to those whom they start
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or no child could be waited for
    try:
        status = int(chosen.run(chosen))
        sys.stdout.flush()  # here, where it is said what became of it
        return status
    except CommandError as e:
        return _say(str(e), e.status)
    except (StoreError, ServiceError) as e:
        return _say(f"{e}{_what_to_do(e.__cause__, unchanged=True)}", OUT_OF_REACH)
    except (RecordError, SettingsError) as e:  # what they say, or that it cannot be read
        unread = isinstance(e.__cause__, OSError)
        return _say(f"{e}{_what_to_do(e.__cause__)}", OUT_OF_REACH if unread else REFUSED)
    except OSError as e:
        _forget_the_rest()
        if isinstance(e, BrokenPipeError):  # `pam-totp list | head`: what was not read may not have been done
            return 128 + signal.SIGPIPE
        what = f"{e.filename}: " if e.filename else ""
        return _say(f"{what}{(e.strerror or str(e)).lower()}{_what_to_do(e)}", OUT_OF_REACH)
    except KeyboardInterrupt:
        return _say("interrupted; see 'pam-totp list' for what was done and what was not", 128 + signal.SIGINT)


def _forget_the_rest() -> None:
    """What standard output does not take must not come up again when the interpreter ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _what_to_do(cause: BaseException | None, *, unchanged: bool = False) -> str:
    """What a person can do about an error of the system's. A store that fails is `unchanged`."""
    remedy = REMEDIES.get(cause.errno or 0) if isinstance(cause, OSError) else None
    return f"; {'nothing was changed: ' if unchanged else ''}{remedy}" if remedy else ""


def _say(problem: str, status: int) -> int:
    print(f"pam-totp: {problem}", file=sys.stderr)
    return status
