"""rehearse: log in through libpam, and show every prompt."""

from __future__ import annotations

import argparse
import os
import signal
from contextlib import nullcontext
from dataclasses import asdict
from typing import TYPE_CHECKING

from pam_totp.cli.command_line import DONE, CommandError, Commands, add_command
from pam_totp.cli.printing import print_json
from pam_totp.cli.prompts import answer_pam, end_prompt_line
from pam_totp.cli.store_access import warn_without_account

if TYPE_CHECKING:
    from pam_totp.system.machine import Machine


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "rehearse",
        run,
        "log in through libpam, and show every prompt",
        "pam-totp rehearse sudo alice",
        "pam-totp rehearse sshd alice --stack new/sshd",
        data=True,
        store=False,
    )
    parser.add_argument("service", help="name of the PAM service: sshd, sudo, ...")
    parser.add_argument("user", nargs="?", help="user who logs in (default: yourself, also under sudo)")
    parser.add_argument(
        "--stack",
        metavar="PATH",
        help="a service file, or a folder of service files, used in place of the files in /etc/pam.d",
    )


def run(args: argparse.Namespace) -> int:
    from pam_totp.system import rehearsal  # imported here: few commands need this module
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd.stack import StackError

    if args.user is None:
        args.user = args.audit.caller
    messages: list[dict[str, object]] = []

    def converse(style: int, text: str) -> bytes | None:
        messages.append({"style": rehearsal.STYLES[style], "text": text})
        return answer_pam(style, text)

    def log_in() -> None:
        outcome = rehearsal.attempt(args.service, args.user, converse, folder)
        if args.json:
            print_json({"service": args.service, "user": args.user, "shown": messages, **asdict(outcome)})
        if not outcome.is_success:
            raise rehearsal.RehearsalError(f"{args.service} would refuse {args.user}: {outcome}")
        if not args.json:
            print(f"{args.service} would let {args.user} in: {outcome}")

    try:
        machine = _machine_with(args.stack, args.service) if args.stack else Machine()
        if machine.service(args.service) is None:
            raise CommandError(f"/etc/pam.d/{args.service}: not found")
        warn_without_account(args.user)  # libpam also asks an unknown user for a password
        with rehearsal.private_copy(machine, args.service) if args.stack else nullcontext(None) as folder:
            rehearsal.in_child(args.service, log_in)
    except (rehearsal.RehearsalError, StackError) as e:
        raise CommandError(str(e)) from None
    except KeyboardInterrupt:
        end_prompt_line()
        raise CommandError("interrupted: the login was not completed", 128 + signal.SIGINT) from None
    return DONE


def _machine_with(path: str, service: str) -> Machine:
    """Return this machine with the service files at `path` in place of the files in /etc/pam.d."""
    from pam_totp.system.enable.changes import read
    from pam_totp.system.machine import Machine

    if os.path.isdir(path):
        texts = {name: read(os.path.join(path, name)) or "" for name in os.listdir(path)}
    else:
        text = read(path)
        if text is None:
            raise CommandError(f"{path}: not found")
        texts = {service: text}
    return Machine().after(texts)
