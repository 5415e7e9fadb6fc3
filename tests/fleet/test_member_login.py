"""Tests of a login on a member: prompts, texts, delays, the questions to the authority, and the lines in the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.record import UserRecord
from pam_totp.core.settings import NEXT_PROMPT, Site
from pam_totp.member import wire
from pam_totp.member.client import Client, client_of
from pam_totp.member.errors import OutOfReach
from pam_totp.operations.authenticate import REFUSED as REFUSED_TEXT
from pam_totp.operations.conversation import Pause, Waits
from pam_totp.operations.dialogue import Dialogue
from pam_totp.operations.verifier import Result, UseStore
from pam_totp.pam import login
from pam_totp.pam.protocol import Hello
from pam_totp.store import StoreError
from pam_totp.store.file import FileStore
from tests.core.stores import NOW
from tests.support.site import fob
from tests.support.tls import ACCEPTED, REFUSED, Fleet, Reply, Server, free_port

FIRST = "One-time code: "
RHOST = "192.0.2.7"
SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"
BY_RECOVERY = {**ACCEPTED, "by": "recovery", "messages": ["recovery code used, 9 left"]}


class Login:
    """A login of alice on a member. `steps` lists prompts, messages and pauses; `log` has the log lines."""

    def __init__(self, fleet: Fleet, *addresses: str, store: Path | None = None, tty: str = "pts/1", **settings: Any):
        self._settings = fleet.settings(*addresses, **settings)
        self._store, self._tty = store or fleet.folder / "none", tty
        self.steps: list[str] = []
        self.log: list[str] = []
        self.records: list[tuple[str, str] | None] = []  # one entry for each use of the authorities
        self.names = {"alice": "alice"}  # account names, with the name that each uid has

    def run(
        self,
        *answers: bytes | None,
        arguments: Sequence[str] = (),
        first_pass: bytes | None = None,
        user: str = "alice",
        rhost: str | None = RHOST,
    ) -> Result:
        self._answers, self._first_pass = list(answers), first_pass
        hello = Hello(
            version="1", service="sshd", user=user, rhost=rhost, tty=self._tty, flags=0, arguments=tuple(arguments)
        )
        host = login.Host(
            site=Site.NONE._replace(member=self._settings),
            store=str(self._store),
            log=lambda priority, line: self.log.append(line.partition("auth): ")[2]),
            now=lambda: NOW,
            passwd_name=lambda name: name,
            name_of_uid=self.names.get,
        )
        return self._drive(login.begin(hello, host))

    def _drive(self, dialogue: Dialogue) -> Result:
        waits, reply, error = dialogue.run(self), None, None
        while True:
            try:
                wait = waits.throw(error) if error is not None else waits.send(reply)
            except StopIteration as end:
                assert isinstance(end.value, Result)
                return end.value
            reply = error = None
            try:
                if isinstance(wait, UseStore):
                    self.is_remote = wait.is_remote
                    self.records.append(wait.record)
                    reply = wait.job(0.0)
                else:
                    assert isinstance(wait, Pause)
                    self.steps.append(f"pause {wait.seconds:g}")
            except StoreError as e:
                error = e

    def ask(self, prompt: str, *, echo: bool, meanwhile: UseStore | None) -> Waits[bytes | bytearray | None]:
        self.steps.append(prompt)
        yield from ()
        return self._answers.pop(0) if self._answers else None

    def first_pass(self) -> Waits[bytes | bytearray | None]:
        yield from ()
        return self._first_pass

    def show(self, text: str, *, error: bool) -> None:
        self.steps.append(text)

    def hand_on(self, password: memoryview) -> None:
        self.steps.append(f"hand on {bytes(password)!r}")


Start = Callable[..., tuple[Login, Server]]


@pytest.fixture
def start(members: Fleet) -> Iterator[Start]:
    """Yield a function that takes replies, and returns a login and an authority that sends the replies in order."""
    clients = []

    def make(*replies: Reply, **settings: Any) -> tuple[Login, Server]:
        left = list(replies)
        server = members.server(lambda request: left.pop(0))
        made = Login(members, server.address, **settings)
        clients.append(client_of(made._settings))
        return made, server

    yield make
    for client in clients:
        client.close()


def asked(server: Server) -> list[dict[str, object]]:
    """Return the answer and the earlier answers in each question to `server`."""
    return [
        {name: value for name in ("first", "second", "answer") if (value := request.document[name]) is not None}
        for request in server.requests
    ]


def test_a_right_code_is_accepted_and_logged_with_the_authority(start: Start) -> None:
    made, server = start((200, {**ACCEPTED, "messages": ["1 answer was refused since the last login"]}))
    assert made.run(b"755 224") is Result.ACCEPTED
    assert made.is_remote, "the service must run this login in a thread"
    assert made.steps == [FIRST, "1 answer was refused since the last login"]
    assert made.log == [f"accepted user=alice by=code authority={server.address} rhost=192.0.2.7"]
    document = server.requests[0].document
    assert len(str(document.pop("id"))) == 32
    assert document == {
        "v": 1,
        "user": "alice",
        "service": "sshd",
        "rhost": RHOST,
        "tty": "pts/1",
        "answer": "755224",
        "first": None,
        "second": None,
    }


def test_a_refusal_is_followed_by_one_more_prompt(start: Start) -> None:
    made, server = start((200, REFUSED), (200, REFUSED))
    assert made.run(b"000000", b"111111") is Result.REFUSED
    assert made.steps == [FIRST, "pause 0.1", NEXT_PROMPT, "pause 0.1", REFUSED_TEXT], "the same as without a fleet"
    assert asked(server) == [{"answer": "000000"}, {"first": "000000", "answer": "111111"}]
    assert len({str(request.document["id"]) for request in server.requests}) == 1
    assert made.log == [f"refused user=alice reason=refused authority={server.address} rhost=192.0.2.7"] * 2


def test_every_login_has_an_id_of_its_own(start: Start) -> None:
    made, server = start((200, ACCEPTED), (200, ACCEPTED))
    made.run(b"755224")
    made.run(b"755224")
    assert len({str(request.document["id"]) for request in server.requests}) == 2


def test_a_third_code_is_asked_for_if_the_authority_says_so(start: Start) -> None:
    made, server = start((200, REFUSED), (200, {**REFUSED, "again": True}), (200, {**ACCEPTED, "by": "row"}))
    assert made.run(b"000000", b"111111", b"222222") is Result.ACCEPTED
    assert made.steps.count(NEXT_PROMPT) == 2
    assert asked(server)[2] == {"first": "000000", "second": "111111", "answer": "222222"}


def test_an_authority_asks_for_no_fourth_code(start: Start) -> None:
    made, _ = start(*[(200, {**REFUSED, "again": True})] * 4)
    assert made.run(b"000000", b"111111", b"222222", b"333333") is Result.REFUSED
    assert made.steps.count(NEXT_PROMPT) == 2


def test_an_answer_of_an_earlier_module_is_no_part_of_a_row(start: Start) -> None:
    made, server = start((200, REFUSED), (200, REFUSED), (200, REFUSED))
    assert made.run(b"111111", b"222222", arguments=["try_first_pass"], first_pass=b"000000") is Result.REFUSED
    assert asked(server) == [{"answer": "000000"}, {"answer": "111111"}, {"first": "111111", "answer": "222222"}]


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        (b"my password", ""),
        (b"\xff\xfe", ""),
        (b"x" * 600, ""),
        (b"", ""),
        ("\u0667\u0665\u0665\u2013224".encode(), "755224"),
        (b"0123-4567-89ab-cdef", RECOVERY),
        (b"755224 287082", "755224287082"),
    ],
)
def test_only_codes_are_sent(start: Start, typed: bytes, sent: str) -> None:
    """A password typed at the prompt for the code has the delay of a wrong code, and must not leave this host."""
    made, server = start((200, REFUSED))
    assert made.run(typed, arguments=["no_second_prompt"]) is Result.REFUSED
    assert asked(server) == [{"answer": sent}]
    assert made.steps[:2] == [FIRST, "pause 0.1"]


@pytest.mark.parametrize(
    ("password", "sent", "digits"),
    [
        (b"correct horse", "755224", 6),
        (b"battery9", "755224", 6),
        (b"pass", "755224287082", 6),
        (b"pass", "12345678", 8),
        (b"pass123456", "", 8),
        (b"no code", "", 6),
        (b"755224", "", 6),
    ],
)
@pytest.mark.parametrize("verdict", [ACCEPTED, REFUSED], ids=["accepted", "refused"])
def test_with_forward_pass_the_password_never_leaves_the_host(
    start: Start, verdict: object, password: bytes, sent: str, digits: int
) -> None:
    made, server = start((200, verdict), forward_digits=digits)
    result = made.run(password + sent.encode(), arguments=["forward_pass"])
    assert result is (Result.ACCEPTED if verdict is ACCEPTED else Result.REFUSED)
    assert made.steps == ["Password and one-time code: ", f"hand on {password!r}", "pause 0.1"]
    assert asked(server) == [{"answer": sent}]
    words = password.split()
    assert not any(word in server.raw for word in words if not word.isdigit())


@pytest.mark.parametrize(
    ("status", "reason"), [(403, "not-this-member"), (401, "not-a-member")], ids=["other user", "revoked"]
)
def test_a_user_of_another_member_is_refused_as_every_user(start: Start, status: int, reason: str) -> None:
    made, server = start((status, {"error": "no"}), (status, {"error": "no"}))
    assert made.run(b"755224", b"287082") is Result.REFUSED
    assert made.steps == [FIRST, "pause 0.1", NEXT_PROMPT, "pause 0.1", REFUSED_TEXT]
    assert made.log == [f"refused user=alice reason={reason} authority={server.address} rhost=192.0.2.7"] * 2


def test_without_an_authority_nobody_passes(members: Fleet) -> None:
    address = f"127.0.0.1:{free_port()}"
    made = Login(members, address)
    assert made.run(b"755224") is Result.UNAVAILABLE
    assert made.steps == [FIRST, "pause 0.1"]
    assert made.log == [
        f'error user=alice problem="no authority answered: {address}: connection refused" rhost=192.0.2.7'
    ]


def test_a_name_that_cannot_be_sent_costs_a_question_too(start: Start) -> None:
    made, server = start((200, REFUSED))
    assert made.run(b"755224", user="x" * 300, rhost="r" * 300, arguments=["no_second_prompt"]) is Result.REFUSED
    assert (server.requests[0].document["user"], server.requests[0].document["rhost"]) == ("\n", None)


# ---- grace and nullok

ASK: Reply = (200, {"verdict": "ask", "by": None})
GRACE: Reply = (200, {"verdict": "pass", "by": "grace"})
NOT_ENROLLED: Reply = (200, {"verdict": "pass", "by": "not-enrolled"})


def test_grace_and_nullok_are_asked_for_before_the_prompt(start: Start) -> None:
    made, server = start(GRACE)
    assert made.run(arguments=["grace_period=60"]) is Result.ACCEPTED
    assert (made.steps, made.log) == (
        [],
        [f"accepted user=alice by=grace authority={server.address} rhost=192.0.2.7"],
    )
    assert server.requests[0].document == {"v": 1, "user": "alice", "service": "sshd", "rhost": RHOST}
    made, server = start(NOT_ENROLLED)
    assert made.run(arguments=["nullok"]) is Result.IGNORED
    assert made.log == [f"ignored user=alice reason=not-enrolled authority={server.address} rhost=192.0.2.7"]


def test_the_questions_about_one_user_follow_each_other(start: Start) -> None:
    """The logins of one user could otherwise block all threads of the service during an outage of the authorities."""
    made, _ = start((200, {"verdict": "ask", "by": None}), (200, ACCEPTED))
    assert made.run(b"755224", arguments=["nullok"]) is Result.ACCEPTED
    assert made.records == [(made._settings.key, "alice")] * 2


@pytest.mark.parametrize("arguments", [["grace_period=60"], ["nullok"], ["nullok_until=2999-01-01"]])
def test_an_authority_that_asks_makes_the_usual_prompt(start: Start, arguments: list[str]) -> None:
    made, server = start(ASK, (200, ACCEPTED))
    assert made.run(b"755224", arguments=arguments) is Result.ACCEPTED
    assert [request.path for request in server.requests] == ["/v1/begin", "/v1/answer"]


@pytest.mark.parametrize(
    ("arguments", "reply"),
    [(["grace_period=60"], NOT_ENROLLED), (["nullok"], GRACE), (["nullok"], (403, {"error": "no"}))],
)
def test_an_exemption_that_was_not_asked_for_does_not_count(start: Start, arguments: list[str], reply: Reply) -> None:
    made, _ = start(reply, (200, REFUSED))
    assert made.run(b"755224", arguments=[*arguments, "no_second_prompt"]) is Result.REFUSED


@pytest.mark.parametrize("arguments", [[], ["nullok_until=1999-01-01"], ["forward_pass", "grace_period=60"]])
def test_without_them_no_question_precedes_the_prompt(start: Start, arguments: list[str]) -> None:
    made, server = start((200, ACCEPTED))
    assert made.run(b"x755224", arguments=arguments) is Result.ACCEPTED
    assert [request.path for request in server.requests] == ["/v1/answer"]


def test_nullok_lets_no_unknown_account_pass(start: Start) -> None:
    made, _ = start(NOT_ENROLLED)
    made.names = {}
    assert made.run(arguments=["nullok"]) is Result.UNAVAILABLE
    assert "unknown account" in made.log[0]


def test_nullok_lets_no_other_name_of_an_enrolled_account_pass(start: Start) -> None:
    made, server = start(NOT_ENROLLED, ASK)
    made.names = {"alice": "al"}
    assert made.run(arguments=["nullok"]) is Result.UNAVAILABLE
    assert "the account is enrolled as al" in made.log[0]
    assert server.requests[1].document["user"] == "al"
    made, _ = start(NOT_ENROLLED, NOT_ENROLLED)
    made.names = {"alice": "al"}
    assert made.run(arguments=["nullok"]) is Result.IGNORED


# ---- break-glass


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    folder = tmp_path / "store"
    folder.mkdir(0o700)
    store = FileStore(str(folder))
    store.update("alice", lambda record: (emergency(), None), create=True)
    return store


def emergency(**fields: Any) -> UserRecord:
    return UserRecord(user="alice", salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),), **fields)


def unreachable(members: Fleet, store: FileStore, centre_down: str = "break-glass") -> Login:
    return Login(members, f"127.0.0.1:{free_port()}", store=Path(store.folder), centre_down=centre_down)


def test_break_glass_accepts_a_recovery_code_of_this_host_once(members: Fleet, store: FileStore) -> None:
    made = unreachable(members, store)
    assert made.run(RECOVERY.encode()) is Result.ACCEPTED
    assert made.steps == [FIRST, "recovery code used, 0 left"]
    assert made.log[0].startswith("error ")
    assert "break-glass: alice logs in by a recovery code of this host: no authority answered" in made.log[0]
    assert made.log[1] == "accepted user=alice by=break-glass recovery_left=0 rhost=192.0.2.7"
    kept = [(r.accepted, r.outcome, r.service, r.rhost) for r in store.read("alice").recent_logins]
    assert kept == [(True, "recovery", "sshd", "192.0.2.7")]
    assert unreachable(members, store).run(RECOVERY.encode()) is Result.UNAVAILABLE, "each code logs in once"


@pytest.mark.parametrize(
    ("typed", "user"),
    [(b"755224", "alice"), (b"x", "alice"), (b"ZZZZ-ZZZZ-ZZZZ-ZZZZ", "alice"), (RECOVERY.encode(), "bob")],
)
def test_under_break_glass_other_answers_look_all_alike(
    members: Fleet, store: FileStore, typed: bytes, user: str
) -> None:
    made = unreachable(members, store)
    assert made.run(typed, user=user) is Result.UNAVAILABLE
    assert made.steps == [FIRST, "pause 0.1"]
    assert "no authority answered" in made.log[0]


def test_recovery_codes_of_this_host_count_under_break_glass_alone(
    members: Fleet, store: FileStore, start: Start
) -> None:
    assert unreachable(members, store, "refuse").run(RECOVERY.encode()) is Result.UNAVAILABLE
    replies: list[Reply] = [(200, REFUSED), (200, REFUSED), (403, {"error": "no"}), (401, {"error": "revoked"})]
    made, _ = start(*replies, store=Path(store.folder), centre_down="break-glass")
    for arguments in ([], ["no_second_prompt"], ["no_second_prompt"]):
        assert made.run(*[RECOVERY.encode()] * 2, arguments=arguments) is Result.REFUSED
    assert store.read("alice") == emergency(), "a refusal by an authority must not count as an outage"


def test_the_recovery_codes_of_a_token_do_not_count(members: Fleet, store: FileStore) -> None:
    """The record is older than the membership of this host: the authority might have accepted the record's codes."""
    store.update("alice", lambda record: (emergency(tokens=(fob(),)), None))
    assert unreachable(members, store).run(RECOVERY.encode()) is Result.UNAVAILABLE


def test_under_break_glass_the_user_is_asked_although_nullok_cannot_be(members: Fleet, store: FileStore) -> None:
    made = unreachable(members, store)
    assert made.run(RECOVERY.encode(), arguments=["nullok"]) is Result.ACCEPTED
    made = unreachable(members, store, "refuse")
    assert made.run(arguments=["nullok"]) is Result.UNAVAILABLE
    assert made.steps == []


def test_break_glass_works_without_the_credentials_too(members: Fleet, store: FileStore) -> None:
    (members.credentials / "key.pem").unlink()
    assert unreachable(members, store, "refuse").run(RECOVERY.encode()) is Result.UNAVAILABLE
    made = unreachable(members, store)
    assert made.run(RECOVERY.encode()) is Result.ACCEPTED
    assert "key.pem: no such file or directory" in made.log[0]


def test_break_glass_works_after_the_end_of_the_certificate(members: Fleet, store: FileStore) -> None:
    signed = members.authority.sign("web1", days=(-95, -5))
    (members.credentials / "certificate.pem").write_bytes(signed.certificate)
    (members.credentials / "key.pem").write_bytes(signed.key)
    made = Login(members, members.server().address, store=Path(store.folder), centre_down="break-glass")
    assert made.run(RECOVERY.encode()) is Result.ACCEPTED
    assert "the certificate of this host has expired" in made.log[0]


def test_a_store_that_fails_under_break_glass_is_named(members: Fleet, store: FileStore) -> None:
    Path(store.folder).chmod(0o755)
    made = unreachable(members, store)
    assert made.run(RECOVERY.encode()) is Result.UNAVAILABLE
    assert "; break-glass: " in made.log[0]


def test_a_line_with_a_store_asks_no_authority(start: Start, store: FileStore) -> None:
    made, server = start()
    store.update("alice", lambda record: (emergency(tokens=(fob(),)), None))
    assert made.run(b"755224", arguments=[f"store={store.folder}", "window=2"]) is Result.ACCEPTED
    assert server.connections == 0


# ---- enrolment

TICKET = b"ABCD-EFGH-JKMN-PQRS"


def redemption(verdict: str, **fields: Any) -> Reply:
    return 200, json.loads(wire.Redemption(verdict=verdict, **fields).to_json())


NO_TICKET, STILL_OPEN = redemption(wire.REFUSED), redemption(wire.OPEN)
INVITED = redemption(wire.OPEN, token="phone", key="ABCD EFGH")
ENROLLED = redemption(wire.ACCEPTED, token="phone", codes=("0000-1111-2222-3333",))
ENROLL = ("enroll=ticket",)


def test_a_ticket_is_asked_about_and_confirmed_at_the_authority(start: Start) -> None:
    made, server = start(INVITED, STILL_OPEN, ENROLLED)
    assert made.run(TICKET, b"000000", b"755224", b"", arguments=ENROLL) is Result.ACCEPTED
    assert [request.path for request in server.requests] == [wire.REDEEM_PATH] * 3
    sent = [(request.document["ticket"], request.document["first"]) for request in server.requests]
    assert sent == [(TICKET.decode().replace("-", ""), first) for first in (None, "000000", "755224")]
    assert len({str(request.document["id"]) for request in server.requests}) == 1
    prompts = [step for step in made.steps if step.startswith("\n")]
    assert "ABCD EFGH" in prompts[0]
    assert "0000-1111-2222-3333" in prompts[2]
    assert made.log[0].startswith(f"presented user=alice what=ticket token=phone authority={server.address}")
    assert made.log[-1].startswith(f"accepted user=alice by=ticket token=phone authority={server.address}")


def test_only_an_answer_like_a_ticket_is_asked_about(start: Start) -> None:
    made, server = start((200, REFUSED), NO_TICKET, (200, BY_RECOVERY))
    assert made.run(b"755224", TICKET, arguments=ENROLL) is Result.ACCEPTED
    assert [request.path for request in server.requests] == [wire.ANSWER_PATH, wire.REDEEM_PATH, wire.ANSWER_PATH]
    made, server = start((200, BY_RECOVERY))
    assert made.run(TICKET) is Result.ACCEPTED
    assert [request.path for request in server.requests] == [wire.ANSWER_PATH], "without enroll"


@pytest.mark.parametrize("reply", [(403, {"error": "x"}), (401, {"error": "x"}), NO_TICKET])
def test_a_confirmation_that_is_not_allowed_is_a_refusal(start: Start, reply: Reply) -> None:
    made, _ = start(INVITED, reply)
    assert made.run(TICKET, b"755224", arguments=ENROLL) is Result.REFUSED
    assert made.log[-1] == "refused user=alice reason=ticket-ended rhost=192.0.2.7"


@pytest.mark.parametrize("status", [401, 403])
def test_a_member_that_may_not_ask_about_a_ticket_refuses(start: Start, status: int) -> None:
    made, server = start(*[(status, {"error": "x"})] * 3)
    assert made.run(TICKET, b"x", arguments=ENROLL) is Result.REFUSED
    assert [request.path for request in server.requests] == [wire.REDEEM_PATH, wire.ANSWER_PATH, wire.ANSWER_PATH]


def test_under_break_glass_the_authorities_are_asked_once_about_an_answer(
    members: Fleet, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two questions would exceed the relay's time limit."""
    paths = []

    def ask(self: object, method: str, path: str, *rest: object) -> NoReturn:
        paths.append(path)
        raise OutOfReach("no authority answered")

    monkeypatch.setattr(Client, "ask", ask)
    assert unreachable(members, store).run(RECOVERY.encode(), arguments=ENROLL) is Result.ACCEPTED
    assert paths == [wire.REDEEM_PATH]
