"""Bringing a token back into step from far away: where it is looked for, and that the whole of it is."""

from __future__ import annotations

import pytest

from pam_totp import resync
from pam_totp.oath import hotp
from pam_totp.record import HotpToken, TotpToken
from pam_totp.resync import candidates, locate

KEY = b"12345678901234567890"


def fob(counter: int) -> HotpToken:
    return HotpToken(name="fob", secret=KEY, created=0, counter=counter)


def phone(last_step: int | None = None, drift: int = 0, period: int = 30) -> TotpToken:
    return TotpToken(name="phone", secret=KEY, created=0, last_step=last_step, drift=drift, period=period)


def row(first: int, count: int = 2) -> tuple[str, ...]:
    return tuple(hotp(KEY, first + i) for i in range(count))


def test_an_event_token_is_looked_for_from_its_counter_on() -> None:
    assert candidates(fob(7), 2, 0, 100) == range(7, 108)


@pytest.mark.parametrize(
    ("token", "count", "within"),
    [
        (phone(), 2, range(0, 200)),  # step 100, either way, by the last of the two
        (phone(), 3, range(0, 199)),
        (phone(drift=5), 2, range(4, 205)),
        (phone(last_step=99), 2, range(100, 200)),
        (phone(last_step=0), 2, range(1, 200)),
        (phone(last_step=1000), 2, range(1001, 200)),
    ],
)
def test_a_time_token_is_looked_for_around_its_clock_and_after_its_last_step(
    token: TotpToken, count: int, within: range
) -> None:
    found = candidates(token, count, 3000, 100)
    assert list(found) == list(within)


@pytest.mark.parametrize("first", [0, 1, 9_998, 9_999, 10_000, 10_001, 19_999, 20_000, 24_999])
def test_a_row_is_found_wherever_it_stands_also_across_slices(first: int) -> None:
    assert locate(fob(0), row(first), range(25_000), lambda *_: None) == first


@pytest.mark.parametrize("first", [25_000, 25_001])
def test_a_row_beyond_the_range_is_not_found(first: int) -> None:
    assert locate(fob(0), row(first), range(25_000), lambda *_: None) is None


def test_an_empty_range_holds_nothing() -> None:
    told: list[object] = []
    assert locate(fob(0), row(0), range(5, 5), lambda *report: told.append(report)) is None
    assert told == []


def test_progress_goes_from_slice_to_slice_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(resync, "_SLICE", 10_000)
    locate(fob(0), row(50_000), range(100, 25_000), lambda done, total: told.append((done, total)))
    assert told == [(10_000, 24_900), (20_000, 24_900), (24_900, 24_900)]
    told.clear()
    locate(fob(0), row(10_200), range(100, 25_000), lambda done, total: told.append((done, total)))
    assert told == [(10_000, 24_900), (24_900, 24_900)], "what is found is the end"
