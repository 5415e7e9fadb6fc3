"""disable: restore the files that enable has changed."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, WRONG_USAGE, CommandError, Commands, add_command
from pam_totp.cli.enable import DRY_RUN, require_root


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "disable",
        run,
        "restore the files that enable has changed",
        "pam-totp disable sudo",
        "pam-totp disable --all --dry-run",
        store=False,
    )
    parser.add_argument("service", nargs="?", help="name of the PAM service, as given to enable")
    parser.add_argument(
        "--all",
        action="store_true",
        help="restore all services, or fail if a file was edited or cannot be written",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the result, and change nothing")


def run(args: argparse.Namespace) -> int:
    from pam_totp.system.enable.changes import ChangeError  # imported here: few commands need this module
    from pam_totp.system.enable.trial import TrialError

    if args.all == (args.service is not None):
        raise CommandError("either SERVICE or --all is required", WRONG_USAGE)
    require_root("disable")
    try:
        return _disable_all(args.dry_run) if args.all else _disable(args.service, args.dry_run)
    except (ChangeError, TrialError) as e:
        raise CommandError(str(e) if args.all else f"{args.service} was not changed: {e}") from None


def _disable(service: str, dry_run: bool) -> int:
    from pam_totp.system.enable import trial
    from pam_totp.system.machine import Machine

    states = [state for name, state in trial.records() if name == service]
    if not states:
        if service in Machine().services_with_module():
            raise CommandError(f"{service} was not set up by 'pam-totp enable' (remove the pam_totp line by hand)")
        raise CommandError(f"{service} is not enabled (see 'pam-totp doctor')")
    # The dry run raises an exception for a change that cannot be rolled back, before any file is written.
    lines = trial.dry_roll_back(service, states[0])
    if not dry_run:
        lines = trial.roll_back(service, states[0])
        trial.log("disable", service)
    for line in lines:
        print(line)
    print(DRY_RUN if dry_run else f"{service} no longer asks for a code")
    return DONE


def _disable_all(dry_run: bool) -> int:
    from pam_totp.system.enable import trial
    from pam_totp.system.machine import Machine

    lines = trial.dry_roll_back_all(Machine()) if dry_run else trial.roll_back_all(Machine())
    for line in lines:
        print(line)
    print(DRY_RUN if dry_run and lines else "no service asks for a code")
    return DONE
