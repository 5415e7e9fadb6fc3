"""A restored backup: roll its records forward from the log of the time since the backup.

Rules:
1. User, name and time of creation identify a token. `Log` follows the renames in its lines.
2. The log can only take rights away: it increases counters and steps, disables or removes a token, or requires codes in
   a row. Lines forged by an account that may write to the system log give no access; `covers` states the exception. A
   token that the log removes or disables remains removed or disabled: no later line adds or enables it.
3. `Log` uses a line only if it begins as a log daemon writes the lines of pam_totp. `Log` ignores all other lines.
   Names that a record cannot have are ignored, so that all results can be printed and compared with records.
4. Only lines older than the restore show that the log covers a key fob. A line of a login after the restore shows no
   coverage, because the login might be a replay.
5. An enrolled user remains enrolled: the last confirmed token is disabled instead of removed. Otherwise a forged
   removal would let this user log in with only the password, if `nullok` is set.
6. A token in stock keeps its key. The lines that name its serial number roll its counter or step forward.
7. The times and the lines are arguments. Times without a zone are in the zone of this process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeGuard

from pam_totp.core.oath import MOVING_FACTOR_LIMIT
from pam_totp.core.record import DAY, TIME_LIMIT, HotpToken, Token, TotpToken, UserRecord
from pam_totp.core.serials import serial_key
from pam_totp.operations.audit_log import NAME

# The start of a line: of rsyslog, syslogd and `journalctl -o short`, of RFC 3339 times, and of `-o short-full`.
_HEADER = re.compile(
    r"(?:(?:(?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) (?P<clock>\d\d:\d\d:\d\d)(?:\.\d+)?"
    r"|(?P<iso>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d))"
    r"|[A-Z][a-z]{2} (?P<local>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? (?P<zone>[!-~]+))"
    rf" [!-~]+ {NAME}(?:\[\d+\])?: )?(?={NAME}\()"
)
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_WORD = r"[A-Za-z0-9._@%+:/-]+"
_LINE = re.compile(rf"{NAME}\(({_WORD}|{_QUOTED}):auth\): ([a-z]+)((?: [a-z_]+=(?:{_WORD}|{_QUOTED}))*)\s*")
_FIELD = re.compile(rf" ([a-z_]+)=({_WORD}|{_QUOTED})")
_NUMBER = re.compile(r"[0-9]{1,20}")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LEAP_YEARS = 8  # years: any eight years in a row have a 29 February
_FUTURE_STEPS = 2 * 2880  # steps: the largest difference between the current step and an accepted later step

_LATEST = {what: what for what in ("enroll", "remove", "enable-token", "disable-token")}
_LATEST |= {"import": "enroll", "assign": "enroll", "unassign": "remove", "return": "remove"}

Key = tuple[str, int]  # a token's name and its time of creation


def parse(line: str) -> tuple[str, dict[str, str]] | None:
    """Return the verb and the fields of a line of the audit log, or None for any other line."""
    found = parse_with_service(line)
    return None if found is None else found[1:]


def parse_with_service(line: str) -> tuple[str, str, dict[str, str]] | None:
    """Return the service, the verb and the fields of a line of the audit log, or None for any other line."""
    header = _HEADER.match(line)
    found = _LINE.fullmatch(line, header.end()) if header is not None else None
    if found is None:
        return None
    try:
        return _plain(found[1]), found[2], {name: _plain(text) for name, text in _FIELD.findall(found[3])}
    except ValueError:
        return None


def _plain(text: str) -> str:
    """Return a value without its escapes. Raise ValueError."""
    return str(json.loads(text)) if text[0] == '"' else text


def written_at(line: str, now: int) -> int | None:
    """Return the time at the start of a line of the log (Unix seconds), or None. The result is never earlier than the
    true time.

    A time without a year means the latest such time up to one day after `now`.
    """
    header = _HEADER.match(line)
    if header is None:
        return None
    try:
        if header["iso"] is not None:
            return int(datetime.fromisoformat(header["iso"]).timestamp())
        if header["local"] is not None:
            return _in_zone(datetime.fromisoformat(header["local"]), header["zone"])
        return None if header["month"] is None else _in_last_year(header, now + DAY)
    except (ValueError, OverflowError):
        return None


def _in_zone(local: datetime, zone: str) -> int | None:
    """Return a time in UTC or in the zone of this process as Unix seconds, or None for another zone."""
    if zone == "UTC":
        return int(local.replace(tzinfo=UTC).timestamp())
    local = _later(local)
    return int(local.timestamp()) if local.astimezone().tzname() == zone else None


def _in_last_year(header: re.Match[str], latest: int) -> int | None:
    """Return the latest time with this month, day and time of day up to `latest` (Unix seconds), or None."""
    year = datetime.fromtimestamp(latest).astimezone().year
    month = _MONTHS.index(header["month"]) + 1
    for candidate in range(year, year - _LEAP_YEARS, -1):
        try:
            local = _later(datetime.fromisoformat(f"{candidate}-{month:02}-{int(header['day']):02} {header['clock']}"))
        except ValueError:  # 29 February does not exist in this year
            continue
        if local.timestamp() <= latest:
            return int(local.timestamp())
    return None


def _later(local: datetime) -> datetime:
    """Return the later of two times that a local clock shows twice, at the end of daylight saving time."""
    return local.replace(fold=1)


@dataclass(slots=True)
class _Group:
    """All names of a token before and after its renames, with its time of creation. `name` is the latest name."""

    keys: set[Key]
    name: str


@dataclass(slots=True)
class _User:
    """The facts of the log about one user's tokens.

    `next_factors` has the highest counters or steps, for each token, by the result of `_longest_period`. `covering` has
    the highest counter or step from lines older than the restore. `confirmed_keys` are the tokens with a line that only
    a confirmed token has. `recovery_made` is the last time of new recovery codes, and `latest` the last time of each
    change (Unix seconds).
    """

    next_factors: dict[Key, dict[int, int]] = field(default_factory=dict)
    covering: dict[Key, int] = field(default_factory=dict)
    confirmed_keys: set[Key] = field(default_factory=set)
    recovery_made: int | None = None
    latest: dict[str, dict[Key, int]] = field(default_factory=lambda: {what: {} for what in _LATEST.values()})
    renames: list[tuple[int, int, Key, str]] = field(default_factory=list)  # time, number, token, new name

    def last(self, what: str, keys: Iterable[Key]) -> int | None:
        """Return the time (Unix seconds) of the last change `what` to the tokens `keys`, or None."""
        return _highest(self.latest[what], keys)

    def is_enrolled(self, keys: Iterable[Key]) -> bool:
        """Return True if the last line that adds or removes one of these tokens adds it.

        Return False if the last line of each kind has the same second.
        """
        enrolled, removed = self.last("enroll", keys), self.last("remove", keys)
        return enrolled is not None and (removed is None or enrolled > removed)

    def is_removed(self, keys: Iterable[Key]) -> bool:
        """Return True if the last line that adds or removes one of these tokens removes it."""
        return self.last("remove", keys) is not None and not self.is_enrolled(keys)

    def is_ambiguous(self, keys: set[Key]) -> bool:
        """Return True if several tokens with these names were added."""
        return len(keys & self.latest["enroll"].keys()) > 1


@dataclass(frozen=True, slots=True)
class Span:
    """The number of lines of pam_totp in a file, and the time and host of the first and the last line."""

    lines: int
    first: str
    last: str


class Log:
    """The facts in the lines of a log about the tokens of all users."""

    def __init__(self, stores: Collection[str] = (), *, restored_at: int | None, now: int) -> None:
        """Create an empty log. The times are Unix seconds.

        A change is used if `stores` contains the store named in the line. A line without a store is about the default
        store. `restored_at` is the time of the restore, or earlier. No line covers a key fob if `restored_at` is None.
        """
        self.lines = 0  # lines of pam_totp
        self.last_restored: int | None = None  # time of the last line of `pam-totp restored` since the restore
        self._stores = stores
        self._restored_at = restored_at
        self._now = now
        self._users: dict[str, _User] = {}
        self._serials: dict[str, set[tuple[str, Key]]] = {}  # by `serial_key`: the users and tokens in its lines

    def read(self, lines: Iterable[str]) -> Span:
        """Add lines, and return the span of the lines of pam_totp."""
        before, first, last = self.lines, "", ""
        for line in lines:
            parsed = parse(line)
            if parsed is not None:
                self.lines += 1
                self._add(line, *parsed)
                last = line.partition(f" {NAME}")[0] if not line.startswith(NAME) else ""
                first = first or last
        return Span(self.lines - before, first, last)

    def _add(self, line: str, verb: str, fields: Mapping[str, str]) -> None:
        user, name, created = fields.get("user"), fields.get("token"), _number(fields.get("created"), TIME_LIMIT)
        what = fields.get("what", "") if verb == "changed" else ""
        at = _number(fields.get("at"), self._now + DAY)
        if what == "restored" and at is not None and at >= (self._restored_at or 0):
            self.last_restored = max(at, self.last_restored or 0)
        if not _is_user(user) or not self._is_of_store(fields):
            return
        if what == "recovery" and at is not None:
            known = self._users.setdefault(user, _User())
            known.recovery_made = max(at, known.recovery_made or 0)
        if not _is_name(name) or created is None:
            return
        known, key = self._users.setdefault(user, _User()), (name, created)
        if (serial := fields.get("serial")) is not None:
            self._serials.setdefault(serial_key(serial), set()).add((user, key))
        if verb == "accepted" or what in ("confirm", "resync"):
            known.confirmed_keys.add(key)
        next_factor = _number(fields.get("next"), MOVING_FACTOR_LIMIT + 1)
        if next_factor is not None:
            highest, period = known.next_factors.setdefault(key, {}), _longest_period(next_factor, self._now)
            highest[period] = max(next_factor, highest.get(period, 0))
            if self._is_before_restore(line):
                known.covering[key] = max(next_factor, known.covering.get(key, 0))
        to = fields.get("to")
        if what == "rename" and _is_name(to):
            known.renames.append((at or 0, self.lines, key, to))
        # A removal or a disabling without a time is used, as the earliest.
        elif what in _LATEST and (at is not None or _LATEST[what] in ("remove", "disable-token")):
            latest = known.latest[_LATEST[what]]
            latest[key] = max(at or 0, latest.get(key, 0))

    def _is_of_store(self, fields: Mapping[str, str]) -> bool:
        return "store" not in fields or fields["store"] in self._stores

    def _is_before_restore(self, line: str) -> bool:
        if self._restored_at is None:
            return False
        at = written_at(line, self._now)
        return at is not None and at < self._restored_at

    def forward(self, record: UserRecord) -> Forwarded:
        """Return the record of a backup, rolled forward."""
        known = self._users.get(record.user, _User())
        groups = _groups(known.renames)
        own = [_group(groups, (token.name, token.created)) for token in record.tokens]
        every = [_group(groups, key) for key in known.latest["enroll"]]
        missing = {id(group): group.name for group in every if known.is_enrolled(group.keys)}
        results: list[tuple[Token | None, list[str]]] = []
        removed = set()
        for i, (token, group) in enumerate(zip(record.tokens, own, strict=True)):
            missing.pop(id(group), None)
            if sum(other is group for other in own) > 1 or known.is_ambiguous(group.keys):
                results.append(_ambiguous(token))
                continue
            results.append(self._closed(*_forwarded(token, known, group, self._now)))
            if known.is_removed(group.keys):
                removed.add(i)
        for i in removed - {_last_confirmed(record, removed)}:
            results[i] = None, ["removed"]
        kept = tuple(token for token, _ in results if token is not None)
        return Forwarded(
            record=record.restored(kept) if kept or not record.tokens else None,
            tokens=tuple((old, new, tuple(notes)) for old, (new, notes) in zip(record.tokens, results, strict=True)),
            void_codes=len(record.recovery),
            missing=tuple(sorted(missing.values())),
            recovery_made=known.recovery_made,
        )

    def forward_stock(self, token: Token) -> tuple[Token, list[str]]:
        """Return a token in stock, rolled forward, and notes.

        A user might have used the token since the backup. A key fob needs codes in a row, because lines might be
        missing.
        """
        next_factor = 0
        for user, key in self._serials.get(serial_key(token.serial or ""), ()):
            known = self._users[user]
            next_factor = max(next_factor, _next_factor(token, known, _group(_groups(known.renames), key).keys)[0])
        notes = []
        if next_factor > token.next_factor:
            notes.append(f"{_name_of_factor(token)} {token.next_factor} -> {next_factor}")
            token = token.rolled_forward(next_factor)
        if isinstance(token, HotpToken) and not token.row_needed:
            token, notes = _with_row(token, notes)
        return self._closed(token, notes)

    def _closed(self, token: Token, notes: list[str]) -> tuple[Token, list[str]]:
        """Return the token and the notes. A subclass adds the requirements that follow from an incomplete log."""
        return token, notes

    def users(self) -> Iterator[str]:
        """Yield the users in the log."""
        yield from self._users


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The result for one record. `record` is None if the log removes all its tokens and the user was not enrolled.

    `tokens` has each token of the backup, the token rolled forward (None if it was removed), and notes on the changes.
    `void_codes` counts the recovery codes of the backup. `missing` are the tokens that were enrolled since the backup.
    `recovery_made` is the time (Unix seconds) of the last new recovery codes in the log. These recovery codes are void,
    too.
    """

    record: UserRecord | None
    tokens: tuple[tuple[Token, Token | None, tuple[str, ...]], ...]
    void_codes: int
    missing: tuple[str, ...]
    recovery_made: int | None


def covers(token: HotpToken, covering: int | None) -> bool:
    """Return True if a log with `covering` as the highest counter of this token covers the time since the backup.

    `covering` is of lines older than the restore. The log covers the token if the log has a use at or after the backup.
    The same log then has all later uses, because counters only increase. For a token that was not used since the
    backup, the log must reach back to its last use before the backup. Lines must come from a source that names their
    writer, because a forged line can claim coverage.
    """
    return covering is not None and covering >= token.counter


def _is_user(text: str | None) -> TypeGuard[str]:
    """Return True if `text` is a valid user name. A name longer than a field is truncated in the log."""
    return UserRecord.RULES["user"](text) is None


def _is_name(text: str | None) -> TypeGuard[str]:
    """Return True if `text` is a valid name of a token. A name longer than a field is truncated in the log."""
    return Token.RULES["name"](text) is None


def _number(text: str | None, limit: int) -> int | None:
    """Return a whole number below `limit`, or None."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    return int(text) if int(text) < limit else None


def _longest_period(step: int, now: int) -> int:
    """Return the longest period (seconds) of a token with the next step `step` at `now` (Unix seconds), or 0."""
    past = step - _FUTURE_STEPS
    return DAY if past <= 0 else min(now // past, DAY)


def _groups(renames: Iterable[tuple[int, int, Key, str]]) -> dict[Key, _Group]:
    """Return the group of each token in `renames`. The order of the renames decides about the last name only.

    A forged rename cannot separate a token from the line of its removal: it can only connect more tokens.
    """
    groups: dict[Key, _Group] = {}
    in_order = sorted(renames)
    for _, _, key, to in in_order:
        large, small = (groups.setdefault(k, _Group({k}, k[0])) for k in (key, (to, key[1])))
        if large is not small:
            if len(large.keys) < len(small.keys):
                large, small = small, large
            large.keys |= small.keys
            groups.update(dict.fromkeys(small.keys, large))
    for _, _, key, to in in_order:
        groups[key].name = to
    return groups


def _group(groups: dict[Key, _Group], key: Key) -> _Group:
    return groups.setdefault(key, _Group({key}, key[0]))


def _forwarded(token: Token, known: _User, group: _Group, now: int) -> tuple[Token, list[str]]:
    """Return the token rolled forward, and notes on the changes. A removed token is disabled."""
    keys = group.keys
    notes = []
    changed = token
    if known.is_removed(keys):
        changed = changed.switched(False)
        notes.append("removed: kept as disabled, because a user without a token passes nullok")
    elif token.enabled and known.last("remove", keys) is not None:
        changed = changed.switched(False)
        notes.append("disabled: it was removed, and a log line that adds it again is ignored")
    elif token.enabled and (disabled := known.last("disable-token", keys)) is not None:
        changed = changed.switched(False)
        is_enabled = (known.last("enable-token", keys) or 0) > disabled
        notes.append("disabled: a log line that enables it again is ignored" if is_enabled else "disabled")
    next_factor, is_future = _next_factor(token, known, keys)
    if is_future:
        notes.append("ignored a step that is in the future")
    if next_factor > changed.next_factor:
        notes.append(f"{_name_of_factor(changed)} {changed.next_factor} -> {next_factor}")
        changed = changed.rolled_forward(next_factor)
    notes += _losses(token, known, group)
    if isinstance(token, HotpToken) and not covers(token, _highest(known.covering, keys)):
        return _with_row(changed, notes)
    return changed, notes


def _ambiguous(token: Token) -> tuple[Token, list[str]]:
    """Return the token, disabled, because the log cannot distinguish it from another token with the same name and the
    same second of enrolment.
    """
    return _with_row(token.switched(False), ["disabled: the log cannot distinguish it from another token"])


def _last_confirmed(record: UserRecord, removed: set[int]) -> int | None:
    """Return the index of the last confirmed token if `removed` contains all confirmed tokens, otherwise None."""
    confirmed = [i for i, token in enumerate(record.tokens) if token.confirmed]
    return confirmed[-1] if confirmed and removed.issuperset(confirmed) else None


def _next_factor(token: Token, known: _User, keys: Iterable[Key]) -> tuple[int, bool]:
    """Return the highest counter or possible step in the log, or 0, and True if the log has an impossible step."""
    highest = [item for key in keys for item in known.next_factors.get(key, {}).items()]
    shortest = token.period if isinstance(token, TotpToken) else 0
    possible = max((factor for period, factor in highest if period >= shortest), default=0)
    return possible, any(period < shortest for period, _ in highest)


def _highest(found: Mapping[Key, int], keys: Iterable[Key]) -> int | None:
    return max((found[key] for key in keys if key in found), default=None)


def _losses(token: Token, known: _User, group: _Group) -> list[str]:
    """Return notes on lost changes since the backup. Forged lines could cause such changes, so they are not applied."""
    losses = []
    enabled, disabled = known.last("enable-token", group.keys), known.last("disable-token", group.keys)
    if not token.enabled and enabled is not None and (disabled is None or enabled > disabled):
        losses.append("still disabled: it was enabled since the backup")
    if not token.confirmed and not known.confirmed_keys.isdisjoint(group.keys):
        losses.append("confirmed since the backup: confirm it again")
    if group.name != token.name:
        losses.append(f"has its old name again: it was renamed to '{group.name}'")
    return losses


def _name_of_factor(token: Token) -> str:
    return "counter" if isinstance(token, HotpToken) else "next step"


def _with_row(token: Token, notes: list[str]) -> tuple[Token, list[str]]:
    return token.with_row_needed(), [*notes, "codes in a row needed"]
