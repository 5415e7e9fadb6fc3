"""Bringing a token back into step from far away, by an admin (RFC 4226 §7.4, RFC 6238 §6)."""

from __future__ import annotations

from collections.abc import Callable

from pam_totp.oath import find
from pam_totp.record import HotpToken, Token, TotpToken
from pam_totp.verify import steps_around

_SLICE = 1_000_000  # moving factors between two reports: under a second

Progress = Callable[[int, int], None]  # done, total


def candidates(token: Token, count: int, now: int, reach: int) -> range:
    """Where the first of `count` codes may stand: up to `reach` counters ahead, or `reach` steps either way, and
    never where one was accepted before."""
    if isinstance(token, HotpToken):
        return range(token.counter, token.counter + reach + 1)
    assert isinstance(token, TotpToken)
    return steps_around(token, count, now, reach)


def locate(token: Token, codes: tuple[str, ...], within: range, progress: Progress) -> int | None:
    """The first position in `within` at which `codes` stand in a row, or None; `progress` hears of every slice."""
    for start in range(within.start, within.stop, _SLICE):
        part = range(start, min(start + _SLICE, within.stop))
        found = find(token.secret, codes, part, token.digits, token.algorithm)
        progress(part.stop - within.start if found is None else len(within), len(within))
        if found is not None:
            return found
    return None
