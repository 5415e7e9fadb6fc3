"""Tests that refusals are identical for right and wrong codes, for known and unknown users, and in each of STATES.

test_full.py tests full and read-only disks. tests/logins/test_full_disk.py counts the writes to the store. By design,
nullok discloses which users are enrolled, and grace discloses their earlier addresses. These tests use neither option.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import Token
from pam_totp.operations.authenticate import REFUSED, refusal_delay
from tests.support.pamconf import Login, Result
from tests.support.site import ME, Site, codes, fob, phone
from tests.torture.pace import LONG, report, rounds

pytestmark = pytest.mark.bare

SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
WRONG = ("000000", "000000 111111", "000000 111111 222222", "ZZZZ-ZZZZ-ZZZZ-ZZZZ", "x", "")
SAME = (Result.AUTH_ERR, ["One-time code: ", "Not accepted. Next code: "], [REFUSED], 0)
BOUND = 0.01  # seconds: the documented maximum difference of the medians of right and wrong answers, on an idle machine


class State(NamedTuple):
    """The state of a user, and answers with right codes that are refused in this state."""

    right: tuple[str, ...]
    tokens: tuple[Token, ...] = (fob(),)
    failures: int = 0
    lock_after: int = 0


def totp_in(steps: int, count: int = 1) -> str:
    token = phone(period=86_400)
    now = int(time.time()) // token.period
    return " ".join(hotp(token.secret, now + steps + i) for i in range(count))


STATES = {
    "beyond look-ahead": State((codes(11), codes(1001, 2))),
    "after five failures": State((codes(0),), failures=5),
    "after twenty failures": State((codes(0), codes(0, 2)), failures=20),
    "locked": State((codes(0), codes(0, 2), codes(0, 3)), failures=3, lock_after=3),
    "replayed": State((codes(4), codes(3, 2)), (fob(5),)),
    "disabled": State((codes(0), codes(0, 2)), (fob(enabled=False),)),
    "unconfirmed": State((codes(0), codes(0, 2)), (fob(confirmed=False),)),
    "not in a row": State((f"{codes(1)} {codes(0)}", f"{codes(0)} {codes(2)}")),
    "too early": State((totp_in(3), totp_in(2, 2)), (phone(period=86_400),)),
    "too late": State((totp_in(-3), totp_in(-4, 2)), (phone(period=86_400),)),
}


def seen(login: Login) -> tuple[Result, list[str], list[str], int]:
    """Return everything that the user can see of a login, except its duration."""
    return login.result, [p.text for p in login.prompts], [m.text for m in login.messages], login.left


def stands(site: Site, state: State) -> None:
    fields: dict[str, Any] = {"failures_at": int(time.time())} if state.failures else {}
    salted: dict[str, Any] = {"salt": SALT, "recovery": (recovery_digest(SALT, RECOVERY),)}
    site.enrol(*state.tokens, failures=state.failures, **fields, **salted)


@pytest.mark.parametrize("name", STATES)
def test_a_refused_right_answer_looks_like_a_wrong_answer(site: Site, way: str, name: str) -> None:
    state = STATES[name]
    site.config.write_text(f"[policy]\nlock_after = {state.lock_after}\n")  # for the service
    site.configure("demo", f"lock_after={state.lock_after}", way=way)
    wrong = WRONG if way == "socket" or LONG else (WRONG[0], WRONG[3])
    for answer in (*state.right, *wrong):
        stands(site, state)
        done = site.login(answer)
        assert seen(done) == SAME, answer
        assert done.seconds >= refusal_delay(Policy()), "the time to every refusal is at least the delay"
        done = site.login("x", answer)
        assert seen(done) == SAME, f"{answer} as the second answer"
        assert done.seconds >= 2 * refusal_delay(Policy())


@pytest.mark.parametrize("user", [ME, "nobody", "no-such-account", "../x", "x" * 32])
def test_a_refusal_looks_the_same_for_every_user(site: Site, user: str) -> None:
    """Test an enrolled user, an account that is not enrolled, and an unknown user."""
    site.configure()
    site.enrol()
    for answer in WRONG:
        done = site.login(answer, user=user)
        assert seen(done) == SAME, answer
        assert done.seconds >= refusal_delay(Policy())


def test_refusal_times_are_measured(site: Site) -> None:
    """Check that every refusal is delayed. Print the difference of the medians, but do not check it."""
    site.start()
    site.configure("demo", way="socket")
    state = STATES["after five failures"]
    answers = {"right": codes(0), "wrong": "000000", "malformed": "x"}
    took: dict[str, list[float]] = {name: [] for name in answers}
    for _ in range(rounds(5, 300)):
        for name, answer in answers.items():
            stands(site, state)
            done = site.login(answer)
            assert done.result is Result.AUTH_ERR
            assert done.seconds >= refusal_delay(Policy())
            took[name].append(done.seconds)
    medians = {name: statistics.median(values) for name, values in took.items()}
    spread = max(medians.values()) - min(medians.values())
    report(
        f"refusals: {', '.join(f'{name} {1000 * m:.2f} ms' for name, m in medians.items())}; the medians differ by "
        f"{1000 * spread:.2f} ms; the documented {1000 * BOUND:.0f} ms are {'kept' if spread <= BOUND else 'exceeded'}"
    )
