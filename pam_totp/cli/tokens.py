"""list, rename, enable-token, disable-token, remove: which tokens a user has."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from pam_totp.cli.common import (
    DONE,
    OUT_OF_REACH,
    Commands,
    change,
    command,
    confirm,
    count,
    named_token,
    new_name,
    now,
    one_token,
    open_store,
    own_file,
    read,
    token_facts,
    user_of,
    when,
)
from pam_totp.cli.printing import Table, print_json_pieces
from pam_totp.core.record import Token, TotpToken, UserRecord
from pam_totp.store import NotThere, Store, StoreError


def add_to(commands: Commands) -> None:
    listing = command(commands, "list", run_list, "show who has which tokens", data=True)
    listing.add_argument("user", nargs="?", help="only this one's")

    rename = command(commands, "rename", run_rename, "give a token another name")
    rename.add_argument("user")
    rename.add_argument("token", help="its name")
    rename.add_argument("name", help="its new name")

    for name, enabled, summary in (
        ("enable-token", True, "put a token to use again"),
        ("disable-token", False, "refuse a token's codes until it is enabled again"),
    ):
        switch = command(commands, name, run_switch, summary)
        switch.set_defaults(enabled=enabled)
        switch.add_argument("user")
        switch.add_argument("token", nargs="?", help="its name; not needed where there is one only")

    remove = command(commands, "remove", run_remove, "take a token away")
    remove.add_argument("user")
    remove.add_argument("token", nargs="?", help="its name; not needed where there is one only")
    remove.add_argument("--all", action="store_true", help="all tokens, and the recovery codes")
    remove.add_argument("--yes", action="store_true", help="do not ask")


def run_list(args: argparse.Namespace) -> int:
    store = open_store(args)
    became = {DONE}
    records = iter([read(store, user_of(args))]) if args.user else _records(store, became)
    if args.json:
        print_json_pieces(_record_facts(record) for record in records)
        return max(became)
    with Table(("USER", "TOKEN", "TYPE", "CODES", "STATE", "LAST USED")) as table:
        for record in records:
            for token in record.tokens:
                table.add(_row(record, token))
            for remark in _remarks(record):
                table.remark(f"{record.user}: {remark}")
    if not table.rows and max(became) == DONE:
        print(f"{'you have no' if own_file(args) else 'nobody has a'} token yet (see 'pam-totp enroll --help')")
    return max(became)


def _records(store: Store, became: set[int]) -> Iterator[UserRecord]:
    """All of them by name, one at a time: of a hundred thousand users, their names alone are held. What cannot be read
    is said, and adds to `became`, the exit
    statuses."""
    for user in sorted(store.users()):
        try:
            yield store.read(user)
        except NotThere:  # removed meanwhile
            continue
        except StoreError as e:  # the others are in order
            print(f"pam-totp: {e}", file=sys.stderr)
            became.add(OUT_OF_REACH)


def _row(record: UserRecord, token: Token) -> tuple[str, ...]:
    kind = f"{token.period} s" if isinstance(token, TotpToken) else f"counter {token.counter}"  # type: ignore[attr-defined]
    codes = f"{token.digits} digits, {token.algorithm}, {kind}"
    state = "disabled" if not token.enabled else "active" if token.confirmed else "unconfirmed"
    return record.user, token.name, token.type, codes, state, when(token.last_used)


def _remarks(record: UserRecord) -> list[str]:
    failures, _ = record.failures_now(now())
    found = []
    if record.recovery:
        found.append(f"{count(len(record.recovery), 'recovery code')} left")
    elif record.salt is not None:
        found.append(f"no recovery codes left (see 'pam-totp recovery {record.user}')")
    if failures:
        found.append(f"{count(failures, 'wrong answer')} counted (see 'pam-totp unlock {record.user}')")
    return found


def _record_facts(record: UserRecord) -> dict[str, Any]:
    failures, _ = record.failures_now(now())
    return {
        "user": record.user,
        "tokens": [token_facts(record.user, t) for t in record.tokens],
        "recovery_left": len(record.recovery),
        "failures": failures,
        "refused": record.refused,
    }


def run_rename(args: argparse.Namespace) -> int:
    store = open_store(args)
    user = user_of(args)

    def renamed(record: UserRecord) -> tuple[UserRecord, None]:
        token = named_token(record, args.token)
        if args.name != token.name:
            new_name(record, args.name, "choose another")
        return record.with_changed(token, token.renamed(args.name)), None

    change(store, user, renamed)
    print(f"{user}'s {args.token} is now called {args.name}")
    return DONE


def run_switch(args: argparse.Namespace) -> int:
    store = open_store(args)
    user = user_of(args)

    def switched(record: UserRecord) -> tuple[UserRecord, Token]:
        token = named_token(record, args.token) if args.token else one_token(record)
        return record.with_changed(token, token.switched(args.enabled)), token

    token = change(store, user, switched)
    print(f"{user}'s {token.name} is {'enabled' if args.enabled else 'disabled: its codes are refused'}")
    return DONE


def run_remove(args: argparse.Namespace) -> int:
    store = open_store(args)
    user = user_of(args)
    record = read(store, user)
    if args.all:
        confirm(f"remove all that {user} has? logins that need a code will be refused", args)
        change(store, user, lambda _: (None, None))
        print(f"{user} has no tokens now")
        return DONE
    name = named_token(record, args.token).name if args.token else one_token(record).name
    if len(record.tokens) == 1:
        lost = f", and {len(record.recovery)} recovery codes" if record.recovery else ""
        confirm(f"remove the last token of {user}{lost}? logins that need a code will be refused", args)

    def without(found: UserRecord) -> tuple[UserRecord | None, None]:
        named_token(found, name)
        left = found.without_token(name)
        return (left if left.tokens else None), None

    change(store, user, without)
    print(f"{user} no longer has the token {name}")
    return DONE
