"""doctor: find problems that lock users out, or let them in without a code."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, REFUSED, CommandError, Commands, add_command
from pam_totp.cli.printing import count, print_json
from pam_totp.cli.terminal import styled


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "doctor",
        run,
        "find problems that lock users out, or let them in without a code",
        "pam-totp doctor",
        "pam-totp doctor sshd --json",
        "pam-totp doctor --repair",
        data=True,
        store=False,
    )
    parser.add_argument("service", nargs="*", help="services to check (default: every service that uses the module)")
    parser.add_argument("--repair", action="store_true", help="repair the stores first")


def run(args: argparse.Namespace) -> int:
    from pam_totp.system.doctor import checks  # imported here: few commands need this module
    from pam_totp.system.doctor.context import Context
    from pam_totp.system.machine import Machine
    from pam_totp.system.pamd.findings import errors
    from pam_totp.system.upkeep import repair

    machine = Machine()
    services = args.service or machine.services_with_module()
    repaired: list[str] = []
    failed: list[str] = []
    if args.repair:
        for folder in filter(os.path.isdir, Context(machine, services).stores()):
            done, errors_of_repair = repair(folder)
            args.audit.store = folder
            args.audit.changed_many("repair", ({"repaired": text} for text in done))
            repaired += [f"{folder}: {text}" for text in done]
            failed += [f"{folder}: not repaired: {text}" for text in errors_of_repair]
    context = Context(machine, services)
    findings = checks.examine(context)
    if args.json:
        facts = {"services": services, "checked": list(checks.CHECKS), "repaired": repaired}
        facts["facts"] = {fact.name: fact.value for fact in context.facts}
        print_json(facts | {"findings": [asdict(finding) for finding in findings]})
    else:
        for text in repaired:
            print(f"repaired: {text}")
        for finding in findings:
            severity = styled(f"{finding.severity}:", finding.severity)
            print(f"{severity} {finding.what}\n    {finding.remedy}")
        for fact in context.facts:
            print(fact.text)
        print(f"checked: {', '.join(checks.CHECKS)}")
        what = f"services: {', '.join(services)}" if services else "no service asks for a code yet"
        print(f"{count(len(findings), 'finding') if findings else 'no findings'}; {what}")
    if failed:
        hint = "" if os.geteuid() == 0 else " (run the command as root)"
        raise CommandError("; ".join(failed) + hint, OUT_OF_REACH)
    return REFUSED if errors(findings) else DONE
