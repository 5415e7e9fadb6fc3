"""Resynchronisation: find codes in a row far from the expected counter or step (RFC 4226 §7.4, RFC 6238 §6).

Rules:
1. Two or more codes in a row are required. A success uses the codes up, and confirms the token.
2. No lock is held during the search.
3. The token is updated only if it still exists with the same key, and if the codes are still unused.
4. The search excludes used codes, because counters and steps only increase.
5. The count of failures is lowered as after codes in a row at a login (law 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pam_totp.core.oath import find
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.verify import steps_around
from pam_totp.store import Store

_SLICE = 1_000_000  # moving factors between two reports of progress: a search of less than a second

Progress = Callable[[int, int], None]  # done, total


class NotConsecutive(Exception):
    """The error for codes that no token shows in a row within reach. The record is unchanged."""


class TokenChanged(Exception):
    """The error for a token that was used, changed or removed during the search. The record is unchanged."""


def resynchronise(
    store: Store,
    user: str,
    tokens: Iterable[Token],
    codes: tuple[str, ...],
    *,
    reach: int,
    policy: Policy,
    now: Callable[[], int],
    progress: Callable[[Token], Progress],
) -> Token:
    """Find `codes`, two or more in a row, in one of the `tokens` of `user`. Return the updated token.

    `reach` is in counters or steps, and replaces the limits of `policy`. `now` returns Unix seconds. `progress(token)`
    returns the callback for the search through that token. Raise NotConsecutive, TokenChanged, NotThere or StoreError;
    then the record is unchanged.
    """
    for token in tokens:
        if token.digits == len(codes[0]):
            within = candidates(token, len(codes), now(), reach)
            first = locate(token, codes, within, progress(token))
            if first is not None:
                break
    else:
        raise NotConsecutive

    def accept(record: UserRecord) -> tuple[UserRecord, Token]:
        current = record.token(token.name)
        if current is None or current.secret != token.secret:
            raise TokenChanged
        at = now()
        if first not in candidates(current, len(codes), at, reach):
            raise TokenChanged
        after = record.accepted(current, first, len(codes), at).lowered(policy.most_failures_kept, at)
        stored = after.token(token.name)
        assert stored is not None
        return after, stored

    return store.update(user, accept)


def candidates(token: Token, count: int, now: int, reach: int) -> range:
    """Return the counters or steps to search for the first of `count` codes.

    The range is up to `reach` counters ahead, or up to `reach` steps before and after the current step. The range
    excludes used counters and steps.
    """
    if isinstance(token, HotpToken):
        return range(token.counter, token.counter + reach + 1)
    assert isinstance(token, TotpToken)
    return steps_around(token, count, now, reach)


def is_last_accepted(token: Token, codes: tuple[str, ...]) -> bool:
    """Return True if `codes` are the last accepted codes of `token`, for example because a form was sent twice."""
    if token.digits != len(codes[0]):
        return False
    if isinstance(token, HotpToken):
        end = token.counter
    else:
        assert isinstance(token, TotpToken)
        end = 0 if token.last_step is None else token.last_step + 1
    first = end - len(codes)
    return find(token.secret, codes, range(first, first + 1), token.digits, token.algorithm) is not None


def locate(token: Token, codes: tuple[str, ...], within: range, progress: Progress) -> int | None:
    """Return the first moving factor in `within` from which `token` shows `codes` in a row, or None.

    Call `progress` after every slice, with the number of moving factors searched and the total.
    """
    for start in range(within.start, within.stop, _SLICE):
        part = range(start, min(start + _SLICE, within.stop))
        found = find(token.secret, codes, part, token.digits, token.algorithm)
        progress(part.stop - within.start if found is None else len(within), len(within))
        if found is not None:
            return found
    return None
