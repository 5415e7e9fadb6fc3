"""Tests of the dialogue of a login, without a service: its prompts, waits and messages, and its result."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.record import UserRecord
from pam_totp.core.settings import NEXT_PROMPT, settings
from pam_totp.core.verify import Tickets
from pam_totp.operations.authenticate import REFUSED, Origin
from pam_totp.operations.conversation import Pause, Waits
from pam_totp.operations.dialogue import Dialogue
from pam_totp.operations.first_login import NOTHING_CHANGED
from pam_totp.operations.verifier import LocalVerifier, Result, UseStore
from pam_totp.store import StoreError
from tests.core.stores import NOW, Memory, code
from tests.support.site import fob, phone

HERE = ("demo", "192.0.2.7")
SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
FIRST = "One-time code: "
REFUSAL = ["pause", REFUSED]


def enrolled(**fields: object) -> Memory:
    return Memory(UserRecord(user="alice", **{"tokens": (fob(),)} | fields))  # type: ignore[arg-type]


class Driver:
    """One login of `user` with given answers. `steps` lists prompts, delays and messages; `log` lists log lines."""

    def __init__(self, store: Memory, *arguments: str, user: str = "alice", origin: tuple[str, str] | None = None):
        self.store, self.user, self.chosen, self.origin = store, user, settings("demo", arguments), origin
        self.is_sshd, self.is_member = False, True
        self.steps: list[str] = []
        self.log: list[str] = []
        self.echo: list[bool] = []  # for each prompt: True if the prompt shows the typed answer
        self.now = NOW
        self.problem: str | None = None  # the problem that nullok finds in the account
        self.tickets = Tickets.NONE

    def run(self, *answers: bytes | bytearray | None, first_pass: bytes | None = None) -> Result:
        """Answer the prompts in order, and return the result.

        Omit the answer to a prompt if `answers` contains None for this prompt, or too few answers.
        """
        self.answers, self.earlier_pass = list(answers), first_pass
        verifier = LocalVerifier(
            self.chosen,
            self.user,
            lambda lock_wait: self.store,
            origin=self.origin,
            came_from=Origin(service="demo", rhost="192.0.2.7"),
            now=lambda: self.now,
            check_account=self.check_account,
            tickets=self.tickets,
        )
        login = Dialogue(self.chosen, verifier, log=self.write, is_sshd=self.is_sshd)
        waits, reply, error = login.run(self), None, None
        while True:
            try:
                wait = waits.throw(error) if error is not None else waits.send(reply)
            except StopIteration as end:
                assert isinstance(end.value, Result)
                return end.value
            reply = error = None
            try:
                if isinstance(wait, UseStore):
                    reply = wait.job(0.0)
                else:
                    assert isinstance(wait, Pause)
                    self.steps.append("pause")
            except StoreError as e:
                error = e

    def ask(self, prompt: str, *, echo: bool, meanwhile: UseStore | None) -> Waits[bytes | bytearray | None]:
        self.steps.append(prompt)
        self.echo.append(echo)
        if meanwhile is not None:
            meanwhile.job(0.0)
        yield from ()
        return self.answers.pop(0) if self.answers else None

    def first_pass(self) -> Waits[bytes | bytearray | None]:
        self.steps.append("first pass")
        yield from ()
        return self.earlier_pass

    def show(self, text: str, *, error: bool) -> None:
        assert error is (text in (REFUSED, NOTHING_CHANGED))
        self.steps.append(text)

    def hand_on(self, password: memoryview) -> None:
        self.steps.append(f"hand on {bytes(password)!r}")

    def check_account(self, lock_wait: float) -> bool:
        self.steps.append("check account")
        if self.problem is not None:
            raise StoreError(self.problem)
        return self.is_member

    def write(self, verb: str, **fields: str | int | None) -> None:
        self.log.append(" ".join([verb, *(f"{name}={value}" for name, value in fields.items() if value is not None)]))


def converse(store: Memory, *answers: bytes | None, arguments: Sequence[str] = (), user: str = "alice") -> Driver:
    """Run a login with `answers`, check that the login is refused, and return the driver."""
    driver = Driver(store, *arguments, user=user)
    assert driver.run(*answers) is Result.REFUSED
    return driver


def test_a_record_keeps_each_answer_with_its_service_and_address() -> None:
    store = enrolled()
    driver = Driver(store, "look_ahead=0")
    assert driver.run(b"000000", code(0)) is Result.ACCEPTED
    kept = [(r.at, r.accepted, r.outcome, r.service, r.rhost) for r in store.read("alice").recent_logins]
    assert kept == [(NOW, False, "wrong", *HERE), (NOW, True, "code", *HERE)]


def test_a_login_by_grace_is_not_among_the_recent_logins() -> None:
    store = enrolled()
    for now in (NOW, NOW + 1):
        driver = Driver(store, "grace_period=60", origin=HERE)
        driver.now = now
        assert driver.run(code(0)) is Result.ACCEPTED
    assert driver.log == ["accepted by=grace"]
    assert [r.at for r in store.read("alice").recent_logins] == [NOW]


END = 1_800_000_000 // 86_400 * 86_400  # the start of 2027-01-15, which is the end of the previous day


@pytest.mark.parametrize(("now", "result"), [(END - 1, Result.IGNORED), (END, Result.REFUSED)])
def test_nullok_until_ends_with_its_day(now: int, result: Result) -> None:
    driver = Driver(Memory(), "nullok_until=2027-01-14")
    driver.now = now
    assert driver.run(code(0), code(1)) is result
    assert (FIRST in driver.steps) == (result is Result.REFUSED), "afterwards, the user sees the usual prompts"


def test_nullok_group_lets_only_its_members_pass_without_a_token() -> None:
    driver = Driver(Memory(), "nullok_group=staff")
    assert (driver.run(), driver.log) == (Result.IGNORED, ["ignored reason=not-enrolled"])
    driver = Driver(Memory(), "nullok_group=staff")
    driver.is_member = False
    assert driver.run(code(0), code(1)) is Result.REFUSED
    assert driver.steps[:2] == ["check account", FIRST]
    driver = Driver(enrolled(), "nullok_group=staff")
    assert driver.run(code(0)) is Result.ACCEPTED
    assert "check account" not in driver.steps


@pytest.mark.parametrize(
    ("arguments", "answers", "steps"),
    [
        ([], [b"000000", b"000001"], [FIRST, "pause", REFUSED, NEXT_PROMPT, "pause"]),
        (["no_second_prompt"], [b"000000"], [FIRST, "pause"]),
        (["use_first_pass"], [], ["first pass", "pause"]),
    ],
)
def test_in_sshd_no_text_follows_the_last_answer(arguments: list[str], answers: list[bytes], steps: list[str]) -> None:
    driver = Driver(enrolled(), *arguments)
    driver.is_sshd = True
    assert driver.run(*answers, first_pass=b"000000") is Result.REFUSED
    assert driver.steps == steps


def test_a_right_code_is_accepted_at_the_first_prompt() -> None:
    driver = Driver(enrolled())
    assert driver.run(code(0)) is Result.ACCEPTED
    assert driver.steps == [FIRST]
    assert driver.log == ["accepted by=code token=fob created=0 next=1 ahead=0"]


def test_a_token_out_of_step_is_resynchronised_by_two_answers() -> None:
    store = enrolled(refused=1)
    driver = Driver(store)
    assert driver.run(code(40), code(41)) is Result.ACCEPTED
    assert driver.steps == [FIRST, "pause", NEXT_PROMPT, "1 answer was refused since the last login"]
    assert driver.log == [
        "refused reason=wrong",
        "accepted by=row token=fob created=0 next=42 ahead=40 refused_before=1",
    ]
    assert Driver(store).run(code(42)) is Result.ACCEPTED


ANSWERS = {
    "wrong": b"000000",
    "malformed": b"x",
    "a row": b"000000 111111",
    "a recovery code": b"ZZZZ-ZZZZ-ZZZZ-ZZZZ",
    "blank": b"",
    "of another length": b"12345678",
}


@pytest.mark.parametrize("user", ["alice", "disabled", "unproved", "unknown"])
@pytest.mark.parametrize("first", ANSWERS)
def test_every_refusal_of_every_user_is_followed_by_one_more_prompt(user: str, first: str) -> None:
    store = Memory(
        UserRecord(user="alice", tokens=(fob(),)),
        UserRecord(user="disabled", tokens=(fob(enabled=False),)),
        UserRecord(user="unproved", tokens=(fob(confirmed=False),)),
    )
    for second in ANSWERS.values():
        driver = converse(store, ANSWERS[first], second, user=user)
        assert driver.steps == [FIRST, "pause", NEXT_PROMPT, *REFUSAL]
        assert len(driver.log) == 2


@pytest.mark.parametrize("user", ["alice", "disabled", "unproved", "unknown"])
@pytest.mark.parametrize("second", ANSWERS)
@pytest.mark.parametrize("first", ANSWERS)
def test_two_answers_cost_every_user_the_same_writes(user: str, first: str, second: str) -> None:
    """A repeated answer is not verified, but causes the same writes as a verified answer."""
    store = Memory(
        UserRecord(user="alice", tokens=(fob(),)),
        UserRecord(user="disabled", tokens=(fob(enabled=False),)),
        UserRecord(user="unproved", tokens=(fob(confirmed=False),)),
    )
    converse(store, ANSWERS[first], ANSWERS[second], user=user)
    assert store.writes == sum(answer not in ("malformed", "blank") for answer in (first, second))


@pytest.mark.parametrize(("arguments", "echo"), [((), False), (("echo",), True)])
def test_the_second_prompt_shows_the_answer_if_the_first_does(arguments: tuple[str, ...], echo: bool) -> None:
    driver = converse(enrolled(), b"x", arguments=arguments)
    assert driver.echo == [echo, echo]


def test_an_answer_is_repeated_in_any_spelling() -> None:
    store = enrolled()
    assert converse(store, b"000000", b"000 000").log[1] == "refused reason=repeated"
    assert store.read("alice").failures == 1


def test_the_dialogue_asks_for_a_third_code_only_after_two_in_a_row() -> None:
    store = enrolled(failures=20, failures_at=NOW)
    driver = converse(store, code(0), code(2), code(3))
    assert driver.steps.count(NEXT_PROMPT) == 1
    driver = Driver(store)
    assert driver.run(code(40), code(41), code(42)) is Result.ACCEPTED
    assert driver.steps.count(NEXT_PROMPT) == 2
    driver = converse(enrolled(failures=20, failures_at=NOW), code(40), code(41), code(43), code(44))
    assert driver.steps.count(NEXT_PROMPT) == 2, "there is no fourth prompt"


def test_a_missing_first_answer_is_no_answer_and_a_missing_later_a_refusal() -> None:
    driver = Driver(enrolled())
    assert driver.run(None) is Result.NO_ANSWER
    assert (driver.steps, driver.log) == ([FIRST], ["refused reason=no-answer"])
    driver = converse(enrolled(), b"000000", None)
    assert driver.steps == [FIRST, "pause", NEXT_PROMPT, REFUSED]
    assert driver.log == ["refused reason=wrong", "refused reason=no-answer"]
    driver = converse(enrolled(failures=20, failures_at=NOW), code(40), code(41), None)
    assert driver.log[2:] == ["refused reason=no-answer"]


@pytest.mark.parametrize("argument", ["no_second_prompt", "forward_pass"])
def test_there_is_no_second_prompt_with(argument: str) -> None:
    driver = converse(enrolled(), b"password000000", arguments=(argument,))
    assert driver.steps.count(NEXT_PROMPT) == 0


def test_use_first_pass_has_no_prompt() -> None:
    driver = Driver(enrolled(), "use_first_pass")
    assert driver.run(code(0), first_pass=b"password") is Result.REFUSED
    assert driver.steps == ["first pass", *REFUSAL]
    driver = Driver(enrolled(), "use_first_pass")
    assert driver.run(code(0), first_pass=None) is Result.REFUSED
    assert (driver.steps, driver.log) == (["first pass", REFUSED], ["refused reason=no-answer"])
    assert Driver(enrolled(), "use_first_pass").run(first_pass=code(0)) is Result.ACCEPTED


def test_a_first_pass_is_not_one_of_the_codes_in_a_row() -> None:
    driver = Driver(enrolled(), "try_first_pass")
    assert driver.run(code(41), code(42), first_pass=code(40)) is Result.ACCEPTED
    assert driver.steps == ["first pass", "pause", FIRST, "pause", NEXT_PROMPT]
    assert driver.log == [
        "refused reason=wrong",
        "refused reason=wrong",
        "accepted by=row token=fob created=0 next=43 ahead=41",
    ]


def test_a_recovery_code_is_accepted_at_the_second_prompt() -> None:
    store = enrolled(salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    driver = Driver(store)
    assert driver.run(b"000000", RECOVERY.encode()) is Result.ACCEPTED
    assert driver.steps[-1] == "recovery code used, 0 left"


def test_an_unreachable_store_ends_the_dialogue_after_the_same_delay() -> None:
    for refused, answers in (([], [code(0)]), ([FIRST, "pause"], [b"x", code(0)])):
        driver = Driver(Memory(UserRecord(user="alice", tokens=(fob(),)), full=True))
        assert driver.run(*answers) is Result.UNAVAILABLE
        assert driver.steps == [*refused, NEXT_PROMPT if refused else FIRST, "pause"]
        assert driver.log[-1] == "error problem=no space left"


def test_nullok_ignores_only_users_who_are_not_enrolled() -> None:
    driver = Driver(enrolled(), "nullok", user="unknown")
    assert driver.run() is Result.IGNORED
    assert (driver.steps, driver.log) == (["check account"], ["ignored reason=not-enrolled"])
    driver = Driver(enrolled(tokens=(fob(enabled=False),)), "nullok")
    assert driver.run(b"x") is Result.REFUSED
    assert "check account" not in driver.steps, "an enrolled user needs a code"


def test_nullok_ignores_no_user_whose_account_has_a_problem() -> None:
    driver = Driver(enrolled(), "nullok", user="unknown")
    driver.problem = "unknown account"
    assert driver.run(code(0)) is Result.UNAVAILABLE
    assert (driver.steps, driver.log) == (["check account"], ["error problem=unknown account"])
    driver = Driver(enrolled(), user="unknown")
    driver.problem = "unknown account"
    assert driver.run(code(0)) is Result.REFUSED, "the account is checked only with nullok"


def test_grace_replaces_a_code_and_only_a_code_grants_it() -> None:
    store = enrolled(salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    there = Driver(store, "grace_period=60", origin=HERE)
    assert there.run(RECOVERY.encode()) is Result.ACCEPTED
    assert there.run(b"x", code(0)) is Result.ACCEPTED
    del there.steps[:]
    there.now += 59
    assert there.run() is Result.ACCEPTED
    assert (there.steps, there.log[-1]) == ([], "accepted by=grace")
    there.now += 1
    assert there.run() is Result.NO_ANSWER


def test_the_password_before_the_code_is_passed_on_after_a_refusal_too() -> None:
    driver = Driver(enrolled(), "forward_pass")
    assert driver.run(b"horse" + code(0)) is Result.ACCEPTED
    assert driver.steps[:2] == ["Password and one-time code: ", "hand on b'horse'"]
    driver = Driver(enrolled(), "forward_pass", user="unknown")
    assert driver.run(b"horse000000") is Result.REFUSED
    assert driver.steps[1:] == ["hand on b'horse'", "pause"]


FORWARDED: dict[str, tuple[bytes, dict[str, object], str]] = {
    "right": (code(3), {}, "alice"),
    "right after refusals": (code(3), {"refused": 3, "failures": 3, "failures_at": NOW}, "alice"),
    "a row": (code(40, 2), {"refused": 30, "failures": 7, "failures_at": NOW}, "alice"),
    "wrong": (b"000000", {}, "alice"),
    "row needed": (code(3), {"failures": 5, "failures_at": NOW}, "alice"),
    "replayed": (code(3), {"tokens": (fob(4),)}, "alice"),
    "not enrolled": (code(3), {"tokens": (fob(confirmed=False),)}, "alice"),
    "unknown": (code(3), {}, "unknown"),
}


@pytest.mark.parametrize("case", FORWARDED)
def test_no_output_before_the_password_check_shows_if_a_code_is_right(case: str) -> None:
    typed, fields, user = FORWARDED[case]
    driver = Driver(enrolled(**fields), "forward_pass", user=user)
    result = driver.run(b"horse" + typed)
    assert result is (Result.ACCEPTED if case.startswith(("right", "a row")) else Result.REFUSED)
    assert driver.steps == ["Password and one-time code: ", "hand on b'horse'", "pause"]
    assert len(driver.log) == 1
    assert ("refused_before=" in driver.log[0]) is (case in ("right after refusals", "a row")), "the remark is logged"


def test_an_answer_without_a_code_looks_like_an_answer_with_a_code() -> None:
    driver = Driver(enrolled(), "forward_pass")
    assert driver.run(b"horse") is Result.REFUSED
    assert driver.steps[1:] == ["hand on b'horse'", "pause"]


def test_the_settings_are_logged_with_debug() -> None:
    driver = converse(enrolled(), b"x", arguments=("debug",))
    assert driver.log[0].startswith("debug look_ahead=10 window=1")
    assert " second_prompt=yes" in driver.log[0]


def test_an_answer_in_a_buffer_is_read_as_one_in_bytes() -> None:
    for answer in (code(0), b"755\xe2\x80\x93224 ", "\u0667\u0665\u0665\u0662\u0662\u0664".encode()):
        assert Driver(enrolled()).run(bytearray(answer)) is Result.ACCEPTED
    assert (
        Driver(enrolled(tokens=(fob(), phone())), "forward_pass").run(bytearray(b"horse" + code(0))) is Result.ACCEPTED
    )
