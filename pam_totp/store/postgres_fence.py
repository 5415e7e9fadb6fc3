"""The database of a fleet after a restore: the withdrawal of rights, and the end of every other copy.

Rules:
1. `fence` is one transaction, and the last change of a restore. `fence` withdraws rights of members and groups, deletes
   the verdicts on earlier questions and the join tokens, and begins a new epoch.
2. Without the deletion, a verdict of the backup would answer an old question again, and a join token would let a host
   join twice.
3. The epoch only increases. A new epoch is at least the time in Unix seconds, so that the epoch is also higher than
   that of a copy.
4. Each change has the condition of `postgres_schema.GUARDS` in its WHERE.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pam_totp.store import StoreError
from pam_totp.store import postgres_schema as schema
from pam_totp.store.file import file_name
from pam_totp.store.postgres_bulk import WAIT
from pam_totp.store.postgres_connection import NO_COLUMN, NO_TABLE, NOT_GRANTED, Refused, number_of

if TYPE_CHECKING:
    from pam_totp.store.postgres import PostgresStore, Work
    from pam_totp.store.postgres_connection import Row

_MEMBERS = """SELECT name, to_jsonb(groups)::text, to_jsonb(services)::text, extract(epoch FROM joined)::bigint,
 revoked IS NOT NULL, encode(fingerprint, 'hex'), encode(next_fingerprint, 'hex') FROM pam_totp.member ORDER BY name"""
_OTHERS = """SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pam_totp' AND datname = current_database()
 AND pid <> pg_backend_pid()"""

_FORGET = "UPDATE pam_totp.record SET version = version + 1, asked = '[]' WHERE asked <> '[]'"
_UNINVITE = "DELETE FROM pam_totp.joining WHERE true"
_BEGIN = """UPDATE pam_totp.store SET cluster = coalesce($2, cluster),
 epoch = greatest(epoch + 1, $1::bigint + 1, floor(extract(epoch FROM clock_timestamp()))::bigint)"""


class MemberRow(NamedTuple):
    """A member in the database. `joined` is in Unix seconds. `services` is None if all services are permitted.

    `fingerprints` are those of the member's certificate and of the last renewal, in hexadecimal.
    """

    name: str
    groups: tuple[str, ...]
    services: tuple[str, ...] | None
    joined: int | None
    is_revoked: bool
    fingerprints: tuple[str, ...]


class Withdrawn(NamedTuple):
    """The rights to withdraw: certificates of members, groups and services of members, permissions, memberships in
    groups. A member in `rejoin` must join again.

    A limit has the member's name, groups and services.
    """

    revoke: Sequence[str] = ()
    rejoin: Sequence[str] = ()
    limit: Sequence[tuple[str, Sequence[str], Sequence[str] | None]] = ()
    deny: Sequence[tuple[str, str]] = ()  # group of members, group of users
    take: Sequence[tuple[str, str]] = ()  # group of users, user


NOTHING = Withdrawn()


class Fenced(NamedTuple):
    """The new epoch, or None if no epoch has begun, and the number of records whose verdicts were deleted."""

    epoch: int | None
    deleted: int


def members(store: PostgresStore) -> list[MemberRow]:
    """Return all members. Raise StoreError."""
    return store.use(lambda work: [_member(row) for row in work.run(_MEMBERS)], reads_only=True)


def others(store: PostgresStore) -> int:
    """Return the number of other connections of pam_totp to the database that this role can see."""
    return store.use(lambda work: number_of(work.run(_OTHERS)[0][0]), reads_only=True)


def fence(
    store: PostgresStore, withdrawn: Withdrawn = NOTHING, *, above: int | None = 0, forget: bool = True
) -> Fenced:
    """Withdraw rights, and begin an epoch higher than `above`, in one transaction. Raise StoreError.

    The epoch remains if `above` is None. With `forget`, delete the verdicts on earlier questions and the join tokens.
    """
    try:
        return store.use(lambda work: _fence(store, work, withdrawn, above, forget=forget))
    except Refused as e:
        if e.state not in (NOT_GRANTED, NO_COLUMN, NO_TABLE):
            raise
        what = "the database does not permit a new epoch"
        remedy = "run 'pam-totp store init URL --grant ROLE' as the owner of the database, then repeat this command"
        raise StoreError(f"{what} ({remedy})") from None


def _fence(store: PostgresStore, work: Work, withdrawn: Withdrawn, above: int | None, *, forget: bool) -> Fenced:
    is_met = f"({schema.GUARDS[work.statements.replication]}) IS NULL"

    def run(sql: str, *parameters: str | int | None) -> list[Row]:
        return work.connection.run(sql, *parameters, deadline=time.monotonic() + WAIT)

    store.require_safe(work)
    cluster = run(schema.CLUSTER)[0][0] if run(schema.SEES_CLUSTER) else None
    run("BEGIN")
    for sql, parameters in _withdrawals(withdrawn):
        run(f"{sql} AND {is_met}", *parameters)
    deleted = 0
    if forget:
        deleted = len(run(f"{_FORGET} AND {is_met} RETURNING 1"))
        run(f"{_UNINVITE} AND {is_met}")
    epoch = None
    if above is not None:
        rows = run(f"{_BEGIN} WHERE {is_met} RETURNING epoch", above, None if cluster is None else cluster.decode())
        epoch = number_of(rows[0][0]) if rows else None
    store.require_safe(work)  # the conditions were met, because a reload can change settings only between transactions
    run("COMMIT")
    return Fenced(epoch, deleted)


def _withdrawals(withdrawn: Withdrawn) -> list[tuple[str, tuple[str | None, ...]]]:
    """Return the statements that withdraw the rights. Each statement ends in a WHERE clause."""
    forget = """UPDATE pam_totp.member SET fingerprint = NULL, next_fingerprint = NULL, joined = NULL,
 ends = NULL WHERE name = $1"""
    revoke = "UPDATE pam_totp.member SET revoked = coalesce(revoked, clock_timestamp()) WHERE name = $1"
    limit = """UPDATE pam_totp.member SET groups = ARRAY(SELECT jsonb_array_elements_text($2::jsonb)), services =
 CASE WHEN $3::jsonb <> 'null' THEN ARRAY(SELECT jsonb_array_elements_text(nullif($3::jsonb, 'null'))) END
 WHERE name = $1"""
    deny = "DELETE FROM pam_totp.may WHERE member_group = $1 AND user_group = $2"
    take = "DELETE FROM pam_totp.user_group WHERE user_group = $1 AND name = $2"
    return [
        *((revoke, (name,)) for name in withdrawn.revoke),
        *((forget, (name,)) for name in withdrawn.rejoin),
        *((limit, (name, json.dumps(groups), json.dumps(services))) for name, groups, services in withdrawn.limit),
        *((deny, pair) for pair in withdrawn.deny),
        *((take, (group, file_name(user))) for group, user in withdrawn.take),
    ]


def _member(row: Row) -> MemberRow:
    name, groups, services, joined, is_revoked, *fingerprints = row
    return MemberRow(
        (name or b"").decode(),
        tuple(json.loads(groups or b"[]")),
        None if services is None else tuple(json.loads(services)),
        None if joined is None else number_of(joined),
        is_revoked == b"\x01",
        tuple(text.decode() for text in fingerprints if text is not None),
    )
