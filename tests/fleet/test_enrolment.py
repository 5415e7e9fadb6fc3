"""Tests of enrolment tickets on members, which require the permission to enrol the user."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pam_totp.authority.server import ASK_DELAY
from pam_totp.core.oath import totp
from pam_totp.core.record import TotpToken, UserRecord
from pam_totp.core.settings import NEXT_PROMPT, REDEEM_SERVICE
from pam_totp.formats.qr import packed
from pam_totp.member import wire
from pam_totp.operations.tickets import issue_ticket
from tests.conftest import as_root
from tests.fleet.test_member_fleet import Host
from tests.support.cluster import with_postgresql
from tests.support.fleet import Fleet, Member
from tests.support.site import KEY, codes, fob

pytestmark = with_postgresql
SERVICE = "tickets"  # a service of the authorities' site file, with enroll=ticket
PHONE = TotpToken(name="phone", secret=KEY, created=0, confirmed=False)
OLD = fob(secret=b"9" * 20)


def invite(fleet: Fleet, *, tokens: tuple[object, ...] = ()) -> tuple[str, str]:
    """Return a new user with a ticket, and the ticket."""
    user = fleet.user(tokens=tokens)
    ticket = ""

    def change(record: UserRecord) -> tuple[UserRecord, None]:
        nonlocal ticket
        record, ticket = issue_ticket(record, PHONE, int(time.time()) + 3600, packed(PHONE, user, "host"))
        return record, None

    fleet.store.update(user, change)
    return user, ticket.replace("-", "")


def enrolling(fleet: Fleet) -> str:
    """Add a group of members that may enrol all users. Return the name of the group."""
    group = f"enrolling-{secrets.token_hex(4)}"
    fleet.members.allow(group, ["all"])
    fleet.members.permit_enrolment(group, permitted=True)
    return group


def code(offset: int = 0) -> str:
    return totp(KEY, int(time.time()) + 30 * offset)


def redeem(
    member: Member,
    user: str,
    ticket: str,
    first: str | None = None,
    *,
    service: str = SERVICE,
    id: str = "1" * 32,
    authority: int = 0,
) -> dict[str, object]:
    asked = wire.Redeem(id=id, user=user, service=service, rhost=None, ticket=ticket, first=first)
    with member.client(authority) as client:
        status, content = client.post(wire.REDEEM_PATH, asked)
    assert status == 200, content
    return content


def test_a_member_shows_the_key_and_gets_the_recovery_codes(fleet: Fleet) -> None:
    member, (user, ticket) = fleet.member(enrolling(fleet)), invite(fleet)
    shown = redeem(member, user, ticket)
    assert (shown["verdict"], shown["key"], shown["token"]) == (
        "open",
        "GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ",
        "phone",
    )
    assert shown["picture"]
    assert redeem(member, user, ticket, "000000")["verdict"] == "open"
    done = redeem(member, user, ticket, code())
    assert (done["verdict"], len(list(done["codes"]))) == ("accepted", 10)  # type: ignore[call-overload]
    assert fleet.store.read(user).enrolled
    assert redeem(member, user, ticket, code(1), id="2" * 32)["verdict"] == "refused"
    authority = fleet.authorities[0]
    authority.waits_for("presented", f"user={user} ", "what=ticket", f"member={member.name}")
    authority.waits_for("changed", f"user={user} ", "what=enroll token=phone", "by=ticket", f"member={member.name}")
    authority.waits_for("accepted", f"user={user} ", "by=ticket")
    authority.waits_for("refused", f"user={user} ", "reason=ticket-ended")


@pytest.mark.parametrize("service", [SERVICE, "sshd", REDEEM_SERVICE])
def test_by_default_no_group_of_members_may_enrol_users(fleet: Fleet, service: str) -> None:
    member, (user, ticket) = fleet.member(), invite(fleet)
    assert redeem(member, user, ticket, service=service)["verdict"] == "refused"
    assert redeem(member, user, ticket, code(), service=service)["verdict"] == "refused"
    assert not fleet.store.read(user).enrolled


def test_the_policy_of_the_authority_decides_where_tickets_count(fleet: Fleet) -> None:
    member, (user, ticket) = fleet.member(enrolling(fleet)), invite(fleet)
    assert redeem(member, user, ticket, service="sshd")["verdict"] == "refused"
    enrolled, second = invite(fleet, tokens=(OLD,))
    assert redeem(member, enrolled, second)["verdict"] == "refused", "an enrolled user logs in with a code only"
    assert redeem(member, enrolled, second, service=REDEEM_SERVICE)["verdict"] == "open"
    assert redeem(member, enrolled, codes(0, key=OLD.secret), service=REDEEM_SERVICE)["verdict"] == "refused"
    assert fleet.store.read(enrolled).tokens[0] == OLD, "the code must stay unused"


def test_a_ticket_of_a_user_of_another_group_is_refused(fleet: Fleet) -> None:
    group = f"enrolling-{secrets.token_hex(4)}"
    fleet.members.permit_enrolment(group, permitted=True)
    member, (user, ticket) = fleet.member(group), invite(fleet)
    asked = wire.Redeem(id="1" * 32, user=user, service=SERVICE, rhost=None, ticket=ticket)
    with member.client() as client:
        assert client.post(wire.REDEEM_PATH, asked).status == 403


def test_a_refused_ticket_has_its_delay_and_a_decoy(fleet: Fleet) -> None:
    """Replies about invited, other and unknown users take the same time, with a write for each ticket."""
    member, (user, _) = fleet.member(enrolling(fleet)), invite(fleet)
    for name in (user, fleet.user(), "no-such-user"):
        begun, before = time.monotonic(), decoy_writes(fleet)
        assert redeem(member, name, "0" * 16)["verdict"] == "refused"
        assert time.monotonic() - begun >= ASK_DELAY
        assert decoy_writes(fleet) == before + 1, name


def decoy_writes(fleet: Fleet) -> int:
    with psycopg.connect(fleet.url) as connection:
        row = connection.execute("SELECT sum(version) FROM pam_totp.decoy").fetchone()
    assert row is not None
    return int(row[0])


def test_a_lost_reply_is_repeated_with_new_recovery_codes(fleet: Fleet) -> None:
    member, (user, ticket) = fleet.member(enrolling(fleet)), invite(fleet)
    right = code()
    first = redeem(member, user, ticket, right)
    again = redeem(member, user, ticket, right, authority=1)
    assert (first["verdict"], again["verdict"]) == ("accepted", "accepted")
    assert first["codes"] != again["codes"]
    assert len(fleet.store.read(user).recovery) == 10
    other = fleet.member(enrolling(fleet))
    assert redeem(other, user, ticket, right)["verdict"] == "refused", "the question is of another member"


@pytest.mark.parametrize("meanwhile", ["the token is removed", "the token is disabled", "the permission is withdrawn"])
def test_a_repeated_question_opens_nothing_that_was_closed_meanwhile(fleet: Fleet, meanwhile: str) -> None:
    group = enrolling(fleet)
    member, (user, ticket) = fleet.member(group), invite(fleet)
    first = code()
    assert redeem(member, user, ticket, first)["verdict"] == "accepted"
    if meanwhile == "the permission is withdrawn":
        fleet.members.permit_enrolment(group, permitted=False)
    elif meanwhile == "the token is removed":
        fleet.store.update(user, lambda r: (r.without_token("phone"), None))
    else:
        fleet.store.update(user, lambda r: (r.with_changed(r.tokens[0], r.tokens[0].switched(False)), None))
    codes_before = fleet.store.read(user).recovery
    assert redeem(member, user, ticket, first)["verdict"] == "refused"
    assert fleet.store.read(user).recovery == codes_before


def test_a_temporary_code_is_accepted_on_a_member() -> None:
    verdict = wire.Verdict(verdict=wire.ACCEPTED, by="temporary", messages=("temporary code used",))
    assert wire.Verdict.from_json(verdict.to_json()) == verdict


# ---- through libpam, the relay and the service of a member


@pytest.fixture
def host(fleet: Fleet, tmp_path: Path) -> Iterator[Host]:
    made = Host(fleet, tmp_path / "host", f"host-{secrets.token_hex(4)}.example.org", enrolling(fleet))
    made.configure("answer = 8\npatience = 3\n")
    made.site.start()
    yield made
    made.site.stop()


@as_root
def test_a_user_enrols_at_a_login_to_a_member(fleet: Fleet, host: Host) -> None:
    user, ticket = invite(fleet)
    right = code()
    done = host.login(user, ticket, "q", "000000", right, "", name=SERVICE, arguments="enroll=ticket")
    assert done.result.name == "SUCCESS"
    texts = [prompt.text for prompt in done.prompts]
    assert "GEZD GNBV GY3T QOJQ" in texts[1]
    assert "█" in texts[2]
    assert texts[4].endswith("Press Enter: ")
    assert fleet.store.read(user).enrolled
    assert host.site.log.has("presented", f"user={user} ", "what=ticket token=phone authority=")
    assert host.site.log.has("accepted", f"user={user} ", "by=ticket")
    assert host.login(user, code(1), name=SERVICE, arguments="enroll=ticket").result.name == "SUCCESS"


@as_root
def test_on_a_member_a_wrong_ticket_looks_like_a_wrong_code(fleet: Fleet, host: Host) -> None:
    invited_user, enrolled, wrong = invite(fleet)[0], fleet.user(), "0" * 16
    for user in (invited_user, enrolled, "no-such-user"):
        done = host.login(user, wrong, "1" * 16, name=SERVICE, arguments="enroll=ticket")
        assert done.result.name == "AUTH_ERR"
        assert [prompt.text for prompt in done.prompts][1:] == [NEXT_PROMPT]


@as_root
def test_without_enroll_a_member_asks_about_no_ticket(fleet: Fleet, host: Host) -> None:
    user, ticket = invite(fleet)
    done = host.login(user, ticket, ticket, name=SERVICE)
    assert done.result.name == "AUTH_ERR"
    assert not any(authority.lines(f"user={user} ", "presented") for authority in fleet.authorities)


@as_root
def test_on_a_member_the_command_takes_only_tickets(fleet: Fleet, host: Host) -> None:
    """`pam-totp enroll --ticket` asks the service as the PAM service `REDEEM_SERVICE`."""
    user, ticket = invite(fleet, tokens=(OLD,))
    for answer in (codes(0, key=OLD.secret), "0" * 16):
        done = host.login(user, answer, name=REDEEM_SERVICE, arguments="no_second_prompt")
        assert done.result.name == "AUTH_ERR"
    assert fleet.store.read(user).tokens[0] == OLD, "the code must stay unused"
    assert host.login(user, ticket, code(), "", name=REDEEM_SERVICE).result.name == "SUCCESS"
    assert [token.name for token in fleet.store.read(user).tokens] == ["phone"]
    lines = [line for authority in fleet.authorities for line in authority.lines(f"user={user} ", "what=remove")]
    assert len(lines) == 1
    assert "by=ticket" in lines[0]
