"""Bringing a token back into step from far away: by an admin, or by its holder in the portal (RFC 4226 §7.4,
RFC 6238 §6).

The law: the codes are used up by it; no lock is held during the search, and the token moves only if it was not moved
or changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pam_totp.core.oath import find
from pam_totp.core.record import HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.verify import steps_around
from pam_totp.store import Store

_SLICE = 1_000_000  # moving factors between two reports: under a second

Progress = Callable[[int, int], None]  # done, total


class NotInStep(Exception):
    """These codes do not stand in a row where the token could be; nothing was changed."""


class Moved(Exception):
    """The token was used or changed during the search; nothing was changed."""


def bring_back(
    store: Store,
    user: str,
    tokens: Iterable[Token],
    codes: tuple[str, ...],
    *,
    reach: int,
    now: Callable[[], int],
    progress: Callable[[Token], Progress],
) -> Token:
    """Find `codes` (two or more, in a row) among those of `tokens` of `user`, and return the token as it was stored:
    behind them, and confirmed by them. Raises NotInStep, Moved, and what a store raises.
    """
    token, first = _search(tokens, codes, reach, now, progress)

    def accept(record: UserRecord) -> tuple[UserRecord, Token]:
        current = record.token(token.name)
        if current is None or current.secret != token.secret:
            raise Moved
        if first not in candidates(current, len(codes), now(), reach):
            raise Moved
        after = record.accepted(current, first, len(codes), now())
        moved = after.token(token.name)
        assert moved is not None
        return after, moved

    return store.update(user, accept)


def _search(
    tokens: Iterable[Token],
    codes: tuple[str, ...],
    reach: int,
    now: Callable[[], int],
    progress: Callable[[Token], Progress],
) -> tuple[Token, int]:
    for token in tokens:
        if token.digits != len(codes[0]):
            continue
        first = locate(token, codes, candidates(token, len(codes), now(), reach), progress(token))
        if first is not None:
            return token, first
    raise NotInStep


def candidates(token: Token, count: int, now: int, reach: int) -> range:
    """Where the first of `count` codes may stand: up to `reach` counters ahead, or `reach` steps either way, and
    never where one was accepted before."""
    if isinstance(token, HotpToken):
        return range(token.counter, token.counter + reach + 1)
    assert isinstance(token, TotpToken)
    return steps_around(token, count, now, reach)


def stands_behind(token: Token, codes: tuple[str, ...]) -> bool:
    """Whether `codes` are the very last ones that were accepted of `token`, as when a form is sent twice."""
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
    """The first position in `within` at which `codes` stand in a row, or None; `progress` hears of every slice."""
    for start in range(within.start, within.stop, _SLICE):
        part = range(start, min(start + _SLICE, within.stop))
        found = find(token.secret, codes, part, token.digits, token.algorithm)
        progress(part.stop - within.start if found is None else len(within), len(within))
        if found is not None:
            return found
    return None
