"""Tests of the enrolment at the first login: its prompts, its limits, and its changes."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.oath import hotp, totp
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_SECRET, NEW_RECOVERY_CODES, Token, UserRecord
from pam_totp.core.secretfile import base32
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.core.verify import Outcome, Tickets, verify
from pam_totp.formats.qr import packed
from pam_totp.operations import first_login
from pam_totp.operations.authenticate import REFUSED
from pam_totp.operations.conversation import Waits
from pam_totp.operations.enroll import grouped_key, new_token
from pam_totp.operations.first_login import MAX_PICTURE, MAX_PROMPT, MAX_ROUNDS, NOTHING_CHANGED, PRESS_ENTER
from pam_totp.operations.qr_text import side_by_side
from pam_totp.operations.tickets import Invitation, issue_ticket
from pam_totp.operations.verifier import Result, UseStore
from tests.core.first_login_pictures import screens, svg
from tests.core.stores import NOW, Memory
from tests.core.test_dialogue import FIRST, Driver
from tests.support.site import KEY, TREE
from tests.support.terminals import scanned

ENDS = NOW + 86_400
WANTED = "Type the six digits the app shows, or q for a QR code: "
TOKEN = "token=phone created=1700000010"


def phone(key: bytes = KEY, **fields: object) -> Token:
    given = {"name": "phone", "algorithm": "SHA1", "digits": 6, "now": NOW} | fields
    return new_token("totp", secret=key, **given)  # type: ignore[arg-type]


def fob(kind: str = "hotp") -> Token:
    token = new_token(kind, name="fob", secret=b"2" * 20, algorithm="SHA1", digits=6, now=NOW)
    return token.with_serial("HT-7")


def code(offset: int = 0, key: bytes = KEY) -> bytes:
    return totp(key, NOW + 30 * offset).encode()


class FirstLogin(Driver):
    """A login of a user with a ticket. The first answer is the ticket."""

    def __init__(
        self,
        token: Token | None = None,
        *arguments: str,
        record: UserRecord | None = None,
        tickets: Tickets = Tickets.UNENROLLED,
        has_picture: bool = True,
    ) -> None:
        self.token = token or phone()
        picture = packed(self.token, "alice", "host") if has_picture else None
        record, self.ticket = issue_ticket(record or UserRecord(user="alice"), self.token, ENDS, picture)
        super().__init__(Memory(record), "enroll=ticket", *arguments)
        self.tickets = tickets
        self.meanwhile: dict[
            int, Callable[[], object]
        ] = {}  # number of a prompt after the ticket -> function to call during the prompt

    def enrols(self, *answers: bytes | None, password: bytes | None = None) -> Result:
        """Answer with the ticket, then with `answers`. Return the result."""
        return self.run(self.ticket.encode(), *answers, first_pass=password)

    def ask(self, prompt: str, *, echo: bool, meanwhile: UseStore | None) -> Waits[bytes | bytearray | None]:
        answer = yield from super().ask(prompt, echo=echo, meanwhile=meanwhile)
        if (happens := self.meanwhile.pop(len(self.prompts), None)) is not None:
            happens()
        return answer

    @property
    def prompts(self) -> list[str]:
        """Return the prompts after the ticket."""
        return [step for step in self.steps if step.startswith("\n")]

    @property
    def record(self) -> UserRecord:
        return self.store.read("alice")

    def is_unchanged(self) -> bool:
        """Return True if the ticket is still valid, for the same key."""
        decision = verify(self.record, Answer.parse(self.ticket.encode()), NOW, Policy(), tickets=Tickets.EVERYBODY)
        return (
            decision.outcome is Outcome.TICKET and self.record.invited_token == self.token and not self.record.enrolled
        )


def recovery_codes(prompt: str) -> list[str]:
    return re.findall(r"(?:[0-9A-Z]{4}-){3}[0-9A-Z]{4}", prompt)


def test_the_ticket_leads_to_the_key_and_the_right_code_to_recovery_codes() -> None:
    login = FirstLogin()
    assert login.enrols(code(), b"") is Result.ACCEPTED
    key, last = login.prompts
    assert login.steps == [FIRST, "first pass", key, last]
    assert grouped_key(login.token) in key
    assert key.endswith(f"\n{WANTED}")
    assert last.endswith(f"\n{PRESS_ENTER}")
    assert login.record.tokens[0].confirmed
    assert login.record.ticket is None
    assert [(r.accepted, r.outcome, r.service) for r in login.record.recent_logins] == [(True, "ticket", "demo")]
    codes = recovery_codes(last)
    assert len(codes) == NEW_RECOVERY_CODES
    for shown in codes:
        assert verify(login.record, Answer.parse(shown.encode()), NOW, Policy()).outcome is Outcome.RECOVERY


def test_a_ticket_an_enrolment_and_the_login_are_logged() -> None:
    login = FirstLogin()
    login.enrols(code(1), b"")
    after = f"{TOKEN} next={NOW // 30 + 2}"
    assert login.log == [
        f"presented what=ticket {TOKEN} next=0",
        f"changed what=enroll {after} type=totp at={NOW} by=ticket",
        f"changed what=recovery codes=10 at={NOW} by=ticket",
        f"accepted by=ticket {after}",
    ]
    assert login.ticket.replace("-", "") not in "".join(login.log)


def test_the_ticket_is_right_at_the_second_prompt_too() -> None:
    login = FirstLogin()
    assert login.run(b"0000-0000-0000-0000", login.ticket.encode(), code(), b"") is Result.ACCEPTED
    assert login.steps[:4] == [FIRST, "pause", NEXT_PROMPT, "first pass"]
    assert login.log[:2] == ["refused reason=not-enrolled", f"presented what=ticket {TOKEN} next=0"]


def test_every_prompt_of_the_enrolment_shows_the_answer() -> None:
    login = FirstLogin()
    login.enrols(b"q", b"000000", code(), b"")
    assert login.echo == [False, True, True, True, True]


@pytest.mark.parametrize("password", [b"horse", b"123456"])
def test_an_answer_that_is_the_password_ends_the_enrolment(password: bytes) -> None:
    login = FirstLogin()
    assert login.enrols(password, code(), password=password) is Result.REFUSED
    assert len(login.prompts) == 1
    assert login.steps[-1] == NOTHING_CHANGED
    assert login.is_unchanged()


@pytest.mark.parametrize(
    ("answers", "prompts", "reasons"),
    [
        ([b"000000"] * 9, 3, ["not-confirmed"] * 3),
        ([b"x" * 400] * 9, 3, ["not-confirmed"] * 3),
        ([b""] * 9, 2, ["no-answer"]),
        ([b" \t", b"q", b"\r"], 3, ["no-answer"]),
        ([None], 1, ["no-answer"]),
        ([b"q", None], 2, ["no-answer"]),
        ([b"q"] * 9, MAX_ROUNDS, ["not-confirmed"]),
        ([b"000000", b"000000", b"", b"q", b"Q ", b"q", b"q", b"q", code()], MAX_ROUNDS, ["not-confirmed"] * 3),
    ],
)
def test_an_enrolment_without_a_right_code_ends(answers: list[bytes | None], prompts: int, reasons: list[str]) -> None:
    login = FirstLogin()
    assert login.enrols(*answers) is Result.REFUSED
    assert len(login.prompts) == prompts
    assert login.log[1:] == [f"refused reason={reason}" for reason in reasons]
    assert login.steps[-1] == NOTHING_CHANGED
    assert login.is_unchanged()
    assert login.record.failures == 0


def test_the_same_key_comes_again_at_the_next_login() -> None:
    login = FirstLogin()
    for end in ([None], [b"q", None], [b"", b""], [b"000000", None]):
        login.enrols(*end)
    shown = [prompt for prompt in login.prompts if "█" not in prompt]
    assert len({re.search(r"( [A-Z2-7]{4})+", prompt)[0] for prompt in shown}) == 1  # type: ignore[index]
    assert login.enrols(code(), b"") is Result.ACCEPTED


@pytest.mark.parametrize("last", [b"", b"anything", None])
def test_after_the_right_code_any_last_answer_is_accepted(last: bytes | None) -> None:
    login = FirstLogin()
    assert login.enrols(code(), last) is Result.ACCEPTED
    assert login.log[-1].startswith("accepted by=ticket")


def test_in_sshd_no_text_follows_the_last_answer() -> None:
    login = FirstLogin()
    login.is_sshd = True
    assert login.enrols(None) is Result.REFUSED
    assert login.steps == [FIRST, "first pass", login.prompts[0]]


def test_a_wrong_code_waits_as_long_as_a_refusal() -> None:
    login = FirstLogin()
    login.enrols(b"000000", code(), b"")
    assert login.steps.count("pause") == 1


def test_the_q_is_offered_only_with_a_picture() -> None:
    login = FirstLogin(has_picture=False)
    assert login.enrols(b"q", code(), b"") is Result.ACCEPTED
    assert not any("QR code" in prompt or "█" in prompt for prompt in login.prompts)
    assert login.log[1] == "refused reason=not-confirmed"


def test_a_key_fob_shows_no_key_and_is_confirmed_by_two_codes_in_a_row() -> None:
    login = FirstLogin(fob())
    assert (
        login.enrols(
            hotp(b"2" * 20, 40).encode(), hotp(b"2" * 20, 40, 6).encode() + b" " + hotp(b"2" * 20, 41).encode()
        )
        is Result.ACCEPTED
    )
    assert "Take the token HT-7.\nType two codes in a row from the token" in login.prompts[0]
    assert grouped_key(login.token)[:9] not in "".join(login.prompts)
    assert "type=hotp serial=HT-7" in "".join(login.log)


def test_a_fob_with_a_clock_takes_two_codes_in_a_row_only() -> None:
    """An attacker could guess one code: the prompt hides the key, and wrong first codes are not counted."""
    row = code(40, b"2" * 20) + code(41, b"2" * 20)
    for answer, result in ((code(0, b"2" * 20), Result.REFUSED), (row, Result.ACCEPTED)):
        login = FirstLogin(fob("totp"))
        assert login.enrols(answer, b"") is result
        assert "two codes in a row from the token, in one line: " in login.prompts[0]


def test_of_two_logins_with_one_ticket_one_wins() -> None:
    login = FirstLogin()
    other = FirstLogin()
    other.store, other.ticket = login.store, login.ticket
    login.meanwhile[1] = lambda: other.enrols(code(), b"")
    assert login.enrols(code(1), b"") is Result.REFUSED
    assert other.log[-1].startswith("accepted")
    assert (login.log[-1], login.steps[-2:]) == ("refused reason=ticket-ended", ["pause", REFUSED])
    assert login.record.tokens[0].next_factor == NOW // 30 + 1, "the second code was not used up"


def test_a_ticket_that_ends_or_is_replaced_during_the_prompt_is_refused() -> None:
    for happens in ("end", "new ticket", "removal", "other token"):
        login = FirstLogin()

        def happen(login: FirstLogin = login, what: str = happens) -> None:
            if what == "end":
                login.now = ENDS
            elif what == "new ticket":
                login.store.records["alice"] = issue_ticket(login.record, phone(b"3" * 20, name="new"), ENDS)[0]
            elif what == "removal":
                del login.store.records["alice"]
            else:
                other = phone(b"4" * 20, name="other").confirmed_without_code()
                login.store.records["alice"] = login.record.with_token(other)

        login.meanwhile[1] = happen
        assert login.enrols(code(), b"") is Result.REFUSED
        assert login.log[-1] == "refused reason=ticket-ended", happens


def test_for_a_lost_phone_the_ticket_replaces_the_tokens() -> None:
    old = phone(b"9" * 20, name="old").confirmed_without_code()
    record = UserRecord(user="alice").with_token(old)
    login = FirstLogin(record=record, tickets=Tickets.EVERYBODY)
    assert login.enrols(code(), b"") is Result.ACCEPTED
    assert [token.name for token in login.record.tokens] == ["phone"]
    assert login.log[1] == f"changed what=remove token=old created={NOW} next=0 at={NOW} by=ticket"
    ordinary = FirstLogin(record=record)
    assert ordinary.enrols(code(), b"") is Result.REFUSED, "a login does not enrol an enrolled user"
    assert ordinary.log == ["refused reason=wrong", "refused reason=wrong"]


def test_a_first_pass_is_no_ticket() -> None:
    for argument in ("use_first_pass", "try_first_pass"):
        login = FirstLogin(None, argument)
        assert login.run(first_pass=login.ticket.encode()) is not Result.ACCEPTED
        assert login.prompts == []


def test_a_full_disk_denies_and_the_ticket_remains() -> None:
    login = FirstLogin()
    login.meanwhile[1] = lambda: setattr(login.store, "full", True)
    assert login.enrols(code(), b"") is Result.UNAVAILABLE
    assert login.is_unchanged()


KEYS = [phone(), phone(b"5" * MAX_SECRET, digits=8, algorithm="SHA512"), phone(b"5" * 16), fob()]
KEYS += [new_token("hotp", name="app", secret=b"5" * 64, algorithm="SHA1", digits=7, now=NOW)]
KEYS += [
    fob().with_serial("Ä" * 64),
    new_token("totp", name="a", secret=KEY, algorithm="SHA256", digits=6, now=NOW, period=60),
]


@pytest.mark.parametrize("token", KEYS)
def test_every_prompt_but_the_picture_is_short_and_in_ascii(token: Token) -> None:
    login = FirstLogin(token)
    login.enrols(b"000000", b"111111", None)
    login.steps.append(first_login.recovery_prompt(["0123-4567-89AB-CDEF"] * NEW_RECOVERY_CODES))
    assert len(login.prompts) == 4
    for prompt in login.prompts:
        assert prompt.isascii()
        assert len(prompt) <= MAX_PROMPT
        assert max(len(line) for line in prompt.split("\n")) < 80


def test_unusual_properties_of_the_token_are_shown() -> None:
    prompt = FirstLogin(KEYS[1])
    prompt.enrols(None)
    assert "Choose: 8 digits, SHA512" in prompt.prompts[0]
    assert "the eight digits" in prompt.prompts[0]


def test_the_picture_fits_one_packet_and_a_terminal_of_80_by_24() -> None:
    for number in range(40):
        login = FirstLogin(phone(bytes([number + 1]) * 20))
        login.enrols(b"q", None)
        picture = login.prompts[1]
        lines = picture.split("\n")
        assert len(lines) <= 23
        assert max(map(len, lines)) <= 79
        assert len(picture.encode()) <= MAX_PICTURE
        assert any(grouped_key(login.token) in line for line in lines[-3:])


def test_a_picture_too_large_for_a_packet_is_not_offered() -> None:
    striped = "".join(str(row % 2) * 33 for row in range(33)).ljust(1096, "0")  # two different modules in each cell
    picture = base32(int(striped, 2).to_bytes(137, "big"))
    plain = Invitation(type="totp", digits=6, codes_needed=1, key="ABCD " * 7 + "ABCD", picture=picture)
    assert len("\n".join(side_by_side(picture)).encode()) > MAX_PICTURE - 200
    assert first_login.picture_prompt(plain) is None
    assert "QR" not in first_login.key_prompt(plain)


@pytest.mark.skipif(shutil.which("zbarimg") is None, reason="requires zbarimg (Debian: zbar-tools)")
@pytest.mark.parametrize("is_dark", [True, False])
def test_zbar_reads_the_picture_on_a_dark_and_on_a_light_terminal(is_dark: bool, tmp_path: Path) -> None:
    for number in range(8):
        login = FirstLogin(phone(os.urandom(20) if number else KEY))
        login.enrols(b"q", None)
        uri = scanned(screen(login.prompts[1], is_dark=is_dark), tmp_path)
        assert uri == f"otpauth://totp/host:alice?secret={base32(login.token.secret)}"


def screen(prompt: str, *, is_dark: bool) -> list[list[int]]:
    """Return the pixels of a terminal of 80 × 24 that shows `prompt`; 1 is dark.

    `is_dark` selects a dark background. Other characters than blocks and spaces are patterns of dots.
    """
    rows: list[list[int]] = []
    for line in prompt.split("\n"):
        cells = [INK.get(character, (1, 0)) for character in line.ljust(80)]
        rows += [[cell[half] for cell in cells] for half in (0, 1)]
    rows += [[0] * 80 for _ in range(48 - len(rows))]
    return [[int(bool(ink) != is_dark) for ink in row] for row in rows]


INK = {" ": (0, 0), "█": (1, 1), "▀": (1, 0), "▄": (0, 1)}  # (upper, lower) half of a cell; 1 means the text's colour


@pytest.mark.parametrize("name", screens())
def test_the_pictures_of_the_documentation_show_these_prompts(name: str) -> None:
    assert (TREE / f"docs/images/{name}.svg").read_text("utf-8") == svg(screens()[name])
