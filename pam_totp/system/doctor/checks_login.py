"""Checks of logins: the order of the stack, sshd's settings, users without a token, missing changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from pam_totp.core.settings import SITE_FILE, SettingsError, settings
from pam_totp.system import sshd, sshd_files, sshd_match
from pam_totp.system.doctor.context import Context
from pam_totp.system.enable import trial
from pam_totp.system.enable.changes import read
from pam_totp.system.machine import SHARED
from pam_totp.system.pamd import analysis, edit, programs
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, names
from pam_totp.system.pamd.modules import CONSTANT_RESULTS
from pam_totp.system.pamd.stack import Handler, Rule, StackError
from pam_totp.system.pamd.verdicts import find_path, possible_results
from pam_totp.system.people import account_of

_NO_PROMPT = ("forward_pass", "use_first_pass")  # the module takes the code from the answer to another prompt
_REFUSED = {"account": "every login", "password": "every change of a password", "session": "every session"}


def stacks(context: Context) -> Iterator[Finding]:
    """Check the order of every stack that runs pam_totp.so."""
    for service in context.services:
        try:
            if context.machine.service(service) is None:
                what = f"unknown service {service}: /etc/pam.d has no file of that name"
                yield Finding(
                    ERROR, analysis.CHECK, Code.SERVICE_NOT_FOUND, what, "check the name (see 'ls /etc/pam.d')"
                )
                continue
            stack = context.machine.stack(service)
            if not is_enabled(context, service):
                what = f"{service} is not enabled yet: its stack lacks pam_totp.so"
                yield Finding(NOTE, analysis.CHECK, Code.SERVICE_NOT_ENABLED, what, f"run 'pam-totp enable {service}'")
                continue
        except StackError as e:
            what = f"{service}: {e}; libpam may refuse every login, or ask for no code"
            yield Finding(ERROR, analysis.CHECK, Code.STACK_INVALID, what, "correct that file (see pam.d(5))")
            continue
        rules = [h.rule for h in stack if h.rule.is_pam_totp]
        # PAM asks for the code only: sshd has already checked a key
        code_only = service == "sshd" and any(r.action("success") == "done" for r in rules)
        accounts = context.accounts(service) if rules else ()
        forwards = partial(_forwards, context, service)
        found = analysis.check_order(service, stack, code_only=code_only, accounts=accounts, forwards=forwards)
        for finding in found:
            other = edit.hint(finding, service, context.machine.service)
            yield finding if other is None else replace(finding, remedy=f"{finding.remedy}, or {other}")
    yield from _programs(context)
    yield from _misplaced(context)


def _programs(context: Context) -> Iterator[Finding]:
    """Report each program that sends the password as the answer to the module's prompt."""
    for service, line in context.settings():
        stack = context.machine.stack(service)
        passwords = analysis.password_modules(stack)
        is_locker = service in programs.LOCKERS
        if not passwords or (_site_first_pass(context, service) if is_locker else line.first_pass) in _NO_PROMPT:
            continue
        if service in programs.ONE_ANSWER:
            which, remedy = (
                "every prompt",
                "let users type the code after the password: see forward_pass in pam_totp(8)",
            )
            if is_locker:
                remedy = f"set 'forward_pass = true' in [service.{service}] of {SITE_FILE} (see pam_totp.toml(5))"
        elif service in programs.FIRST_ANSWER and analysis.totp_modules(stack)[0] < passwords[0]:
            which, remedy = "the first prompt", "move the pam_totp.so line after the password"
        else:
            continue
        what = f"{service}: users with a token are refused, because the program answers {which} with the password"
        yield Finding(ERROR, analysis.CHECK, Code.PROGRAM_ASKS_ONCE, what, remedy)


def _site_first_pass(context: Context, service: str) -> str | None:
    try:
        return settings(service, (), context.site()).first_pass
    except SettingsError:
        return None


def _forwards(context: Context, service: str, rule: Rule) -> bool:
    """Return True if forward_pass is in force for a line, by its arguments or by the site file."""
    try:
        return settings(service, rule.arguments, context.site()).first_pass == "forward_pass"
    except SettingsError:
        return analysis.names_forward_pass(rule)


def _misplaced(context: Context) -> Iterator[Finding]:
    """Report each line of pam_totp.so in a phase other than auth, with the services that run the line."""
    affected: dict[tuple[str, str], list[str]] = {}
    refusing: set[tuple[str, str]] = set()
    for service in context.services:
        for handler in context.machine.misplaced(service):
            phase = handler.rule.phase
            line = f"{handler.file}:{handler.rule.first + 1}", phase
            if not SHARED.fullmatch(service) or service == handler.file:
                affected.setdefault(line, []).append(service)
            if not _can_succeed(context.machine.stack(service, phase)):
                refusing.add(line)
    for (place, phase), services in affected.items():
        users = [s for s in services if not SHARED.fullmatch(s)] or services
        what = f"{place}: pam_totp.so is in the phase {phase}, where it always fails"
        if (place, phase) in refusing:
            what += f": {_REFUSED[phase]} is refused by {names(users)}"
        else:
            what += f", and its control ignores this ({names(users)})"
        severity = ERROR if (place, phase) in refusing else WARNING
        yield Finding(severity, analysis.CHECK, Code.MODULE_IN_WRONG_PHASE, what, "delete that line")


def _can_succeed(stack: Sequence[Handler]) -> bool:
    """Return True if a stack of another phase can succeed although pam_totp.so has no function for this phase."""

    def results(index: int) -> Sequence[str]:
        rule = stack[index].rule
        if stack[index].is_head or not rule.is_pam_totp:
            return ("success",) if rule.module in CONSTANT_RESULTS else possible_results(stack[index])
        return ("module_unknown",)

    return find_path(stack, results, lambda _, verdict: verdict == "success") is not None


def ssh(context: Context) -> Iterator[Finding]:
    """Check that sshd uses PAM for every login."""
    if "sshd" not in context.services or context.machine.replacements or not is_enabled(context, "sshd"):
        return  # `enable` checks sshd's settings after it has changed them
    try:
        if (error := sshd.configuration_error()) is not None:
            remedy = "correct the configuration until 'sshd -t' reports no error"
            yield Finding(ERROR, "sshd", Code.SSHD_CONFIGURATION_INVALID, f"sshd -t: {error}", remedy)
            return
        affected: dict[str, list[str]] = {}
        for user, place in sshd_match.logins(sshd_files.texts(), context.people, _groups_of):
            for bypass in sshd.bypasses(context.sshd(user, place)):
                affected.setdefault(bypass, []).append(f"{user}{place}")
        for bypass, users in affected.items():
            what = f"sshd lets users in without a code: {bypass} (for {names(sorted(set(users)))})"
            remedy = "run 'pam-totp enable sshd', or set AuthenticationMethods yourself"
            yield Finding(ERROR, "sshd", Code.SSHD_BYPASSES_PAM, what, remedy)
    except sshd.SshdError as e:
        remedy = "install openssh-server, or correct its configuration until 'sshd -t' reports no error"
        yield Finding(ERROR, "sshd", Code.SSHD_UNAVAILABLE, str(e), remedy)


def _groups_of(name: str) -> frozenset[str]:
    account = account_of(name, ())
    return frozenset() if account is None else account.groups


def is_enabled(context: Context, service: str) -> bool:
    """Return True if a stack of the service names pam_totp.so, or cannot be read: another check reports the error."""
    try:
        uses = any(h.rule.is_pam_totp for h in context.machine.stack(service))
    except StackError:
        return True
    return uses or bool(context.machine.wrong_phases(service))


def changes(context: Context) -> Iterator[Finding]:
    """Check that the files still contain the changes by `enable`."""
    try:
        records = [(s, state, trial.load(s, state)) for s, state in trial.records()]
    except trial.TrialError as e:
        remedy = "roll back that change by hand (see FILES in pam-totp(1))"
        yield Finding(WARNING, "changes", Code.RECORD_OF_CHANGE_INVALID, str(e), remedy)
        return
    for service, state, record in records:
        if state != trial.KEPT and not trial.has_watchdog(service):
            what = f"{service}: a change on trial was not rolled back"
            remedy = f"run 'pam-totp disable {service}', or confirm the change with 'enable --keep'"
            yield Finding(ERROR, "changes", Code.TRIAL_NOT_ROLLED_BACK, what, remedy)
        elif state == trial.KEPT and record is not None:
            for change in record.changes:
                if not edit.has_all(read(change.path) or "", change.added_lines):
                    what = f"{change.path}: the lines that 'enable {service}' added are missing; no code is required"
                    remedy = f"run 'pam-totp disable {service}', then 'pam-totp enable {service}'"
                    yield Finding(ERROR, "changes", Code.CHANGE_LOST, what, remedy)
