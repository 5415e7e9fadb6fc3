"""disable: restore the files that enable has changed."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import DONE, CommandError, Commands, add_command
from pam_totp.cli.enable import DRY_RUN, require_root


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "disable",
        run,
        "restore what enable has changed",
        "pam-totp disable sudo",
        store=False,
    )
    parser.add_argument("service")
    parser.add_argument("--dry-run", action="store_true", help="show what would be restored, and change nothing")


def run(args: argparse.Namespace) -> int:
    from pam_totp.system.enable import trial  # no other command needs these modules
    from pam_totp.system.enable.changes import ChangeError, undo
    from pam_totp.system.machine import Machine

    service = args.service
    require_root("disable")
    states = [state for name, state in trial.records() if name == service]
    if not states:
        if service in Machine().services_with_module():
            raise CommandError(f"{service} was not enabled by 'enable': remove the pam_totp line by hand")
        raise CommandError(f"{service} is not enabled")
    try:
        record = trial.load(service, states[0])
        # A dry run comes first: if one change cannot be undone, none is.
        lines = [undo(change, dry_run=True) for change in record.changes] if record else []
        if not args.dry_run:
            lines = trial.roll_back(service, states[0])
            trial.log(f"disable {service}: done")
    except (ChangeError, trial.TrialError) as e:
        raise CommandError(f"{service} was not changed: {e}") from None
    for line in lines:
        print(line)
    print(DRY_RUN if args.dry_run else f"{service} no longer asks for a code")
    return DONE
