"""Tests of `POST /v1/radius`: the dialogue over challenges, its State, and the content of questions and replies."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from pam_totp.authority.radius import CHALLENGE, LIFE, VERDICT, Before, RadiusQuestion, RadiusReply, States
from pam_totp.authority.radius import states_of as states_of_key
from pam_totp.core.answer import recovery_digest
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.member.wire import RADIUS_PATH, WireError
from pam_totp.operations.authenticate import REFUSED as REFUSED_TEXT
from tests.fleet.test_enrolment import SERVICE as TICKETS
from tests.fleet.test_enrolment import enrolling, invite
from tests.support.cluster import with_postgresql
from tests.support.fleet import Client, Fleet, Member
from tests.support.site import codes, fob

pytestmark = with_postgresql
BOUND = ("radius1", "alice", "openvpn")
BEFORE = Before("ab" * 16, ("123456", "0123456789ABCDEF"))


def asked(user: str, answer: str, state: str | None = None, **fields: Any) -> RadiusQuestion:
    given: dict[str, Any] = {"id": secrets.token_hex(16), "service": "openvpn", "rhost": "192.0.2.7"} | fields
    return RadiusQuestion(user=user, answer=answer, state=state, **given)


class Reply:
    """A reply of an authority to FreeRADIUS."""

    def __init__(self, client: Client, question: RadiusQuestion) -> None:
        self.status, content = client.post(RADIUS_PATH, question)
        assert all(found["do_xlat"] is False for found in content.values()), "FreeRADIUS must not expand a value"
        values = {name: found["value"] for name, found in content.items()}
        (self.verdict,) = values.pop(f"control:{VERDICT}")
        self.messages = values.pop("reply:Reply-Message", [])
        (state,) = values.pop("reply:State", (None,))
        self.state = None if state is None else state.removeprefix("0x")
        self.rest = values


@pytest.fixture(scope="module")
def radius(fleet: Fleet) -> Member:
    return fleet.member(services=["openvpn"])


def dialogue(fleet: Fleet, radius: Member, user: str, *answers: str) -> list[Reply]:
    """Return the replies to `answers` of one login, which two authorities receive alternately."""
    replies: list[Reply] = []
    for number, answer in enumerate(answers):
        with radius.client(number % 2) as client:
            replies.append(Reply(client, asked(user, answer, replies[-1].state if replies else None)))
    return replies


# ---- the decision


def test_a_right_code_is_accepted_once(fleet: Fleet, radius: Member) -> None:
    user = fleet.user()
    replies = [dialogue(fleet, radius, user, codes(0))[0].verdict for _ in range(2)]
    assert replies == ["accepted", CHALLENGE]
    line = fleet.authorities[0].waits_for(f"accepted user={user}")
    assert "pam_totp(openvpn:auth)" in line
    assert f"member={radius.name} rhost=192.0.2.7" in line


def test_a_repeated_request_gets_the_same_verdict(fleet: Fleet, radius: Member) -> None:
    """FreeRADIUS asks the other authority with the same id if the first authority does not answer."""
    user = fleet.user()
    question = asked(user, codes(0))
    for authority in (0, 1):
        with radius.client(authority) as client:
            assert Reply(client, question).verdict == "accepted"
    assert fleet.store.read(user).tokens[0].next_factor == 1


def test_the_messages_for_the_user_come_with_the_verdict(fleet: Fleet, radius: Member) -> None:
    code, salt = "0123456789ABCDEF", "5a" * 16
    user = fleet.user(salt=salt, recovery=(recovery_digest(salt, code),))
    (reply,) = dialogue(fleet, radius, user, "0123-4567-89ab-cdef")
    assert (reply.verdict, reply.messages) == ("accepted", ["recovery code used, 0 left"])


def test_a_row_over_a_challenge_is_accepted_by_any_authority(fleet: Fleet, radius: Member) -> None:
    user = fleet.user(tokens=(fob(row_needed=True),))
    first, second = dialogue(fleet, radius, user, codes(4), codes(5))
    assert (first.verdict, first.messages, first.rest) == (CHALLENGE, [NEXT_PROMPT], {"reply:Prompt": ["No-Echo"]})
    assert second.verdict == "accepted"
    assert fleet.store.read(user).tokens[0].next_factor == 6


def test_a_third_code_is_asked_for_only_after_a_right_pair(fleet: Fleet, radius: Member) -> None:
    user = fleet.user(failures=20, failures_at=2**31)  # three codes in a row are required
    replies = dialogue(fleet, radius, user, codes(5), codes(6), codes(7))
    assert [reply.verdict for reply in replies] == [CHALLENGE, CHALLENGE, "accepted"]
    wrong = dialogue(fleet, radius, fleet.user(), "000000", "000000")
    assert [reply.verdict for reply in wrong] == [CHALLENGE, "refused"]
    assert (wrong[1].messages, wrong[1].state) == ([REFUSED_TEXT], None)


@pytest.mark.parametrize("answer", ["000000", "my password", "", "x" * 128])
def test_no_reply_shows_which_users_are_enrolled(fleet: Fleet, radius: Member, answer: str) -> None:
    shown = []
    for user in (fleet.user(), "not-enrolled-here", f"x{'y' * 250}", "a/b"):
        replies = dialogue(fleet, radius, user, answer, answer)
        shown.append([(reply.verdict, reply.messages, len(reply.state or "")) for reply in replies])
    assert all(found == shown[0] for found in shown), shown
    assert [verdict for verdict, *_ in shown[0]] == [CHALLENGE, "refused"]


def test_users_and_services_of_others_look_like_wrong_codes(fleet: Fleet) -> None:
    """An attacker without a code could otherwise detect the users of this member."""
    user, member = fleet.user(), fleet.member("group-without-users")
    replies = dialogue(fleet, member, user, codes(0), codes(1))
    assert [reply.verdict for reply in replies] == [CHALLENGE, "refused"]
    with fleet.member(services=["switch"]).client() as client:
        assert Reply(client, asked(user, codes(0))).verdict == CHALLENGE
    assert fleet.store.read(user).tokens[0].next_factor == 0
    assert fleet.authorities[0].lines(f"user={user}", "reason=not-this-member")


def test_nullok_and_grace_let_no_user_pass(fleet: Fleet) -> None:
    member = fleet.member()
    for service in ("open", "graceful"):
        with member.client() as client:
            assert Reply(client, asked("not-enrolled", "", service=service)).verdict == CHALLENGE


def test_an_enrolment_ticket_shows_no_key_and_enrols_no_user(fleet: Fleet) -> None:
    """Other conditions for an enrolment are met: the member may enrol users, and the service accepts tickets."""
    member, (user, ticket) = fleet.member(enrolling(fleet)), invite(fleet)
    with member.client() as client:
        reply = Reply(client, asked(user, ticket, service=TICKETS))
        again = Reply(client, asked(user, ticket, reply.state, service=TICKETS))
    assert (reply.verdict, reply.messages) == (CHALLENGE, [NEXT_PROMPT])
    assert (again.verdict, again.messages) == ("refused", [REFUSED_TEXT])
    assert [token.confirmed for token in fleet.store.read(user).tokens] == [False]


def test_a_client_without_challenges_gets_a_refusal(fleet: Fleet, radius: Member) -> None:
    with radius.client() as client:
        reply = Reply(client, asked(fleet.user(), "000000", challenge=False))
    assert (reply.verdict, reply.state, reply.messages) == ("refused", None, [REFUSED_TEXT])


def test_a_revoked_member_gets_no_verdict(fleet: Fleet) -> None:
    member = fleet.member()
    fleet.members.revoke(member.name)
    with member.client() as client:
        assert client.post(RADIUS_PATH, asked(fleet.user(), codes(0))).status == 401


def test_guesses_use_up_the_budget_of_the_member(fleet: Fleet) -> None:
    member, user = fleet.member(), fleet.user()
    with member.client() as client:
        for _ in range(30):
            Reply(client, asked("not-enrolled", "000000", challenge=False))
        assert Reply(client, asked(user, codes(0))).verdict == CHALLENGE
        assert fleet.authorities[0].lines(f"user={user}", "reason=member-budget")
        assert Reply(client, asked(user, f"{codes(1)} {codes(2)}")).verdict == "accepted"


# ---- the State


def test_a_state_opens_for_its_member_user_and_service_only() -> None:
    states = States(b"key")
    state = states.seal(BEFORE, BOUND, 1000)
    assert states.open(state, BOUND, 1000 + LIFE) == BEFORE
    assert states.open(state, BOUND, 1001 + LIFE) is None
    assert States(b"other key").open(state, BOUND, 1000) is None
    others = [("radius2", *BOUND[1:]), ("radius1", "bob", "openvpn"), ("radius1", "alice", "switch")]
    assert [states.open(state, bound, 1000) for bound in (*others, ("radius1a", "lice", "openvpn"))] == [None] * 4


def test_a_changed_state_does_not_open() -> None:
    states = States(b"key")
    content = bytearray.fromhex(states.seal(BEFORE, BOUND, 1000))
    for place in range(len(content)):
        for bit in range(8):
            content[place] ^= 1 << bit
            assert states.open(content.hex(), BOUND, 1000) is None, place
            content[place] ^= 1 << bit
    assert states.open(content.hex(), BOUND, 1000) == BEFORE
    assert [states.open(content[:size].hex(), BOUND, 1000) for size in (0, 1, 16, len(content) - 1)] == [None] * 4


def test_a_state_hides_the_answers_and_their_length() -> None:
    states = States(b"key")
    sealed = {states.seal(before, BOUND, 1000) for before in (BEFORE, BEFORE, Before(BEFORE.id, ("",)))}
    assert len(sealed) == 3, "each State has its own nonce"
    assert {len(state) for state in sealed} == {2 * (16 + 73 + 16)}
    assert all(b"123456".hex() not in state for state in sealed)
    assert len(sealed.pop()) // 2 <= 253, "an attribute of RADIUS has at most 253 bytes"


def test_a_foreign_state_counts_as_none(fleet: Fleet, radius: Member) -> None:
    """The second code is refused as a single code, because the State with the first code belongs to another user."""
    users = [fleet.user(tokens=(fob(row_needed=True),)) for _ in range(2)]
    (challenge,) = dialogue(fleet, radius, users[0], codes(4))
    with radius.client() as client:
        for state in (challenge.state, None, "00", "ab" * 253):
            assert Reply(client, asked(users[1], codes(5), state)).verdict == CHALLENGE
        assert Reply(client, asked(users[0], codes(5), challenge.state)).verdict == "accepted"


def test_a_guess_over_one_state_counts_each_time(fleet: Fleet, radius: Member) -> None:
    user = fleet.user()
    (challenge,) = dialogue(fleet, radius, user, "000000")
    with radius.client() as client:
        for number in range(3):
            assert Reply(client, asked(user, f"00000{number + 1}", challenge.state)).verdict == "refused"
    assert fleet.store.read(user).failures == 4


def test_without_the_key_of_the_ca_there_is_no_challenge(tmp_path: Path) -> None:
    assert states_of_key(str(tmp_path / "missing")) is None
    (tmp_path / "key").write_text("-----BEGIN PRIVATE KEY-----\nYWJj\n-----END PRIVATE KEY-----\n")
    (tmp_path / "copy").write_text("-----BEGIN PRIVATE KEY-----\nYWJj  \n\n-----END PRIVATE KEY-----")
    (tmp_path / "other").write_text("-----BEGIN PRIVATE KEY-----\nYWJk\n-----END PRIVATE KEY-----\n")
    key, copy, other = (states_of_key(str(tmp_path / name)) for name in ("key", "copy", "other"))
    assert key is not None
    assert copy is not None
    assert other is not None
    state = key.seal(BEFORE, BOUND, 1000)
    assert (copy.open(state, BOUND, 1000), other.open(state, BOUND, 1000)) == (BEFORE, None)


# ---- the messages


def test_a_question_is_read_as_it_was_written() -> None:
    for question in (asked("alice", "123456"), asked('a"\\é', "", "01ff", challenge=False, rhost=None)):
        assert RadiusQuestion.from_json(question.to_json()) == question


@pytest.mark.parametrize(
    "change",
    [
        {"user": "alice"},
        {"user": ""},
        {"user": "ff"},
        {"user": "00"},
        {"user": "41" * 254},
        {"user": ["41", "42"]},
        {"user": None},
        {"answer": "4"},
        {"answer": "4G"},
        {"state": "ab" * 254},
        {"state": "0x01"},
        {"state": 1},
        {"id": "ab"},
        {"service": ""},
        {"challenge": True},
        {"class": "01"},
        {"v": 2},
    ],
)
def test_a_malformed_question_is_refused(change: dict[str, Any]) -> None:
    document = json.loads(asked("alice", "123456").to_json())
    RadiusQuestion.from_json(json.dumps(document).encode())
    with pytest.raises(WireError):
        RadiusQuestion.from_json(json.dumps(document | change).encode())


@pytest.mark.parametrize("body", [b"{}", b"[]", b"\xff", b'{"v":1}'])
def test_another_body_is_no_question(body: bytes) -> None:
    with pytest.raises(WireError):
        RadiusQuestion.from_json(body)


def test_a_long_message_is_cut_to_the_size_of_an_attribute() -> None:
    reply = RadiusReply(verdict="accepted", messages=("é" * 128, "%{exec:/bin/false}"))
    found = json.loads(reply.to_json())["reply:Reply-Message"]
    assert found == {"value": ["é" * 126, "%{exec:/bin/false}"], "do_xlat": False, "op": "+="}


def test_a_challenge_has_a_state_and_no_other_reply_has_one() -> None:
    for verdict, state in ((CHALLENGE, None), ("accepted", "01"), ("refused", "01")):
        with pytest.raises(WireError):
            RadiusReply(verdict=verdict, state=state)


def test_a_password_is_not_kept_in_a_state(fleet: Fleet, radius: Member) -> None:
    """A user can type a password at the prompt of a VPN."""
    user = fleet.user()
    (challenge,) = dialogue(fleet, radius, user, "hunter2hunter2")
    key = states_of_key(fleet.issuer.key)
    assert key is not None
    found = key.open(str(challenge.state), (radius.name, user, "openvpn"), 0)
    assert found is not None
    assert found.refused == ("",)
