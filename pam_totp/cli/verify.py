"""verify: check an answer as a login does."""

from __future__ import annotations

import argparse

from pam_totp.cli.command_line import (
    DONE,
    REFUSED,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_config,
    site_file,
)
from pam_totp.cli.printing import print_json
from pam_totp.cli.prompts import ask
from pam_totp.cli.store_access import ONESELF, logged_changes, now, open_store, read, token_name_in, user_before
from pam_totp.cli.terminal import styled
from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.settings import settings
from pam_totp.core.verify import Decision, Outcome
from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import Origin, decide, facts
from pam_totp.pam.login_session import read_site
from pam_totp.store import clock_of
from pam_totp.system.audit import SERVICE


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "verify",
        run,
        "check an answer as a login does: a wrong answer is counted, and a right code is used up",
        "pam-totp verify alice 755224",
        "pam-totp verify alice < code.txt",
        data=True,
    )
    parser.add_argument("user", nargs="?", help=f"owner of the code ({ONESELF})")
    parser.add_argument(
        "code", nargs="*", default=[], help="one code, codes in a row, or a recovery code (default: prompt for it)"
    )
    add_config(parser)


def run(args: argparse.Namespace) -> int:
    policy = settings(SERVICE, (), read_site(site_file(args))).policy
    store = open_store(args)
    user, word = user_before(args, store, token=False)
    codes = ([] if word is None else [word]) + args.code
    record = read(store, user)  # report an unknown user before the prompt
    name = token_name_in(record, codes)
    if name is not None:
        raise CommandError(f"'{name}' is a token, not a code (give the code alone, as at a login)", WRONG_USAGE)
    typed = " ".join(codes) or ask("code: ", hidden=True)
    answer = Answer.parse(typed.encode("utf-8", "surrogateescape"))

    with logged_changes(store) as held:
        decision = decide(held, user, answer, policy, clock_of(store, now), origin=Origin(service=SERVICE))
        verb, fields = facts(decision)
        audit_log.write(audit_log.to_syslog, SERVICE, verb, user=user, **fields, ruser=args.audit.caller)
    accepted, reason = decision.outcome.accepted, decision.outcome.value
    if args.json:
        print_json({"user": user, "accepted": accepted, "reason": reason, "token": decision.token})
    elif accepted:
        print(f"{styled('accepted', 'good')}: {reason}" + (f" of {decision.token}" if decision.token else ""))
    else:
        explanation = _explanation(decision, policy)
        print(f"{styled('refused', 'error')}: {reason}" + (f": {explanation}" if explanation else ""))
    return DONE if accepted else REFUSED


def _explanation(decision: Decision, policy: Policy) -> str | None:
    record = decision.record
    if decision.outcome is Outcome.MALFORMED:
        lengths = " or ".join(map(str, sorted(record.code_lengths)))
        if not lengths:
            return "only a recovery or temporary code is accepted: no token is enabled (see 'pam-totp enable-token')"
        return f"must be a code of {lengths} digits, two or three codes in a row, or a recovery code"
    if decision.outcome is Outcome.CONSECUTIVE_NEEDED:
        failures, _ = record.failures_now(now())
        needed = policy.codes_needed(failures)
        why = "restored backup" if needed == 1 else "too many failures"
        return f"{why}: {'three' if needed == 3 else 'two'} codes in a row are required"
    return {
        Outcome.REPLAYED: "this code or a later code was used before (try the next code)",
        Outcome.LOCKED: f"only a recovery or temporary code is accepted (see 'pam-totp unlock {record.user}')",
        Outcome.NOT_ENROLLED: "no token is confirmed",
    }.get(decision.outcome)
