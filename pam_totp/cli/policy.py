"""policy: which settings are in force for a service, and where each of them comes from."""

from __future__ import annotations

import argparse
import sys

from pam_totp.cli.common import DONE, CommandError, Commands, add_config, command, print_json, print_table, site_file
from pam_totp.core.settings import SITE_FILE, Settings, SettingsError, settings
from pam_totp.pam.login_session import read_site

DEFAULT = "default"


def add_to(commands: Commands) -> None:
    policy = command(
        commands, "policy", run_policy, "show which settings are in force, and where each comes from", data=True
    )
    policy.add_argument("service", help="as PAM knows it: sshd, sudo …")
    policy.add_argument("argument", nargs="*", help="after --: module arguments to try, in place of the service file's")
    add_config(policy)


def run_policy(args: argparse.Namespace) -> int:
    service = args.service.lower()  # as libpam has it
    file = site_file(args)
    arguments, site = args.argument or _of_its_file(service), read_site(file)
    try:
        chosen = settings(service, arguments, site)
    except SettingsError as e:
        raise CommandError(f"{e} (see pam_totp(8))") from None
    rows = [(name, value, origin.replace(SITE_FILE, file)) for name, value, origin in in_force(chosen)]
    if args.json:
        print_json({name: {"value": value, "from": origin} for name, value, origin in rows})
    else:
        print_table(("SETTING", "VALUE", "FROM"), [(name, _shown(value), origin) for name, value, origin in rows])
    return DONE


def _of_its_file(service: str) -> tuple[str, ...]:
    """The arguments of our line in the service's stack."""
    from pam_totp.system.machine import Machine  # nothing else here looks at service files
    from pam_totp.system.pamd.stack import StackError

    machine = Machine()
    if machine.service(service) is None:
        print(f"pam-totp: there is no service {service} (see /etc/pam.d); libpam would take 'other'", file=sys.stderr)
        return ()
    try:
        ours = [h.rule for h in machine.stack(service) if h.rule.is_pam_totp]
    except StackError as e:
        raise CommandError(str(e)) from None
    if len(ours) != 1:
        what = "more than one line asks for a code; this is the first" if ours else "asks for no code as it is"
        print(f"pam-totp: {service}: {what}", file=sys.stderr)
    return ours[0].arguments if ours else ()


def in_force(chosen: Settings) -> list[tuple[str, object, str]]:
    """Every setting's name, value and origin."""
    origins = chosen.origins
    return [
        (name, value, origins.get(str(value) if name == "first_pass" else name, DEFAULT))
        for name, value in chosen.facts().items()
    ]


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value) if isinstance(value, str) and value.strip() != value else str(value)
