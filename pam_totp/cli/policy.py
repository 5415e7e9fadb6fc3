"""policy: show the settings in force for a service, and the source of each value."""

from __future__ import annotations

import argparse
import sys

from pam_totp.cli.command_line import DONE, CommandError, Commands, add_command, add_config, site_file
from pam_totp.cli.printing import print_json, print_table
from pam_totp.core.settings import SITE_FILE, Settings, SettingsError, settings
from pam_totp.pam.admission import arguments_of_others, may_choose
from pam_totp.pam.login_session import read_site

DEFAULT, NOT_ROOT = "default", "not root"
AUTHORITIES = """\
The authorities decide on every answer, by [policy] and [service] of their site files. With nullok or grace_period,
this host also asks the authorities before the prompt."""


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
        of_others = settings(service, arguments_of_others(arguments), site)
    except SettingsError as e:
        raise CommandError(f"{e} (see pam_totp(8))") from None
    rows = [(name, value, origin.replace(SITE_FILE, file)) for name, value, origin in in_force(chosen)]
    of_root = {name: value for name, value, _ in rows}  # by name; on a member, store= changes the names
    others = [(n, v, o.replace(SITE_FILE, file)) for n, v, o in in_force(of_others)]
    others = [
        (name, value, origin if name not in _FORCED or origin != "argument" else NOT_ROOT)
        for name, value, origin in others
        if name not in of_root or value != of_root[name]
    ]
    ignored = [argument for argument in arguments if not _applies_to_all(argument)]
    clients = sorted(account for account, name in site.clients.items() if name == service)
    if args.json:
        found = {name: {"value": value, "from": origin} for name, value, origin in others}
        print_json(
            {name: {"value": value, "from": origin} for name, value, origin in rows}
            | {"decided_by": "this host" if chosen.member is None else "authorities"}
            | {"others": {"clients": clients, "ignored": ignored, "settings": found}}
        )
        return DONE
    print_table(("SETTING", "VALUE", "FROM"), [(name, _text(value), origin) for name, value, origin in rows])
    if chosen.member is not None:
        print(f"\n{AUTHORITIES}")
    print("\nThese settings apply to programs of root. For other programs, the following settings differ:\n")
    print_table(("SETTING", "VALUE", "FROM"), [(name, _text(value), origin) for name, value, origin in others])
    if ignored:
        print(
            f"\nignored for other programs: {' '.join(ignored)} (the site file can set forward_pass for this service)"
        )
    print(f"\nallowed queries: root about every user; {_clients(clients)}every other account about itself")
    return DONE


_FORCED = ("grace_period", "second_prompt")  # settings that `admission` fixes for programs of other accounts


def _applies_to_all(argument: str) -> bool:
    """Return True if the module itself uses the argument, or if programs of other accounts may set it."""
    of_relay = argument == "nodelay" or argument.startswith(("socket=", "helper="))
    return of_relay or argument == "no_second_prompt" or may_choose(argument)


def _clients(accounts: list[str]) -> str:
    return f"{', '.join(accounts)} (in [clients]) about every user; " if accounts else ""


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
    origins = {"authorities": f"{SITE_FILE} [member]", **chosen.origins}
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
