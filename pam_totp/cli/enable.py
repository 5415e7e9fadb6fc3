"""enable: require a code at a service, on trial until a second login confirms the change.

Rules:
- The command changes a service only after the doctor's checks of the new stack and a rehearsed login have succeeded.
- A watchdog process rolls back a change that is not confirmed from a second login. A systemd
  unit or the next command rolls back the change if the watchdog was killed.
"""

from __future__ import annotations

import argparse
import os
import pwd
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pam_totp.cli.command_line import (
    DONE,
    OUT_OF_REACH,
    REFUSED,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
)
from pam_totp.cli.prompts import answer_pam, ask, end_prompt_line

if TYPE_CHECKING:
    from pam_totp.system.enable.changes import Change
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd.edit import FirstFactor
    from pam_totp.system.pamd.findings import Finding

# Seconds: enough for three codes of a token with steps of 60 s (rehearsal, login, and sudo there), and for passwords.
KEEP_WITHIN = 300
MAX_KEEP_WITHIN = 3600  # seconds
CONFIRM = {"sudo": "sudo pam-totp enable {} --keep", "su": "su -c 'pam-totp enable {} --keep'"}
POLL = 0.1  # seconds between two checks of the state of the trial
DRY_RUN = "dry run: nothing was changed"


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "enable",
        run,
        "require a code at a service, and roll back the change unless it is confirmed",
        "pam-totp enable sudo --dry-run",
        "pam-totp enable sshd --first-factor key",
        "pam-totp enable sshd --enroll ticket",
        "pam-totp enable sudo --keep",
        store=False,
    )
    parser.add_argument("service", help="sshd, sudo (with sudo-i), su (with su-l), or another service in /etc/pam.d")
    parser.add_argument("--for-user", metavar="USER", help="user of the rehearsed login (default: you; for su, root)")
    parser.add_argument(
        "--first-factor",
        choices=("password", "key", "key-or-password"),
        help="factor that sshd requires before the code (default: as sshd is configured)",
    )
    parser.add_argument(
        "--with",
        dest="arguments",
        metavar="ARGUMENT",
        action="append",
        default=[],
        help="module argument, such as nullok; may be repeated",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="replace the line of pam_google_authenticator or pam_oath; disable restores it",
    )
    parser.add_argument(
        "--nullok-until",
        metavar="DATE",
        help="let users without a token in until the end of this day (UTC), such as 2026-12-31",
    )
    parser.add_argument(
        "--nullok-group", metavar="GROUP", help="let users without a token in if they are members of this group"
    )
    parser.add_argument(
        "--enroll",
        choices=("ticket",),
        help="let users without a token enter an enrolment ticket (see 'pam-totp invite'), and enrol at the login",
    )
    parser.add_argument(
        "--keep-within",
        type=int,
        default=KEEP_WITHIN,
        metavar="SECONDS",
        help="roll back the change unless it is confirmed within this time (%(default)s)",
    )
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--dry-run", action="store_true", help="check and show the change, but do not apply it")
    either.add_argument("--keep", action="store_true", help="confirm the change, from a second login")


def run(args: argparse.Namespace) -> int:
    from pam_totp.system.enable import plan, trial  # imported here: few commands need this module
    from pam_totp.system.enable.changes import ChangeError
    from pam_totp.system.machine import Machine
    from pam_totp.system.sshd import SshdError

    if not 1 <= args.keep_within <= MAX_KEEP_WITHIN:
        raise CommandError(f"--keep-within must be 1 to {MAX_KEEP_WITHIN} seconds", WRONG_USAGE)
    require_root("enable")
    try:
        if args.keep:
            return _keep(args.service)
        _require_not_enabled(args.service)
        machine, user = Machine(), _user(args)
        first: FirstFactor = args.first_factor or _first_factor(args.service, user)
        changes = _plan(machine, args, first)
        _check(machine, args.service, changes, user, first)
        for change in changes:
            print(change.diff(), end="")
        if args.dry_run:
            print(DRY_RUN)
            return DONE
        _rehearse(machine, args.service, changes, user, first)
        trial.begin(trial.Record(args.service, changes, args.keep_within))
        return _wait_for_confirmation(args.service, args.keep_within)
    except plan.EnablingError as e:
        raise _unchanged(args.service, e) from None
    except (ChangeError, SshdError, trial.TrialError) as e:
        raise CommandError(str(e)) from None
    except KeyboardInterrupt:
        end_prompt_line()
        raise CommandError(f"interrupted: {_outcome(args.service)}", 128 + signal.SIGINT) from None


def _module_arguments(args: argparse.Namespace) -> list[str]:
    given = (("nullok_until", args.nullok_until), ("nullok_group", args.nullok_group), ("enroll", args.enroll))
    return [*args.arguments, *(f"{name}={value}" for name, value in given if value is not None)]


def _outcome(service: str) -> str:
    """Return the state of the service after Ctrl-C, as text."""
    from pam_totp.system.enable import trial

    states = dict(trial.records())
    if service in states:
        return f"{service} is {'enabled' if states[service] == trial.KEPT else 'still on trial'}"
    return f"{service} does not ask for a code: its files are unchanged"


def _plan(machine: Machine, args: argparse.Namespace, first: FirstFactor) -> tuple[Change, ...]:
    """Return the changes. Offer to replace the lines of another module that asks for a code."""
    from pam_totp.system.enable import plan
    from pam_totp.system.pamd.stack import parse

    arguments = _module_arguments(args)
    try:
        changes = plan.plan(machine, args.service, first, arguments, replace=args.replace)
    except plan.OtherCodeModule as e:
        if not sys.stdin.isatty():
            raise
        print(e.what)
        question = f"Replace that line? 'pam-totp disable {args.service}' restores it. [y/N] "
        if ask(question).strip().lower() not in ("y", "yes"):
            raise
        changes = plan.plan(machine, args.service, first, arguments, replace=True)
    had_nullok = any("nullok" in rule.arguments for c in changes for rule in parse(c.commented_lines))
    if had_nullok and not any(argument.startswith("nullok") for argument in arguments):
        print("only the replaced line has nullok (add --with nullok to let users without a token in)")
    return changes


def require_root(command: str) -> None:
    if os.geteuid() != 0:
        raise CommandError(f"{command} requires root (run 'sudo pam-totp {command} ...')", OUT_OF_REACH)


def _unchanged(service: str, why: object) -> CommandError:
    return CommandError(f"{service} was not changed: {why}")


def _require_not_enabled(service: str) -> None:
    """Roll back every trial that has no watchdog. Then raise CommandError if the service is enabled or on trial."""
    from pam_totp.system.enable import trial

    for name in trial.roll_back_left_over():
        print(f"{name}: rolled back an earlier trial that was not confirmed")
    for name, state in trial.records():
        if name == service and state == trial.KEPT:
            raise CommandError(f"{service} is already enabled (see 'pam-totp doctor' and 'pam-totp disable {service}')")
        if name == service:
            raise CommandError(f"{service} is already on trial (confirm it with --keep, or wait for the roll-back)")


def _user(args: argparse.Namespace) -> str:
    """Return the user of the rehearsed login: the user whose password and code the service asks for."""
    from pam_totp.system import sudo
    from pam_totp.system.people import SUDO_SERVICES

    caller = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    user = str(args.for_user or ("root" if args.service in ("su", "su-l") else caller))
    try:
        user = pwd.getpwnam(user).pw_name
    except KeyError:
        raise CommandError(f"unknown user {user}: no account has that name") from None
    if args.service not in SUDO_SERVICES:
        return user
    rules = sudo.rules(user)
    if rules.asks_other is not None:
        print(f"sudo asks for the password and the code of {rules.other} ({rules.asks_other}): log in as {rules.other}")
        return rules.other
    if user == "root":
        raise CommandError("sudo never asks root for a code (name another user with --for-user)", WRONG_USAGE)
    return user


def _first_factor(service: str, user: str) -> FirstFactor:
    """Return the first factor in use: a key if the service is sshd and refuses passwords, else a password."""
    from pam_totp.system import sshd

    if service != "sshd":
        return "password"
    return "password" if sshd.accepts_passwords(sshd.settings(user)) else "key"


def _check(machine: Machine, service: str, changes: Sequence[Change], user: str, first: FirstFactor) -> None:
    """Run the doctor's checks on the machine with the changes applied. Raise CommandError if they find an error."""
    from pam_totp.system.doctor import checks
    from pam_totp.system.doctor.context import Context
    from pam_totp.system.enable import plan
    from pam_totp.system.pamd.findings import errors

    after = plan.texts(changes, machine)
    covered = [name for name in plan.services_for(service) if machine.after(after).service(name) is not None]
    findings = checks.examine(Context(machine.after(after), covered, user, first))
    _print_findings(findings)
    if errors(findings):
        raise _unchanged(service, "the checks found errors (fix them, then run the command again)")


def _print_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        print(f"{finding.severity}: {finding.what}\n    {finding.remedy}", flush=True)


def _rehearse(machine: Machine, service: str, changes: Sequence[Change], user: str, first: FirstFactor) -> None:
    from pam_totp.system import rehearsal
    from pam_totp.system.enable import plan
    from pam_totp.system.pamd.stack import StackError

    print(f"\nrehearsal: log in to {service} as {user}, through the new stack; nothing has been changed yet")
    try:
        with rehearsal.private_copy(machine.after(plan.texts(changes, machine)), service) as folder:

            def prove(*, after_key: bool) -> None:
                rehearsal.prove(service, user, answer_pam, folder, _print_step, after_key=after_key)

            rehearsal.in_child(service, lambda: prove(after_key=first == "key"))
            if first == "key-or-password":
                print(f"\nrehearsal of a login after a key: {rehearsal.NEXT_CODE}")
                rehearsal.in_child(service, lambda: prove(after_key=True))
    except (rehearsal.RehearsalError, StackError) as e:
        raise _unchanged(service, e) from None


def _print_step(text: str) -> None:
    print(f"  {text}", flush=True)


def _wait_for_confirmation(service: str, keep_within: int) -> int:
    """Wait until the trial is confirmed or rolled back. Return the exit status."""
    from pam_totp.system.enable import trial
    from pam_totp.system.rehearsal import NEXT_CODE

    try:
        if service == "sshd":
            _validate_sshd()
        print(f"\n{service} now asks for a code, on trial. Log in from a second terminal, then run there:\n")
        print(f"    {CONFIRM.get(service, CONFIRM['sudo']).format(service)}\n")
        if service == "su":
            print(f"Run 'su - USER' if root has no password, and in that login: {CONFIRM['sudo'].format(service)}\n")
        print(f"within {keep_within} seconds, or the change is rolled back. Each login needs another code: {NEXT_CODE}")
        print("Keep this terminal open.", flush=True)
        while trial.load(service, trial.TRIAL) is not None:
            time.sleep(POLL)
    except BaseException:  # roll back on Ctrl-C, or if the sshd configuration is invalid
        for line in trial.roll_back(service):
            print(line)
        trial.log("roll-back", service, why="interrupted, or sshd refused the change")
        raise
    if trial.load(service, trial.KEPT) is None:
        print(f"{service} was rolled back: the change was not confirmed")
        return REFUSED
    print(f"confirmed: {service} asks for a code from now on (to roll back: pam-totp disable {service})")
    return DONE


def _validate_sshd() -> None:
    """Validate the new sshd configuration, then reload sshd. Raise CommandError if a login could bypass PAM."""
    from pam_totp.system import sshd
    from pam_totp.system.doctor import checks_login
    from pam_totp.system.doctor.context import Context
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd import findings

    errors = findings.errors(list(checks_login.ssh(Context(Machine(), ["sshd"]))))
    if errors:
        _print_findings(errors)
        raise _unchanged("sshd", "its configuration lets logins bypass the new stack")
    if not sshd.reload():
        print("sshd must be reloaded by hand: no running sshd was found (run 'kill -HUP PID')")


def _keep(service: str) -> int:
    from pam_totp.system.enable import trial
    from pam_totp.system.enable.process_origin import why_not_second_login

    record = trial.load(service, trial.TRIAL)
    if record is None:
        raise CommandError(f"{service} is not on trial (see 'pam-totp enable {service}')")
    why = why_not_second_login(service, record.began, record.terminal, os.environ)
    if why is not None:
        raise CommandError(why)
    trial.keep(service)
    print(f"{service} asks for a code from now on")
    return DONE
