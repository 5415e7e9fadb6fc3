"""A restored database of a fleet: the rights that the log of its authorities withdraws from members and groups.

Rules:
1. The log can only take rights away, as in `restored`. Rights that were given since the backup are listed, not given.
2. A revocation is in force, unless the member joined later according to the database.
3. A member must join again if the log has a later certificate of this member than the database.
4. A permission of a group, or the membership of a user in a group, remains withdrawn, even if a later line gives it
   again.
5. A member keeps only the groups and services that are in its last line of the log. They must also be in each line
   about this member since the member joined. Otherwise a forged last line would undo a withdrawal.
6. A line about another database is used, because authorities can have different URLs of the same database.
7. Every token needs codes in a row, and steps up to now are used up, if the log of an authority might be missing. A
   host counts once under its short and its full name. A host that only runs commands, such as that of the portal, is no
   authority.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from pam_totp.core.record import TIME_LIMIT, Token, TotpToken, UserRecord
from pam_totp.core.settings import is_database
from pam_totp.operations.audit_log import NAME
from pam_totp.operations.restored import Log

if TYPE_CHECKING:
    from pam_totp.store.postgres_fence import MemberRow

CLOCKS = 300  # seconds: the largest difference between the clocks of an authority and of the database
# The kinds of pairs are: group of members and group of users, group of users and user, group of members and TICKET.
ALLOWED, PUT, ENROLLING = KINDS = ("may", "users", "enroll")
TICKET, OFF = "ticket", "off"  # the members of a group may enrol users by tickets, or may not
_GIVES = {"member-allow": ALLOWED, "member-put": PUT}
_TAKES = {"member-deny": ALLOWED, "member-take": PUT}
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,252}")  # of a host, or of a group
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

Pair = tuple[str, str]


class MemberResult(NamedTuple):
    """The result for one member. `revoke` is True if the member is to be revoked, `rejoin` if it must join again.

    `groups` and `services` are the remaining rights. `services` is None if all services are permitted. `notes` name the
    changes, and the rights that were given since the backup.
    """

    name: str
    revoke: bool
    rejoin: bool
    groups: tuple[str, ...]
    services: tuple[str, ...] | None
    notes: tuple[str, ...]


class PairsResult(NamedTuple):
    """The pairs that the log withdraws, and those that were given since the backup, which are not given again."""

    withdrawn: tuple[Pair, ...]
    lost: tuple[Pair, ...]


@dataclass(slots=True)
class _Member:
    """The facts of the log about one member. Times are Unix seconds. `certificates` are by fingerprint.

    `additions` has the time, the groups and the services of each line that adds or changes the member.
    """

    revoked: int | None = None
    certificates: dict[str, int] = field(default_factory=dict)
    additions: set[tuple[int, frozenset[str], frozenset[str] | None]] = field(default_factory=set)
    last: tuple[int, frozenset[str], frozenset[str] | None] | None = None


class FleetLog(Log):
    """The facts in the logs of the authorities. The caller sets `is_complete` after all logs are read."""

    def __init__(self, *, restored_at: int | None, now: int) -> None:
        super().__init__(restored_at=restored_at, now=now)
        self.authorities: set[str] = set()  # the hosts with lines of an authority before the restore
        self._hosts: set[str] = set()  # the other hosts with lines about the database before the restore
        self.is_complete = True
        self._members: dict[str, _Member] = {}
        self._given: dict[str, dict[Pair, int]] = {kind: {} for kind in KINDS}
        self._taken: dict[str, dict[Pair, int]] = {kind: {} for kind in KINDS}

    def _is_of_store(self, fields: Mapping[str, str]) -> bool:
        return "store" not in fields or is_database(fields["store"])

    def _add(self, line: str, verb: str, fields: Mapping[str, str]) -> None:
        super()._add(line, verb, fields)
        if not self._is_of_store(fields):
            return
        is_answer = verb in ("accepted", "refused") and "member" in fields
        if is_answer or "store" in fields:
            self._add_host(line, self.authorities if is_answer else self._hosts)
        if verb != "changed":
            return
        what, at = fields.get("what", ""), self._time(fields)
        if what == "member-enroll":
            self._add_enrolment(at, fields)
        elif what in _GIVES or what in _TAKES:
            self._add_pairs(what, at, fields)
        elif _NAME.fullmatch(fields.get("member", "")):
            self._add_member(what, at, fields)

    def count_authorities(self, addresses: Iterable[str]) -> int:
        """Return the number of authorities with lines.

        A host whose only lines are of commands counts if it is in `addresses` (HOST:PORT).
        """
        names = {text.rpartition(":")[0].strip("[]") for text in addresses}
        self.authorities |= {host for host in self._hosts if any(_is_same_host(host, name) for name in names)}
        return sum(
            not any(_is_same_host(host, other) and len(other) > len(host) for other in self.authorities)
            for host in self.authorities
        )

    def _add_host(self, line: str, hosts: set[str]) -> None:
        if line.startswith(NAME):  # without a header
            return
        host = line.partition(f" {NAME}")[0].rpartition(" ")[2].lower()
        if host not in hosts and (self._restored_at is None or self._is_before_restore(line)):
            hosts.add(host)

    def _time(self, fields: Mapping[str, str]) -> int:
        """Return the time of a change. A change without a valid time is the latest."""
        text = fields.get("at", "")
        return int(text) if text.isascii() and text.isdecimal() and int(text) < TIME_LIMIT else self._now

    def _add_pairs(self, what: str, at: int, fields: Mapping[str, str]) -> None:
        group, names = fields.get("group", ""), fields.get("names", "")
        if not _NAME.fullmatch(group):
            return
        kind = _GIVES.get(what) or _TAKES[what]
        times = self._given[kind] if what in _GIVES else self._taken[kind]
        for name in {names, *names.split(",")}:  # a line of an older version has several names
            if _is_name_of(kind, name):
                times[group, name] = max(at, times.get((group, name), 0))

    def _add_enrolment(self, at: int, fields: Mapping[str, str]) -> None:
        group, enroll = fields.get("group", ""), fields.get("enroll")
        if _NAME.fullmatch(group) and enroll in (TICKET, OFF):
            times = (self._given if enroll == TICKET else self._taken)[ENROLLING]
            times[group, TICKET] = max(at, times.get((group, TICKET), 0))

    def _add_member(self, what: str, at: int, fields: Mapping[str, str]) -> None:
        fingerprint = fields.get("fingerprint", "")
        if what not in ("member-add", "member-revoke", "member-join", "member-renew"):
            return
        if what in ("member-join", "member-renew") and not _FINGERPRINT.fullmatch(fingerprint):
            return  # a line of the member itself
        known = self._members.setdefault(fields["member"], _Member())
        if what == "member-revoke":
            known.revoked = max(at, known.revoked or 0)
        elif what == "member-add":
            services = fields.get("services")
            listed = None if services is None else frozenset(services.split(", "))
            line = at, frozenset(fields.get("groups", "").split(",")), listed
            known.additions.add(line)
            if known.last is None or at >= known.last[0]:
                known.last = line
        else:
            known.certificates[fingerprint] = max(at, known.certificates.get(fingerprint, 0))

    def member(self, row: MemberRow) -> MemberResult:
        """Return the result for a member of the database."""
        known, notes = self._members.get(row.name, _Member()), []
        groups, services = row.groups, row.services
        revoke = not row.is_revoked and known.revoked is not None and known.revoked + CLOCKS >= (row.joined or 0)
        rejoin = not revoke and not row.is_revoked and _is_outdated(row, known)
        if revoke:
            notes.append("revoked")
        elif rejoin:
            notes.append("got a later certificate: it must join again")
        if max(known.certificates.values(), default=-1) > (known.revoked or 0) and (revoke or row.is_revoked):
            notes.append("joined again since the revocation: add it again")
        if known.last is not None:
            for at, given, listed in known.additions:
                if at >= (row.joined or 0) or (at, given, listed) == known.last:
                    groups = tuple(group for group in groups if group in given)
                    if listed is not None:
                        services = tuple(sorted(listed if services is None else listed.intersection(services)))
            _, last_groups, last_services = known.last
            if lost := sorted(last_groups.difference(groups)):
                notes.append(f"groups given since the backup: {_list(lost)}")
            if last_services is None and services is not None:
                notes.append("all services were permitted since the backup")
        if groups != row.groups:
            notes.append(f"no longer in {_list(sorted({*row.groups} - {*groups}))}")
        if services != row.services:
            notes.append(f"only for {_list(services or ())}")
        return MemberResult(row.name, revoke, rejoin, groups, services, tuple(notes))

    def missing_members(self, present: Iterable[str]) -> list[str]:
        """Return the members that were added since the backup, and were not revoked later."""
        missing = self._members.keys() - set(present)
        return sorted(name for name in missing if _is_member(self._members[name]))

    def pairs(self, kind: str, present: Iterable[Pair]) -> PairsResult:
        """Return the changes by the log to the pairs of `kind`. `present` has the pairs in the database."""
        there, taken = set(present), self._taken[kind]
        withdrawn = there & taken.keys()
        given = self._given[kind].items()
        lost = [pair for pair, at in given if pair not in there - withdrawn and at > taken.get(pair, -1)]
        return PairsResult(tuple(sorted(withdrawn)), tuple(sorted(lost)))

    def _closed(self, token: Token, notes: list[str]) -> tuple[Token, list[str]]:
        if self.is_complete:
            return token, notes
        if isinstance(token, TotpToken):
            token = token.rolled_forward(self._now // token.period + max(token.drift, 0) + 1)
        needs = "codes in a row needed"
        return token.with_row_needed(), notes if needs in notes else [*notes, needs]


def _is_same_host(name: str, other: str) -> bool:
    """Return True if the names are equal, or if one is the short name of the other."""
    short, full = sorted((name.lower(), other.lower()), key=len)
    return full == short or full.startswith(f"{short}.")


def _is_outdated(row: MemberRow, known: _Member) -> bool:
    """Return True if the log has a later certificate of the member than the database."""
    others = [at for fingerprint, at in known.certificates.items() if fingerprint not in row.fingerprints]
    own = [at for fingerprint, at in known.certificates.items() if fingerprint in row.fingerprints]
    if not others or not row.fingerprints:
        return False
    return max(others) >= max(own) if own else max(others) + CLOCKS >= (row.joined or 0)


def _is_member(known: _Member) -> bool:
    latest = max((known.last[0] if known.last is not None else -1, *known.certificates.values()))
    return latest > (known.revoked if known.revoked is not None else -1)


def _is_name_of(kind: str, name: str) -> bool:
    return bool(_NAME.fullmatch(name)) if kind == ALLOWED else UserRecord.RULES["user"](name) is None


def _list(names: Iterable[str]) -> str:
    return ", ".join(name if name.isascii() and name.isprintable() else "?" for name in names) or "none"
