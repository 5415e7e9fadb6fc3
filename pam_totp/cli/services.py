"""enable, disable: the second factor for a service, on trial until a second login has confirmed it."""

from __future__ import annotations

import argparse
import os
import pwd
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pam_totp.cli.common import DONE, OUT_OF_REACH, REFUSED, WRONG_USAGE, CommandError, Commands, command
from pam_totp.cli.doctor import person

if TYPE_CHECKING:
    from pam_totp.system.enable.changes import Change
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd.edit import FirstFactor
    from pam_totp.system.pamd.findings import Finding

KEEP_WITHIN = 120  # seconds: a second terminal, a password, a code, a line
LONGEST = 3600  # seconds
CONFIRM = {"sudo": "sudo pam-totp enable {} --keep", "su": "su -c 'pam-totp enable {} --keep'"}
LOOK = 0.1  # seconds between two looks at the trial


def add_to(commands: Commands) -> None:
    enable = command(
        commands, "enable", run_enable, "ask for a code at a service; taken back unless confirmed", store=False
    )
    enable.add_argument("service", help="sshd, sudo (with sudo-i), su (with su-l), or another of /etc/pam.d")
    enable.add_argument("--for-user", metavar="USER", help="who is to log in at the rehearsal (you; root for su)")
    enable.add_argument(
        "--first-factor", choices=("password", "key"), help="of sshd, before the code (as sshd has it now)"
    )
    enable.add_argument(
        "--with", dest="arguments", metavar="ARGUMENT", action="append", default=[], help="a module argument: nullok …"
    )
    enable.add_argument(
        "--keep-within",
        type=int,
        default=KEEP_WITHIN,
        metavar="SECONDS",
        help="take everything back unless confirmed by then (%(default)s)",
    )
    either = enable.add_mutually_exclusive_group()
    either.add_argument("--dry-run", action="store_true", help="check, show the change, and leave it at that")
    either.add_argument("--keep", action="store_true", help="confirm the change, from a second login")

    disable = command(commands, "disable", run_disable, "put back what was there before enable", store=False)
    disable.add_argument("service")
    disable.add_argument("--dry-run", action="store_true", help="say what would be put back, and leave it at that")


def run_enable(args: argparse.Namespace) -> int:
    from pam_totp.system.enable import (
        plan,  # no other command needs these parts
        trial,
    )
    from pam_totp.system.enable.changes import ChangeError
    from pam_totp.system.machine import Machine
    from pam_totp.system.sshd import SshdError

    if not 1 <= args.keep_within <= LONGEST:
        raise CommandError(f"--keep-within takes 1 … {LONGEST} seconds", WRONG_USAGE)
    _demand_root("enable")
    try:
        if args.keep:
            return _keep(args.service)
        _demand_new(args.service)
        machine, user = Machine(), _user(args)
        first: FirstFactor = args.first_factor or _first_factor(args.service, user)
        changes = plan.plan(machine, args.service, first, args.arguments)
        _check(machine, args.service, changes, user, first)
        for change in changes:
            print(change.diff(), end="")
        if args.dry_run:
            print("a dry run: nothing was changed")
            return DONE
        _rehearse(machine, args.service, changes, user)
        trial.begin(trial.Record(args.service, changes, args.keep_within))
        return _on_trial(args.service, args.keep_within)
    except plan.EnablingError as e:
        raise CommandError(f"{args.service} stays as it is: {e}") from None
    except (ChangeError, SshdError, trial.TrialError) as e:
        raise CommandError(str(e)) from None


def run_disable(args: argparse.Namespace) -> int:
    from pam_totp.system.enable import trial
    from pam_totp.system.enable.changes import ChangeError, undo
    from pam_totp.system.machine import Machine

    _demand_root("disable")
    states = [state for service, state in trial.records() if service == args.service]
    if not states:
        if args.service in Machine().services_with_module():
            raise CommandError(f"'enable' did not put our line into {args.service}; take it out by hand")
        raise CommandError(f"{args.service} is not enabled")
    try:
        record = trial.load(args.service, states[0])
        would = [undo(change, dry_run=True) for change in record.changes] if record else []
        done = would if args.dry_run else trial.roll_back(args.service, states[0])
        if not args.dry_run:
            trial.log(f"disable {args.service}: done")
    except (ChangeError, trial.TrialError) as e:
        raise CommandError(f"{args.service} stays as it is: {e}") from None
    for line in done:
        print(line)
    print("a dry run: nothing was changed" if args.dry_run else f"{args.service} no longer asks for a code")
    return DONE


def _demand_root(what: str) -> None:
    if os.geteuid() != 0:
        raise CommandError(f"{what} needs root: sudo pam-totp {what} …", OUT_OF_REACH)


def _demand_new(service: str) -> None:
    """Neither enabled nor on trial; what an earlier trial has left behind is taken back first."""
    from pam_totp.system.enable import trial

    for name in trial.roll_back_left_over():
        print(f"{name}: an earlier trial that nobody had confirmed was taken back")
    for name, state in trial.records():
        if name == service and state == trial.KEPT:
            raise CommandError(f"{service} is enabled already (see 'pam-totp doctor', 'pam-totp disable {service}')")
        if name == service:
            raise CommandError(f"{service} is on trial already; confirm it with --keep, or wait")


def _user(args: argparse.Namespace) -> str:
    """Who logs in at the rehearsal."""
    caller = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    user = str(args.for_user or ("root" if args.service in ("su", "su-l") else caller))
    try:
        user = pwd.getpwnam(user).pw_name
    except KeyError:
        raise CommandError(f"there is no account called {user}") from None
    if user == "root" and args.service in ("sudo", "sudo-i"):
        raise CommandError("sudo asks root for nothing; say with --for-user who is to log in", WRONG_USAGE)
    return user


def _first_factor(service: str, user: str) -> FirstFactor:
    """What sshd asks for now: a password where it takes one."""
    from pam_totp.system import sshd

    if service != "sshd":
        return "password"
    return "password" if sshd.accepts_passwords(sshd.settings(user)) else "key"


def _check(machine: Machine, service: str, changes: Sequence[Change], user: str, first: FirstFactor) -> None:
    """The doctor's look at the machine as it would be."""
    from pam_totp.system.doctor import checks
    from pam_totp.system.doctor.context import Context
    from pam_totp.system.enable import plan
    from pam_totp.system.pamd.findings import errors

    after = plan.texts(changes, machine)
    covered = [name for name in plan.services_for(service) if machine.after(after).service(name) is not None]
    found = checks.examine(Context(machine.after(after), covered, user, first == "key"))
    _tell(found)
    if errors(found):
        raise CommandError(f"{service} stays as it is: mend that first")


def _tell(found: Sequence[Finding]) -> None:
    for finding in found:
        print(f"{finding.severity}: {finding.what}\n    {finding.remedy}")


def _rehearse(machine: Machine, service: str, changes: Sequence[Change], user: str) -> None:
    from pam_totp.system import rehearsal
    from pam_totp.system.enable import plan
    from pam_totp.system.pamd.stack import StackError

    print(f"\na rehearsal: log in to {service} as {user}, as it will be; nothing has changed yet")
    try:
        with rehearsal.private_copy(machine.after(plan.texts(changes, machine)), service) as folder:
            rehearsal.in_child(service, lambda: rehearsal.prove(service, user, person, folder, _say))
    except (rehearsal.RehearsalError, StackError) as e:
        raise CommandError(f"{service} stays as it is: {e}") from None


def _say(text: str) -> None:
    print(f"  {text}", flush=True)


def _on_trial(service: str, keep_within: int) -> int:
    """Wait for the end of the trial, whoever brings it about."""
    from pam_totp.system.enable import trial

    try:
        if service == "sshd":
            _validate_sshd()
        print(f"\n{service} asks for a code now, on trial. Log in from a second terminal, then run there:\n")
        print(f"    {CONFIRM.get(service, CONFIRM['sudo']).format(service)}\n")
        print(f"within {keep_within} seconds, or everything is taken back. Keep this terminal open.", flush=True)
        while trial.load(service, trial.TRIAL) is not None:
            time.sleep(LOOK)
    except BaseException:  # Ctrl-C, or what sshd says: at once, not when the time is over
        for line in trial.roll_back(service):
            print(line)
        raise
    if trial.load(service, trial.KEPT) is None:
        print(f"nobody confirmed it: {service} is as it was before")
        return REFUSED
    print(f"confirmed: {service} asks for a code from now on ('pam-totp disable {service}' takes it back)")
    return DONE


def _validate_sshd() -> None:
    """What sshd would not start with, or would let somebody around PAM, ends the trial; else sshd reads it."""
    from pam_totp.system import sshd
    from pam_totp.system.doctor import checks_login
    from pam_totp.system.doctor.context import Context
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd import findings

    found = findings.errors(list(checks_login.ssh(Context(Machine(), ["sshd"]))))
    if found:
        _tell(found)
        raise CommandError("sshd stays as it was: its configuration leads around what was put there")
    if not sshd.reload():
        print("sshd is not running, or reads its configuration at every login: nothing to reload")


def _keep(service: str) -> int:
    from pam_totp.system.enable import trial
    from pam_totp.system.enable.process_origin import why_not_second_login

    record = trial.load(service, trial.TRIAL)
    if record is None:
        raise CommandError(f"{service} is not on trial (any more); see 'pam-totp enable {service}'")
    why = why_not_second_login(service, record.began, record.terminal, os.environ)
    if why is not None:
        raise CommandError(why)
    trial.keep(service)
    print(f"{service} asks for a code from now on")
    return DONE
