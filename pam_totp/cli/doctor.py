"""doctor: find problems that lock users out, or let them in without a code."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from pam_totp.cli.command_line import DONE, REFUSED, Commands, add_command
from pam_totp.cli.printing import count, print_json


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        run,
        "find problems that lock users out, or let them in without a code",
        "pam-totp doctor",
        "pam-totp doctor sshd --json",
        data=True,
        store=False,
    )
    parser.add_argument("service", nargs="*", help="services to check (default: all that use the module)")


def run(args: argparse.Namespace) -> int:
    from pam_totp.system.doctor import checks  # imported here: few commands need this module
    from pam_totp.system.doctor.context import Context
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd.findings import errors

    machine = Machine()
    services = args.service or machine.services_with_module()
    findings = checks.examine(Context(machine, services))
    if args.json:
        print_json({"services": services, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding.what}\n    {finding.remedy}")
        what = f"services: {', '.join(services)}" if services else "no service asks for a code yet"
        print(f"{count(len(findings), 'finding') if findings else 'no findings'}; {what}")
    return REFUSED if errors(findings) else DONE
