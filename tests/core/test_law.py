"""A property test that compares `verify` with `tests/core/model.py`, over random histories of one user.

`verify` and the model receive every answer. Outcome, token, counters, steps, drift, failures and recovery codes must
agree. The record is encoded as a secret file and parsed again after each answer. The model asserts that no counter or
step is accepted twice or moves backwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import Ahead
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.verify import Earlier, NextCode, verify, work_out_ahead
from tests.core.model import DAY, LAST, Model, ModelToken

END = 2**62  # Unix seconds: all times are below it
ACCEPTED = {"code", "row", "recovery"}
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

moments = st.sampled_from([0, 59, 1_700_000_000, 2**31 - 40, 2**31, 2**32 - 5, END - 10 * DAY, END - 1])
policies = st.fixed_dictionaries(
    {
        "look_ahead": st.sampled_from([0, 1, 10, 10, 100]),
        "window": st.sampled_from([0, 1, 1, 2, 10]),
        "resync_window": st.sampled_from([0, 5, 40, 40, 1000]),
        "resync_steps": st.sampled_from([0, 0, 3, 40]),
        "lock_after": st.sampled_from([0] * 12 + [1, 4, 10]),
    }
)
recovery_codes = st.text(ALPHABET, min_size=16, max_size=16)
digits = st.text("0123456789", max_size=30)
passwords = st.builds(
    "".join, st.tuples(st.sampled_from(["", "", "", "", "secret", "pass word ", "é", "\u0663"]), digits)
)
separators = st.sampled_from(["", " ", "-", " - ", "\n", "\u00a0", "\u2013", "\u2060 ", "_"])


@st.composite
def token_fields(draw: st.DrawFn, number: int, now: int) -> dict[str, Any]:
    """Return the fields of a token, sometimes with a counter or drift near its limit."""
    fields: dict[str, Any] = {
        "name": f"t{number}",
        "secret": bytes([65 + number]) * 20,
        "algorithm": draw(st.sampled_from(["SHA1", "SHA256", "SHA512"])),
        "digits": draw(st.sampled_from([6, 6, 7, 8])),
        "enabled": draw(st.sampled_from([True] * 9 + [False])),
        "confirmed": draw(st.sampled_from([True] * 9 + [False])),
        "created": 0,
        "row_needed": draw(st.sampled_from([False, False, False, True])),
    }
    if draw(st.booleans()):
        counters = st.sampled_from([0, 0, 0, 3, 3, 2**32 - 3, 2**63 - 3, LAST - 60, LAST - 3, LAST, LAST + 1])
        return fields | {"counter": draw(counters)}
    period = draw(st.sampled_from([1, 30, 30, 60, DAY]))
    drift = draw(st.sampled_from([0, 0, 0, 0, -1, -1, 7, 7, -(2**31), 2**31 - 1, 2**31]))
    last = draw(st.none() | st.just(0) | st.integers(-12, 1).map(lambda off: now // period + off))
    return fields | {"period": period, "drift": drift, "last_step": None if last is None or last < 0 else last}


def made(fields: dict[str, Any]) -> Token:
    return HotpToken(**fields) if "counter" in fields else TotpToken(**fields)


def modelled(fields: dict[str, Any]) -> ModelToken:
    last = fields.get("last_step")
    hotp = "counter" in fields
    return ModelToken(
        name=fields["name"],
        kind="hotp" if hotp else "totp",
        key=fields["secret"],
        algorithm=fields["algorithm"],
        digits=fields["digits"],
        active=fields["enabled"] and fields["confirmed"],
        floor=fields["counter"] if hotp else 0 if last is None else last + 1,
        used_before=last is not None,
        period=fields.get("period", 0),
        drift=fields.get("drift", 0),
        row_needed=fields["row_needed"],
    )


class Law(RuleBasedStateMachine):
    """A random history of one user. Each rule gives answers to `verify` and the model, or changes time or settings."""

    @initialize(data=st.data(), now=moments, policy=policies, codes=st.lists(recovery_codes, max_size=3, unique=True))
    def begin(self, data: st.DataObject, now: int, policy: dict[str, int], codes: list[str]) -> None:
        self.now, self.policy = now, policy
        fields = [data.draw(token_fields(i, now)) for i in range(data.draw(st.integers(1, 3)))]
        failures = data.draw(st.sampled_from([0, 0, 3, 4, 18, 19]))
        salt = bytes(range(16))
        self.record = UserRecord(
            user="alice",
            tokens=tuple(made(f) for f in fields),
            salt=salt.hex(),
            recovery=tuple(recovery_digest(salt.hex(), c) for c in codes),
            failures=failures,
            failures_at=now if failures else None,
        )
        self.model = Model(
            tokens=[modelled(f) for f in fields],
            confirmed=any(f["confirmed"] for f in fields),
            salt=salt,
            recovery=list(codes),
            failures=failures,
            falls_at=now if failures else None,
        )
        self.used_codes: list[tuple[bytes, bool]] = []  # accepted answers; True for an answer after a password
        self.codes_ever = list(codes)
        self.ahead, self.ahead_is_old = Ahead(), False

    # ---- comparisons

    def ask(self, answer: bytes, *, behind_password: bool = False) -> str:
        """Give `verify` and the model one answer, in a new dialogue. Return the outcome, which is the same for both."""
        return self.converse([answer], behind_password=behind_password)

    def converse(
        self,
        answers: Sequence[bytes],
        *,
        behind_password: bool = False,
        between: Mapping[int, Callable[[], None]] = MappingProxyType({}),
    ) -> str:
        """Give `answers` to `verify` and to the model, until an answer is accepted. Return the last outcome.

        `between` maps the number of an answer to the function to call before that answer.
        """
        earlier, before = Earlier.NONE, list[tuple[bytes, str, int]]()
        ahead = self.ahead if self.ahead_is_old else work_out_ahead(self.record.tokens, self.now, Policy(**self.policy))
        # Codes that were computed for an older record must not change a decision.
        self.ahead, self.ahead_is_old = ahead, not self.ahead_is_old
        refused_before = self.model.refused
        for number, answer in enumerate(answers):
            between.get(number, lambda: None)()
            old = self.record
            parsed = Answer.parse_behind_password(answer) if behind_password else Answer.parse(answer)
            password = self.model.split(answer)[0] if behind_password else b""
            assert parsed.password(old.code_lengths) == password
            decision = verify(old, parsed, self.now, Policy(**self.policy), earlier=earlier, ahead=ahead)
            word, token = self.model.answer(answer, self.now, self.policy, before, behind_password=behind_password)
            assert (decision.outcome.value, decision.token) == (word, token)
            assert decision.outcome.accepted == (word in ACCEPTED)
            assert decision.refused_before == (refused_before if word in ACCEPTED else 0), "less this dialogue"
            pending = self.model.pending
            following = None if pending is None else NextCode(token=pending[0].name, moving_factor=pending[1])
            assert decision.next_code == following
            if word in ("malformed", "not-enrolled"):
                assert decision.record == old
            else:
                assert decision.record != old, "every other answer changes the record (law 12)"
                assert parsed.is_well_formed, "decide stores only the records of well-formed answers"
            self.record = parse(serialize(decision.record))
            assert self.record == decision.record
            if word in ACCEPTED:
                self.used_codes.append((answer, behind_password))
                break
            earlier = earlier.followed_by(parsed, decision, prompted=True)
            before.append((answer, word, self.model.failures))
        return word

    @invariant()
    def record_and_model_agree(self) -> None:
        for token, model in zip(self.record.tokens, self.model.tokens, strict=True):
            assert token.row_needed == model.row_needed
            if isinstance(token, HotpToken):
                assert token.counter == model.floor
            else:
                assert isinstance(token, TotpToken)
                assert token.last_step == (model.floor - 1 if model.used_before else None)
                assert token.drift == model.drift
        assert (self.record.failures, self.record.failures_at) == (self.model.failures, self.model.falls_at)
        assert self.record.refused == self.model.refused
        digests = [recovery_digest(self.model.salt.hex(), c) for c in self.model.recovery]
        assert list(self.record.recovery) == digests

    # ---- answers

    def factor_near(self, token: ModelToken, offset: int) -> int:
        """Return the expected moving factor of the token plus `offset`, but at least 0 and at most LAST."""
        middle = token.floor if token.kind == "hotp" else token.step(self.now) + token.drift
        return min(max(middle + offset, 0), LAST)

    def codes(self, token: ModelToken, first: int, count: int) -> list[str]:
        return [token.code(min(first + i, LAST)) for i in range(count)]

    def required_codes(self, token: ModelToken, skipped: int) -> list[str]:
        """Return as many codes as an answer needs now, after `skipped` presses of a key fob without a login."""
        standing, _ = self.model.standing(self.now)
        count = 3 if standing >= 20 else 2 if standing >= 5 or token.row_needed else 1
        first = max(self.factor_near(token, skipped if token.kind == "hotp" else 1 - count), token.floor)
        return self.codes(token, first, count)

    @rule(
        data=st.data(),
        offset=st.sampled_from([-11, -10, -2, -1, 0, 0, 0, 1, 2, 3, 10, 11, 12, 100, 101]),
        zero=st.sampled_from("0000\u0660\uff10\u2070"),  # ASCII, Arabic-Indic, full-width, superscript (invalid)
    )
    def one_code(self, data: st.DataObject, offset: int, zero: str) -> None:
        token = data.draw(st.sampled_from(self.model.tokens))
        code = token.code(self.factor_near(token, offset))
        self.ask("".join(chr(ord(zero) + int(digit)) for digit in code).encode())

    @rule(
        data=st.data(),
        count=st.integers(2, 3),
        offset=st.sampled_from([-11, -10, -9, -3, -2, -1, 0, 0, 0, 1, 2, 5, 6, 39, 40, 41, 1000, 1001]),
        separator=separators,
    )
    def codes_in_a_row(self, data: st.DataObject, count: int, offset: int, separator: str) -> None:
        token = data.draw(st.sampled_from(self.model.tokens))
        self.ask(separator.join(self.codes(token, self.factor_near(token, offset), count)).encode())

    @rule(data=st.data(), again=st.integers(0, 2))
    def the_holder_logs_in(self, data: st.DataObject, again: int) -> None:
        """Answer with as many codes as required, after `again` presses of a key fob without a login."""
        token = data.draw(st.sampled_from(self.model.tokens))
        self.ask("".join(self.required_codes(token, again)).encode())

    @rule(data=st.data(), shape=st.sampled_from(["ba", "aa", "ac", "aba", "abb", "acb", "bca", "abd", "abcd", "ax"]))
    def codes_not_in_a_row(self, data: st.DataObject, shape: str) -> None:
        """Answer with codes of one token in the order `shape`; `x` is a code of another token."""
        token, other = data.draw(st.permutations(self.model.tokens * 2))[:2]
        codes = [*self.codes(token, self.factor_near(token, 0), 4), other.code(self.factor_near(other, 0))]
        self.ask("".join(codes["abcdx".index(letter)] for letter in shape).encode())

    @precondition(lambda self: self.used_codes)
    @rule(data=st.data())
    def a_replay(self, data: st.DataObject) -> None:
        answer, behind_password = data.draw(st.sampled_from(self.used_codes))
        self.ask(answer, behind_password=behind_password)

    @rule(data=st.data(), again=st.sampled_from([1, 1, 4, 15]))
    def wrong_codes(self, data: st.DataObject, again: int) -> None:
        size = data.draw(st.sampled_from(self.model.tokens)).digits
        for _ in range(again):
            self.ask(data.draw(st.text("0123456789", min_size=size, max_size=size)).encode())

    @precondition(lambda self: self.codes_ever)
    @rule(data=st.data(), lower=st.booleans(), hyphens=st.booleans())
    def a_recovery_code(self, data: st.DataObject, lower: bool, hyphens: bool) -> None:
        code = data.draw(st.sampled_from(self.codes_ever))
        typed = "-".join(code[i : i + 4] for i in range(0, 16, 4)) if hyphens else code
        typed = typed.replace("1", "l").replace("0", "O") if hyphens else typed
        self.ask((typed.lower() if lower else typed).encode())

    @rule(
        data=st.data(),
        offset=st.sampled_from([-2, -1, 0, 1, 11, 39, 40]),
        shape=st.sampled_from(
            ["ab", "ab", "abc", "abc", "aa", "aba", "abb", "ac", "ba", "xb", "abd", "wa", "wwa", "mab"]
        ),
    )
    def codes_across_answers(self, data: st.DataObject, offset: int, shape: str) -> None:
        """Answer with one code at a time: `x` is a code of another token, `w` a wrong code, `m` malformed."""
        token, other = data.draw(st.permutations(self.model.tokens * 2))[:2]
        codes = dict(zip("abcd", self.codes(token, self.factor_near(token, offset), 4), strict=True))
        codes |= {"x": other.code(self.factor_near(other, 0)), "w": "0" * token.digits, "m": "123456789"}
        self.converse([codes[letter].encode() for letter in shape])

    @rule(
        data=st.data(),
        offset=st.sampled_from([0, 1, 11, 39]),
        last=st.sampled_from([0, 1, 2, 2, 2, 3]),
        change=st.sampled_from(["", "", "time", "policy", "clock"]),
        policy=policies,
    )
    def three_answers_when_three_codes_are_needed(
        self, data: st.DataObject, offset: int, last: int, change: str, policy: dict[str, int]
    ) -> None:
        """Give a pair and a third code. The clock or the policy can change before the third code."""
        self.model.failures, self.model.falls_at = 20, self.now
        self.record = parse(serialize(self.record.unlocked()))
        for _ in range(20):
            self.record = self.record.refused_as_wrong(self.now)
        self.model.refused = self.record.refused
        token = data.draw(st.sampled_from(self.model.tokens))
        first = self.factor_near(token, offset if token.kind == "hotp" else -1)
        codes = self.codes(token, first, 4)

        def before_the_third() -> None:
            if change == "time":
                self.time_passes(30)
            elif change == "clock":
                self.now = max(self.now - 30, 0)
            elif change:
                self.policy = policy

        self.converse([code.encode() for code in (codes[0], codes[1], codes[last])], between={2: before_the_third})

    @precondition(lambda self: self.codes_ever)
    @rule(data=st.data(), first=st.sampled_from(["000000", "ZZZZ-ZZZZ-ZZZZ-ZZZZ", "x", "same"]))
    def a_recovery_code_as_the_second_answer(self, data: st.DataObject, first: str) -> None:
        code = data.draw(st.sampled_from(self.codes_ever))
        self.converse([(code.lower() if first == "same" else first).encode(), code.encode()])

    @rule(
        answer=st.one_of(
            recovery_codes.map(str.encode),  # recovery codes that the user does not have
            st.text("0123456789", min_size=16, max_size=16).map(str.encode),  # read as a recovery code or as two codes
            st.builds(lambda n, digit: n * digit, st.integers(1, 26), st.sampled_from([b"0", b"7"])),
            st.binary(max_size=20),
            st.sampled_from([b"", b"\b\n\r\177INCORRECT", b"1" * 600, " ١٢٣٤٥٦".encode(), b"12345\0", b"password"]),
        )
    )
    def anything_else(self, answer: bytes) -> None:
        self.ask(answer)

    # ---- answers after a password

    @rule(data=st.data(), password=passwords, count=st.sampled_from([1, 1, 1, 2, 3]), offset=st.integers(-2, 2))
    def codes_behind_a_password(self, data: st.DataObject, password: str, count: int, offset: int) -> None:
        token = data.draw(st.sampled_from(self.model.tokens))
        codes = self.codes(token, self.factor_near(token, offset), count)
        self.ask("".join([password, *codes]).encode(), behind_password=True)

    @rule(data=st.data(), password=passwords)
    def the_holder_logs_in_with_a_password(self, data: st.DataObject, password: str) -> None:
        token = data.draw(st.sampled_from(self.model.tokens))
        self.ask("".join([password, *self.required_codes(token, 0)]).encode(), behind_password=True)

    @rule(data=st.data(), extra=st.integers(0, 3))
    def a_password_that_is_itself_codes(self, data: st.DataObject, extra: int) -> None:
        """Answer with `extra` zeros and one to four codes in a row. The first digits can be the password."""
        token = data.draw(st.sampled_from(self.model.tokens))
        codes = self.codes(token, self.factor_near(token, 0), 4)
        self.ask("".join(["0" * extra, *codes[: data.draw(st.integers(1, 4))]]).encode(), behind_password=True)

    @precondition(lambda self: self.used_codes)
    @rule(data=st.data(), password=passwords)
    def a_replay_behind_a_password(self, data: st.DataObject, password: str) -> None:
        answer, _ = data.draw(st.sampled_from(self.used_codes))
        self.ask(password.encode() + answer, behind_password=True)

    @rule(
        answer=st.builds(lambda password, digits: (password + digits).encode(), passwords, digits)
        | st.builds(lambda password, code: (password + code).encode(), passwords, recovery_codes)
        | st.binary(max_size=20)
    )
    def anything_else_behind_a_password(self, answer: bytes) -> None:
        self.ask(answer, behind_password=True)

    # ---- changes of the clock, and by the administrator

    @rule(seconds=st.sampled_from([1, 29, 30, 30, 60, 60, 90, 3600, DAY - 1, DAY, DAY + 1, 3 * DAY, 30 * DAY]))
    def time_goes_by(self, seconds: int) -> None:
        self.time_passes(seconds)

    def time_passes(self, seconds: int) -> None:
        self.now = min(self.now + seconds, END - 1)

    @rule(seconds=st.sampled_from([1, 30, DAY, 10 * DAY, 40 * 365 * DAY]), or_to=st.none() | moments)
    def the_clock_is_set(self, seconds: int, or_to: int | None) -> None:
        self.now = or_to if or_to is not None else max(self.now - seconds, 0)

    @rule(policy=policies, data=st.data(), what=st.sampled_from(["policy", "policy", "switch", "unlock"]))
    def an_admin_changes_something(self, policy: dict[str, int], data: st.DataObject, what: str) -> None:
        if what == "policy":
            self.policy = policy
        elif what == "unlock":
            self.record = self.record.unlocked()
            self.model.failures, self.model.falls_at = 0, None
        else:
            number = data.draw(st.integers(0, len(self.model.tokens) - 1))
            token = self.record.tokens[number]
            self.record = self.record.with_changed(token, token.switched(not token.enabled))
            self.model.tokens[number].active = self.record.tokens[number].active


@pytest.mark.parametrize("lengths", [set(s) for n in range(4) for s in itertools.combinations((6, 7, 8), n)], ids=str)
@pytest.mark.parametrize("start", ["", "secret", "\u0663"], ids=ascii)
def test_a_numeric_password_of_any_length_is_split_like_in_the_model(start: str, lengths: set[int]) -> None:
    tokens = [{"name": f"{n}", "secret": b"x" * 20, "algorithm": "SHA1", "digits": n, "counter": 0} for n in lengths]
    active = [modelled(fields | {"enabled": True, "confirmed": True, "row_needed": False}) for fields in tokens]
    model = Model(tokens=active, confirmed=True, salt=b"", recovery=[])
    for size in range(60):
        answer = start.encode() + (b"0123456789" * 6)[:size]
        parsed = Answer.parse_behind_password(answer)
        assert (bytes(parsed.password(lengths)), "".join(parsed.codes(lengths) or ())) == model.split(answer)


TestLaw = Law.TestCase
TestLaw.settings = settings(max_examples=3 * settings().max_examples // 2, stateful_step_count=40)
