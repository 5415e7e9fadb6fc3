"""Tests of the members in PostgreSQL: certificates, permissions, join tokens, and the guard of each change."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from pam_totp.store import StoreError
from pam_totp.store.postgres import PostgresStore, initialise
from pam_totp.store.postgres_members import ALL_USERS, Groups, Members
from pam_totp.store.postgres_schema import SYNCHRONOUS
from tests.core.racing import in_threads
from tests.support.cluster import Server, with_postgresql
from tests.support.site import PATIENCE

pytestmark = with_postgresql
A, B, C = (bytes([letter]) * 32 for letter in b"abc")
TOKEN, OTHER = b"t" * 32, b"u" * 32


@pytest.fixture
def members(database: str) -> Members:
    return Members(PostgresStore(database, wait=PATIENCE))


def joined(members: Members, name: str = "web1", fingerprint: bytes = A, groups: tuple[str, ...] = ("web",)) -> None:
    token = os.urandom(32)
    members.add(name, groups, None, token, 60)
    assert members.join(token, fingerprint) == name


def permits(members: Members, fingerprint: bytes = A, user: str = "alice", service: str = "sshd") -> tuple[bool, bool]:
    found = members.find(fingerprint, user, service)
    assert found is not None
    return found.may_ask, found.may_serve


def test_a_join_token_lets_the_named_member_join_once(members: Members) -> None:
    assert members.add("web1", ["web"], None, TOKEN, 60) is False
    assert members.joining(TOKEN) == "web1"
    assert members.joining(OTHER) is None
    assert members.find(A) is None
    assert members.join(TOKEN, A) == "web1"
    assert (members.joining(TOKEN), members.join(TOKEN, B)) == (None, None)
    found = members.find(A)
    assert found is not None
    assert (found.name, found.is_revoked, found.is_next) == ("web1", False, False)
    assert members.find(B) is None


def test_only_one_of_racing_joins_with_one_token_succeeds(members: Members) -> None:
    members.add("web1", ["web"], None, TOKEN, 60)
    results = in_threads(8, lambda number: str(members.join(TOKEN, bytes([number]) * 32)))
    assert sorted(results) == ["None"] * 7 + ["web1"]


def test_a_join_token_expires_and_is_replaced_by_the_next(members: Members) -> None:
    members.add("web1", ["web"], None, TOKEN, 0)
    assert (members.joining(TOKEN), members.join(TOKEN, A)) == (None, None)
    members.add("web1", ["web"], None, TOKEN, 60)
    members.add("web1", ["web"], None, OTHER, 60)
    assert members.join(TOKEN, A) is None
    assert members.join(OTHER, A) == "web1"


def test_a_member_asks_only_for_the_users_of_its_groups(members: Members) -> None:
    joined(members)
    assert permits(members) == (False, True)
    assert members.allow("web", ["staff"]) == 1
    assert members.allow("web", ["staff"]) == 1
    assert permits(members) == (False, True)
    assert members.put("staff", ["alice", "bob é"]) == 2
    assert [permits(members, user=user)[0] for user in ("alice", "bob é", "carol")] == [True, True, False]
    assert members.take("staff", ["alice", "carol"]) == 1
    assert permits(members) == (False, True)
    assert members.allow("web", [ALL_USERS]) == 1
    assert permits(members, user="unknown") == (True, True)
    assert members.deny("web", [ALL_USERS, "nobody"]) == 1
    assert permits(members, user="unknown") == (False, True)
    assert members.groups() == Groups({"web": ("staff",)}, {"staff": ("bob é",)})
    members.permit_enrolment("web", permitted=True)
    assert members.groups() == Groups({"web": ("staff",)}, {"staff": ("bob é",)}, frozenset({"web"}))
    members.permit_enrolment("web", permitted=False)
    assert members.groups().enrolling == frozenset()


def test_a_member_has_no_rights_from_groups_of_other_members(members: Members) -> None:
    joined(members)
    members.allow("db", [ALL_USERS])
    assert permits(members) == (False, True)
    members.add("web1", ["db", "web"], ["sudo"], TOKEN, 60)
    assert permits(members) == (True, False)
    assert permits(members, service="sudo") == (True, True)


def test_a_revoked_member_is_marked_at_once_and_can_join_again(members: Members) -> None:
    joined(members)
    members.add("web1", ["web"], None, TOKEN, 60)
    assert members.revoke("web1") is True
    assert members.revoke("unknown") is False
    found = members.find(A)
    assert found is not None
    assert found.is_revoked
    assert members.join(TOKEN, A) is None, "the join token of the member is also revoked"
    assert members.renew(A, B) is False
    assert members.add("web1", ["web"], None, TOKEN, 60) is True
    found = members.find(A)
    assert found is not None
    assert found.is_revoked, "a member stays revoked until it joins"
    assert members.join(TOKEN, B) == "web1"
    assert members.find(A) is None
    found = members.find(B)
    assert found is not None
    assert not found.is_revoked


def test_a_renewed_certificate_replaces_the_old_one_when_it_is_used(members: Members) -> None:
    joined(members)
    joined(members, "web2", b"z" * 32)
    assert members.renew(A, B) is True
    assert members.renew(A, C) is True
    assert members.find(B) is None
    found = members.find(C)
    assert found is not None
    assert (found.name, found.is_next) == ("web1", True)
    found = members.find(A)
    assert found is not None
    assert not found.is_next
    members.adopt(C)
    members.adopt(C)
    assert members.find(A) is None
    found = members.find(C)
    assert found is not None
    assert not found.is_next
    assert members.find(b"z" * 32) is not None


def test_all_members_are_listed_with_their_times(members: Members) -> None:
    joined(members, "web2", A, ("web", "edge"))
    members.add("db1", ["db"], ["sshd", "sudo"], TOKEN, 60)
    members.revoke("web2")
    first, second = members.all()
    assert (first.name, first.groups, first.services, first.joined, first.revoked) == (
        "db1",
        ("db",),
        ("sshd", "sudo"),
        None,
        None,
    )
    assert (second.name, second.groups, second.services) == ("web2", ("edge", "web"), None)
    assert second.joined is not None
    assert second.revoked is not None
    assert second.added <= second.joined <= second.revoked
    assert second.fingerprint == A.hex()


def test_the_end_of_the_newest_certificate_is_listed(members: Members) -> None:
    def ends() -> float | None:
        (member,) = members.all()
        return None if member.ends is None or member.joined is None else (member.ends - member.joined) / 86_400

    members.add("web1", ["web"], None, TOKEN, 60)
    assert ends() is None
    members.join(TOKEN, A, 90)
    assert ends() == pytest.approx(90, abs=0.1)
    members.renew(A, B, 91)
    assert ends() == pytest.approx(91, abs=0.1)
    members.adopt(B)
    assert ends() == pytest.approx(91, abs=0.1)


def test_older_tables_get_the_ends_of_certificates_by_init(members: Members, database: str, postgresql: Server) -> None:
    postgresql.sql("ALTER TABLE pam_totp.member DROP COLUMN ends")
    older = r"^the tables of members lack a column of this version \(run 'pam-totp store init URL'\)$"
    with pytest.raises(StoreError, match=older):
        members.all()
    initialise(database)
    assert members.all() == []


CHANGES: dict[str, Callable[[Members], Any]] = {
    "add": lambda members: members.add("web9", ["web"], None, OTHER, 60),
    "join": lambda members: members.join(TOKEN, C),
    "revoke": lambda members: members.revoke("web1"),
    "renew": lambda members: members.renew(A, B),
    "allow": lambda members: members.allow("web", ["staff"]),
    "deny": lambda members: members.deny("web", [ALL_USERS]),
    "put": lambda members: members.put("staff", ["bob"]),
    "take": lambda members: members.take("staff", ["alice"]),
}


def test_without_replication_every_change_of_members_is_refused(postgresql: Server, database: str) -> None:
    members = Members(PostgresStore(database, wait=PATIENCE))
    joined(members)
    members.allow("web", [ALL_USERS])
    members.put("staff", ["alice"])
    members.add("web2", ["web"], None, TOKEN, 60)
    before = members.all(), members.groups()
    initialise(database, SYNCHRONOUS)
    strict = Members(PostgresStore(database, wait=PATIENCE, pool=2))
    for name, change in CHANGES.items():
        with pytest.raises(StoreError, match="synchronous_standby_names is empty"):
            change(strict)
        assert (strict.all(), strict.groups()) == before, name
    assert strict.joining(TOKEN) == "web2"
    strict.adopt(A)
    assert permits(strict) == (True, True), "a read needs no standby"


def test_tables_of_an_earlier_version_are_completed_by_init(postgresql: Server, database: str) -> None:
    postgresql.sql("DROP TABLE pam_totp.member, pam_totp.may, pam_totp.user_group, pam_totp.joining")
    members = Members(PostgresStore(database, wait=PATIENCE))
    with pytest.raises(StoreError, match="no tables of members"):
        members.all()
    initialise(database)
    assert members.all() == []


def test_a_role_with_grants_can_manage_members(postgresql: Server, database: str) -> None:
    postgresql.sql("DROP ROLE IF EXISTS authority", "CREATE ROLE authority LOGIN")
    initialise(database, grant="authority")
    try:
        members = Members(PostgresStore(database.replace("owner@", "authority@"), wait=PATIENCE))
        joined(members)
        for change in CHANGES.values():
            change(members)
        assert [member.name for member in members.all()] == ["web1", "web9"]
    finally:
        postgresql.sql("DROP OWNED BY authority", "DROP ROLE authority")
