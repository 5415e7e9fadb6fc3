"""policy: show the settings in force for a service, and the source of each value."""

from __future__ import annotations

import argparse
import sys

from pam_totp.cli.command_line import DONE, CommandError, Commands, add_command, add_config, site_file
from pam_totp.cli.printing import print_json, print_table
from pam_totp.core.settings import SITE_FILE, Settings, SettingsError, settings
from pam_totp.pam.login_session import read_site

DEFAULT = "default"


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "policy",
        run,
        "show the settings in force for a service, and the source of each value",
        "pam-totp policy sshd",
        "pam-totp policy sshd -- look_ahead=20 nullok",
        data=True,
    )
    parser.add_argument("service", help="name of the PAM service: sshd, sudo, ...")
    parser.add_argument(
        "argument", nargs="*", help="after --: module arguments to try instead of the arguments in the service file"
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    service = args.service.lower()  # libpam also converts the name to lower case
    file = site_file(args)
    arguments, site = args.argument or _module_arguments(service), read_site(file)
    try:
        chosen = settings(service, arguments, site)
    except SettingsError as e:
        raise CommandError(f"{e} (see pam_totp(8))") from None
    rows = [(name, value, origin.replace(SITE_FILE, file)) for name, value, origin in in_force(chosen)]
    if args.json:
        print_json({name: {"value": value, "from": origin} for name, value, origin in rows})
    else:
        print_table(("SETTING", "VALUE", "FROM"), [(name, _text(value), origin) for name, value, origin in rows])
    return DONE


def _module_arguments(service: str) -> tuple[str, ...]:
    """Return the arguments of the module's line in the stack of the service."""
    from pam_totp.system.machine import Machine  # imported here: not needed if the command line has module arguments
    from pam_totp.system.pamd.stack import StackError

    machine = Machine()
    if machine.service(service) is None:
        print(f"pam-totp: unknown service {service}: libpam would use 'other' (see /etc/pam.d)", file=sys.stderr)
        return ()
    try:
        rules = [h.rule for h in machine.stack(service) if h.rule.is_pam_totp]
    except StackError as e:
        raise CommandError(str(e)) from None
    if len(rules) != 1:
        several = "several lines ask for a code; these are the settings of the first line"
        print(f"pam-totp: {service}: {several if rules else 'the stack does not use the module'}", file=sys.stderr)
    return rules[0].arguments if rules else ()


def in_force(chosen: Settings) -> list[tuple[str, object, str]]:
    """Return the name, value and origin of every setting."""
    origins = chosen.origins
    return [
        (name, value, origins.get(str(value) if name == "first_pass" else name, DEFAULT))
        for name, value in chosen.facts().items()
    ]


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return repr(value) if isinstance(value, str) and value.strip() != value else str(value)
