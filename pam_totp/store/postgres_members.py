"""The members of a fleet in PostgreSQL: their certificates, their groups, and their join tokens.

Rules:
1. A certificate alone permits nothing. The fingerprint of the certificate must be in a row of `member` that is not
   revoked. One statement reads the row, and the member's permission for a user and a service.
2. Each change has the condition of `postgres_schema.GUARDS` in its WHERE, like a change of a record.
3. The database stores the digest of a join token. The use of the token deletes the digest. The token expires by the
   clock of the database.
4. The group ALL_USERS contains every user, enrolled or not.
5. A member that an administrator adds again keeps its certificate until the member joins again. Only joining ends a
   revocation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, NamedTuple

from pam_totp.store import StoreError
from pam_totp.store.file import file_name
from pam_totp.store.postgres import PostgresStore, Work
from pam_totp.store.postgres_connection import NO_COLUMN, NO_TABLE, Refused, Row, number_of, text_of
from pam_totp.store.postgres_records import user_name
from pam_totp.store.postgres_schema import GUARDS

if TYPE_CHECKING:
    from pam_totp.store import R

ALL_USERS = "all"
ENROLMENT = "+enroll"  # in place of a user group: the permission to enrol users. No group can have this name
JOIN_SECONDS = 3600  # the time in which a new member may join
_TRUE = b"\x01"  # in PostgreSQL's binary format


class Found(NamedTuple):
    """A row of `member` for a certificate, and the member's permissions. `now` is the database's time in Unix
    seconds."""

    name: str
    is_revoked: bool
    is_next: bool  # found by the certificate of the last renewal, which was not used before
    may_ask: bool  # for the user
    may_serve: bool  # the service
    may_enroll: bool  # users by tickets
    now: int


class Member(NamedTuple):
    """A member, for an administrator. Times are Unix seconds. `services` is None if all services are permitted."""

    name: str
    groups: tuple[str, ...]
    services: tuple[str, ...] | None
    added: int
    joined: int | None
    revoked: int | None
    fingerprint: str | None
    ends: int | None  # of the newest certificate


class Groups(NamedTuple):
    """All groups: the user groups that each group of members may ask about, and the users of each user group.

    `enrolling` are the groups of members that may enrol users by tickets, and then see the users' keys.
    """

    may: dict[str, tuple[str, ...]]
    users: dict[str, tuple[str, ...]]
    enrolling: frozenset[str] = frozenset()


class _Statements:
    """The statements with the guard of one kind of replication."""

    def __init__(self, replication: str) -> None:
        guard = GUARDS[replication]
        met = f"({guard}) IS NULL"
        groups = "ARRAY(SELECT jsonb_array_elements_text($2::jsonb))"
        services = "ARRAY(SELECT jsonb_array_elements_text(nullif($3::jsonb, 'null')))"
        ends = "clock_timestamp() + $3::bigint * interval '1 day'"
        self.guard = f"SELECT {guard}"
        self.adopt = f"""UPDATE pam_totp.member SET fingerprint = $1, next_fingerprint = NULL
 WHERE next_fingerprint = $1 AND revoked IS NULL AND {met} RETURNING 1"""
        self.renew = f"""UPDATE pam_totp.member SET next_fingerprint = $2, ends = {ends}
 WHERE fingerprint = $1 AND revoked IS NULL AND {met} RETURNING 1"""
        self.add = f"""INSERT INTO pam_totp.member (name, groups, services, added)
 SELECT $1, {groups}, CASE WHEN $3::jsonb <> 'null' THEN {services} END, clock_timestamp() WHERE {met}
 ON CONFLICT (name) DO UPDATE SET groups = EXCLUDED.groups, services = EXCLUDED.services RETURNING joined IS NOT NULL"""
        self.forget = f"DELETE FROM pam_totp.joining WHERE (member = $1 OR expires < clock_timestamp()) AND {met}"
        self.invite = f"""INSERT INTO pam_totp.joining (token_digest, member, expires)
 SELECT $1, $2, clock_timestamp() + $3::bigint * interval '1 second' WHERE {met} RETURNING 1"""
        self.join = f"""WITH used AS (DELETE FROM pam_totp.joining
 WHERE token_digest = $1 AND expires > clock_timestamp() AND {met} RETURNING member)
 UPDATE pam_totp.member SET fingerprint = $2, next_fingerprint = NULL, joined = clock_timestamp(), revoked = NULL,
 ends = {ends} FROM used WHERE member.name = used.member RETURNING member.name"""
        self.revoke = f"""UPDATE pam_totp.member SET revoked = coalesce(revoked, clock_timestamp())
 WHERE name = $1 AND {met} RETURNING 1"""
        self.allow = f"""INSERT INTO pam_totp.may (member_group, user_group) SELECT $1, $2 WHERE {met}
 ON CONFLICT (member_group, user_group) DO UPDATE SET user_group = EXCLUDED.user_group RETURNING 1"""
        self.deny = f"DELETE FROM pam_totp.may WHERE member_group = $1 AND user_group = $2 AND {met} RETURNING 1"
        self.put = f"""INSERT INTO pam_totp.user_group (user_group, name) SELECT $1, $2 WHERE {met}
 ON CONFLICT (name, user_group) DO UPDATE SET name = EXCLUDED.name RETURNING 1"""
        self.take = f"DELETE FROM pam_totp.user_group WHERE user_group = $1 AND name = $2 AND {met} RETURNING 1"


def _seconds(time: str) -> str:
    return f"extract(epoch FROM {time})::bigint"


_FIND = f"""SELECT m.name, m.revoked IS NOT NULL, m.fingerprint IS DISTINCT FROM $1,
 EXISTS (SELECT 1 FROM pam_totp.may AS p WHERE p.member_group = ANY (m.groups) AND (p.user_group = '{ALL_USERS}'
  OR EXISTS (SELECT 1 FROM pam_totp.user_group AS u WHERE u.name = $2 AND u.user_group = p.user_group))),
 m.services IS NULL OR $3 = ANY (m.services),
 EXISTS (SELECT 1 FROM pam_totp.may AS e WHERE e.member_group = ANY (m.groups) AND e.user_group = '{ENROLMENT}'),
 {_seconds("clock_timestamp()")}
 FROM pam_totp.member AS m WHERE m.fingerprint = $1 OR m.next_fingerprint = $1"""
_JOINING = "SELECT member FROM pam_totp.joining WHERE token_digest = $1 AND expires > clock_timestamp()"
_MEMBERS = f"""SELECT name, to_jsonb(groups)::text, to_jsonb(services)::text, {_seconds("added")}, {_seconds("joined")},
 {_seconds("revoked")}, encode(fingerprint, 'hex'), {_seconds("ends")} FROM pam_totp.member ORDER BY name"""
_MAY = "SELECT member_group, user_group FROM pam_totp.may ORDER BY 1, 2"
_USERS = "SELECT user_group, name FROM pam_totp.user_group ORDER BY 1, 2"


class Members:
    """The members in the database of `store`. Every method may raise StoreError."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store

    # ---- for an authority

    def find(self, fingerprint: bytes, user: str | None = None, service: str | None = None) -> Found | None:
        """Return the member with the certificate `fingerprint`, or None, with the member's permissions for `user` and
        `service`.
        """
        rows = self._read(_FIND, fingerprint, None if user is None else file_name(user), service)
        if not rows:
            return None
        name, *flags, now = rows[0]
        is_revoked, is_next, may_ask, may_serve, may_enroll = (flag == _TRUE for flag in flags)
        return Found(text_of(name), is_revoked, is_next, may_ask, may_serve, may_enroll, number_of(now))

    def adopt(self, fingerprint: bytes) -> None:
        """Make `fingerprint` the member's only certificate, if `fingerprint` is that of the last renewal."""
        self._use(lambda work, made: work.run(made.adopt, fingerprint))

    def renew(self, fingerprint: bytes, following: bytes, days: int | None = None) -> bool:
        """Let the member with the certificate `fingerprint` use `following`, too. Return False for a revoked member.

        `days` is the time for which `following` is valid, if it is known.
        """
        return bool(self._change(lambda made: made.renew, fingerprint, following, days))

    def joining(self, token_digest: bytes) -> str | None:
        """Return the name of the member that may join with the token of `token_digest`, or None."""
        rows = self._read(_JOINING, token_digest)
        return text_of(rows[0][0]) if rows else None

    def join(self, token_digest: bytes, fingerprint: bytes, days: int | None = None) -> str | None:
        """Use up the token of `token_digest`, and make `fingerprint` the only certificate of the token's member.

        Return the name of the member, or None if the token is unknown or has expired.
        `days` is the time for which the certificate is valid, if it is known.
        """
        rows = self._change(lambda made: made.join, token_digest, fingerprint, days)
        return text_of(rows[0][0]) if rows else None

    def problem(self) -> str | None:
        """Return the reason why the database does not keep changes safely, or None."""
        ((problem,),) = self._use(lambda work, made: work.run(made.guard), reads_only=True)
        return None if problem is None else text_of(problem)

    # ---- for an administrator

    def add(
        self, name: str, groups: Iterable[str], services: Iterable[str] | None, token_digest: bytes, seconds: int
    ) -> bool:
        """Add the member `name`, or change the member's groups and services. Let the member join within `seconds`.

        Return True if the member has joined before. Earlier join tokens of the member become invalid.
        """
        listed = None if services is None else sorted(set(services))

        def attempt(work: Work, made: _Statements) -> bool:
            with work.transaction():
                rows = _required(work, made, made.add, name, _list(groups), json.dumps(listed))
                work.run(made.forget, name)
                _required(work, made, made.invite, token_digest, name, seconds)
            return rows[0][0] == _TRUE

        return self._use(attempt)

    def revoke(self, name: str) -> bool:
        """Revoke the certificates and the join tokens of the member `name`. Return False if there is no such member."""

        def attempt(work: Work, made: _Statements) -> bool:
            with work.transaction():
                rows = work.run(made.revoke, name) or _explained(work, made)
                work.run(made.forget, name)
            return bool(rows)

        return self._use(attempt)

    def all(self) -> list[Member]:
        """Return all members, in the order of their names."""
        return [
            Member(
                text_of(name),
                tuple(json.loads(text_of(groups))),
                None if services is None else tuple(json.loads(services)),
                number_of(added),
                None if joined is None else number_of(joined),
                None if revoked is None else number_of(revoked),
                None if fingerprint is None else text_of(fingerprint),
                None if ends is None else number_of(ends),
            )
            for name, groups, services, added, joined, revoked, fingerprint, ends in self._read(_MEMBERS)
        ]

    def groups(self) -> Groups:
        """Return all groups."""
        may: dict[str, tuple[str, ...]] = {}
        users: dict[str, tuple[str, ...]] = {}
        enrolling: set[str] = set()
        for group, other in self._read(_MAY):
            if text_of(other) == ENROLMENT:
                enrolling.add(text_of(group))
            else:
                may[text_of(group)] = (*may.get(text_of(group), ()), text_of(other))
        for group, name in self._read(_USERS):
            users[text_of(group)] = (*users.get(text_of(group), ()), user_name(text_of(name)))
        return Groups(may, users, frozenset(enrolling))

    def allow(self, group: str, user_groups: Iterable[str]) -> int:
        """Let the members of `group` ask about `user_groups`. Return the number of groups of users."""
        return self._each(lambda made: made.allow, group, user_groups)

    def deny(self, group: str, user_groups: Iterable[str]) -> int:
        """Forbid the members of `group` to ask about `user_groups`. Return the number of earlier permissions."""
        return self._each(lambda made: made.deny, group, user_groups)

    def permit_enrolment(self, group: str, *, permitted: bool) -> int:
        """Let the members of `group` enrol users, or forbid enrolment. Return 1, or 0 if enrolment was forbidden
        before.
        """
        return (self.allow if permitted else self.deny)(group, [ENROLMENT])

    def put(self, user_group: str, users: Iterable[str]) -> int:
        """Add `users` to the group `user_group`. Return the number of users."""
        return self._each(lambda made: made.put, user_group, map(file_name, users))

    def take(self, user_group: str, users: Iterable[str]) -> int:
        """Remove `users` from the group `user_group`. Return the number of users that were in the group."""
        return self._each(lambda made: made.take, user_group, map(file_name, users))

    # ---- statements

    def _read(self, sql: str, *parameters: str | bytes | None) -> list[Row]:
        return self._use(lambda work, made: work.run(sql, *parameters), reads_only=True)

    def _change(self, choose: Callable[[_Statements], str], *parameters: str | bytes | int | None) -> list[Row]:
        return self._use(partial(_changed, choose, parameters))

    def _each(self, choose: Callable[[_Statements], str], group: str, others: Iterable[str]) -> int:
        """Run one statement for each of `others`, in one transaction. Return the number of rows."""
        listed = sorted(set(others))

        def attempt(work: Work, made: _Statements) -> int:
            with work.transaction():
                return sum(len(_changed(choose, (group, other), work, made)) for other in listed)

        return self._use(attempt)

    def _use(self, attempt: Callable[[Work, _Statements], R], *, reads_only: bool = False) -> R:
        try:
            return self._store.use(
                lambda work: attempt(work, _statements(work.statements.replication)), reads_only=reads_only
            )
        except Refused as e:
            if e.state == NO_COLUMN:
                raise StoreError(
                    "the tables of members lack a column of this version (run 'pam-totp store init URL')"
                ) from None
            if e.state != NO_TABLE:
                raise
            raise StoreError("the database has no tables of members (run 'pam-totp store init URL')") from None


@lru_cache(maxsize=3)
def _statements(replication: str) -> _Statements:
    return _Statements(replication)


def _changed(
    choose: Callable[[_Statements], str], parameters: Iterable[str | bytes | int | None], work: Work, made: _Statements
) -> list[Row]:
    return work.run(choose(made), *parameters) or _explained(work, made)


def _required(work: Work, made: _Statements, sql: str, *parameters: str | int | bytes) -> list[Row]:
    """Run a statement that changes a row if the guard is met, and return that row."""
    rows = work.run(sql, *parameters)
    if not rows:
        _explained(work, made)
        raise StoreError("the database has made no change")
    return rows


def _explained(work: Work, made: _Statements) -> list[Row]:
    """Raise StoreError if the guard forbids changes. Otherwise return an empty list: no change was necessary."""
    ((problem,),) = work.run(made.guard)
    if problem is not None:
        raise StoreError(f"the database does not keep changes safely: {text_of(problem)}")
    return []


def _list(texts: Iterable[str]) -> str:
    return json.dumps(sorted(set(texts)))
