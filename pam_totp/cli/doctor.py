"""doctor, rehearse: what a login would meet, before anybody has to log in."""

from __future__ import annotations

import argparse
import getpass
import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import asdict

from pam_totp.cli.common import (
    DONE,
    REFUSED,
    CommandError,
    Commands,
    command,
    end_the_line,
    print_json,
    warn_of_no_account,
)


def add_to(commands: Commands) -> None:
    doctor = command(
        commands,
        "doctor",
        run_doctor,
        "find what may keep people out, or let them in without a code",
        data=True,
        store=False,
    )
    doctor.add_argument("service", nargs="*", help="look at these services (all that name our module)")

    rehearse = command(
        commands, "rehearse", run_rehearse, "log in through libpam with every prompt shown", data=True, store=False
    )
    rehearse.add_argument("service")
    rehearse.add_argument("user")
    rehearse.add_argument(
        "--stack", metavar="PATH", help="a service file, or a folder of them, in place of the machine's"
    )


def run_doctor(args: argparse.Namespace) -> int:
    from pam_totp.system.doctor import checks  # no other command needs these parts
    from pam_totp.system.doctor.context import Context
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd.findings import errors

    machine = Machine()
    services = args.service or machine.services_with_module()
    found = checks.examine(Context(machine, services))
    if args.json:
        print_json({"services": services, "findings": [asdict(f) for f in found]})
    else:
        for finding in found:
            print(f"{finding.severity}: {finding.what}\n    {finding.remedy}")
        what = f"services: {', '.join(services)}" if services else "no service asks for a code yet"
        print(f"{len(found) or 'no'} finding{'' if len(found) == 1 else 's'}; {what}")
    return REFUSED if errors(found) else DONE


def run_rehearse(args: argparse.Namespace) -> int:
    from pam_totp.system import rehearsal
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd.stack import StackError

    shown: list[dict[str, object]] = []

    def converse(style: int, text: str) -> bytes | None:
        shown.append({"style": rehearsal.STYLES[style], "text": text})
        return person(style, text)

    def work() -> None:
        outcome = rehearsal.attempt(args.service, args.user, converse, folder)
        if args.json:
            print_json({"service": args.service, "user": args.user, "shown": shown, **asdict(outcome)})
        if not outcome.is_success:
            raise rehearsal.RehearsalError(f"{args.service} would refuse {args.user}: {outcome}")
        if not args.json:
            print(f"{args.service} would let {args.user} in: {outcome}")

    try:
        machine = _given(args.stack, args.service) if args.stack else Machine()
        if machine.service(args.service) is None:
            raise CommandError(f"/etc/pam.d/{args.service} is not there")
        warn_of_no_account(args.user)  # a password would be asked for all the same
        with rehearsal.private_copy(machine, args.service) if args.stack else nullcontext(None) as folder:
            rehearsal.in_child(args.service, work)
    except (rehearsal.RehearsalError, StackError) as e:
        raise CommandError(str(e)) from None
    except KeyboardInterrupt:
        end_the_line()
        raise CommandError("interrupted; the login had not come to its end", 128 + signal.SIGINT) from None
    return DONE


def person(style: int, text: str) -> bytes | None:
    """Whoever sits at the terminal, or the next line of standard input; what is shown goes to standard error."""
    from pam_totp.system.libpam import PROMPT_ECHO_OFF, PROMPTS

    seen = "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
    if style not in PROMPTS:
        print(seen, file=sys.stderr)
        return None
    if style == PROMPT_ECHO_OFF and os.isatty(0):
        try:
            return getpass.getpass(seen, stream=sys.stderr).encode("utf-8", "surrogateescape")
        except EOFError:
            print(file=sys.stderr)
            return None
    print(seen, end="" if os.isatty(0) else "\n", file=sys.stderr, flush=True)
    return _line()


def _line() -> bytes | None:
    """One line of standard input, and not a byte more: what follows is the next login's. None at its end."""
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line if line or byte else None


def _given(path: str, service: str):  # type: ignore[no-untyped-def]
    """The machine with the service files at `path` in place of its own."""
    from pam_totp.system.enable.changes import read
    from pam_totp.system.machine import Machine

    if os.path.isdir(path):
        texts = {name: read(os.path.join(path, name)) or "" for name in os.listdir(path)}
    else:
        text = read(path)
        if text is None:
            raise CommandError(f"{path} is not there")
        texts = {service: text}
    return Machine().after(texts)
