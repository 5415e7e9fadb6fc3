"""Functions that the commands for the stock share: errors with remedies, and the prompt for the codes of a token."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from pam_totp.cli.command_line import CommandError
from pam_totp.cli.prompts import ask
from pam_totp.operations import stock
from pam_totp.operations.stock import Item, Reason, State, StockError
from pam_totp.store import Store

MAX_TRIES = 3  # answers
T = TypeVar("T")


def stock_error(error: StockError) -> CommandError:
    """Return the error of a command for an error of the stock, with a remedy."""
    remedies = {
        stock.Reason.NOT_IN_STOCK: "see 'pam-totp stock list --free'",
        stock.Reason.ASSIGNED: f"take it back first with 'pam-totp return {error.serial}' or 'unassign'",
        stock.Reason.NOT_ASSIGNED: f"see 'pam-totp stock list', or 'pam-totp list --serial {error.serial}'",
        stock.Reason.CONFIRMED: f"use 'pam-totp return {error.serial}'",
        stock.Reason.UNCONFIRMED: f"use 'pam-totp unassign {error.serial}'",
        stock.Reason.NAME_IN_USE: "choose another name with --name",
    }
    remedy = remedies.get(error.reason)
    return CommandError(f"{error}; nothing was changed" + (f" ({remedy})" if remedy else ""))


def require_free(store: Store, serial: str, found: Item | None) -> None:
    """Raise StockError if the token is not in stock, before the prompt."""
    if found is None or found.state is State.ASSIGNED:
        user = store.owner_of_serial(serial)
        raise StockError(Reason.NOT_IN_STOCK if user is None else Reason.ASSIGNED, serial, user)


def with_codes(serial: str, found: Item | None, change: Callable[[bytes], T]) -> T:
    """Ask for codes until `change` succeeds. Return its result. Raise CommandError after MAX_TRIES wrong answers."""
    is_row = found is not None and found.token is not None and found.token.row_needed
    for _ in range(MAX_TRIES):
        required = "two codes in a row" if is_row else "a code"
        try:
            return change(ask(f"{required} from {serial}: ").encode("utf-8", "surrogateescape"))
        except StockError as e:
            if e.reason not in (Reason.WRONG_CODE, Reason.CODES_NEEDED):
                raise
            is_row = is_row or e.reason is Reason.CODES_NEEDED
            required = "two codes in a row" if is_row else "a code"
            print(f"wrong answer (enter {required} from this token)", file=sys.stderr)
    raise CommandError(f"{MAX_TRIES} answers were wrong; nothing was changed")
