"""A restored backup: bring its records forward from the log of the time since the backup.

Rules:
1. A token is identified by user, name and time of creation. Renames in the log are followed.
2. The log can only take rights away: counters and steps go up, a token is disabled or removed, codes in a row are
   needed. Forged lines of an account that may write to the system log open nothing; `covers` states the one exception.
3. A line counts only if it begins as a log daemon writes the lines of pam_totp. Text in other lines does not count.
4. Only lines older than the restore show that the log covers a key fob. A login after the restore may be a replay.
5. The times and the lines are arguments. Times without a zone are of the zone of this process.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeGuard

from pam_totp.core.oath import MOVING_FACTOR_LIMIT
from pam_totp.core.record import TIME_LIMIT, HotpToken, Token, TotpToken, UserRecord
from pam_totp.operations.audit_log import MAX_FIELD, NAME

# The start of a line: of rsyslog, syslogd and `journalctl -o short`, of RFC 3339 times, and of `-o short-full`.
_HEADER = re.compile(
    r"(?:(?:(?P<month>[A-Z][a-z]{2}) (?P<day>[ \d]\d) (?P<clock>\d\d:\d\d:\d\d)(?:\.\d+)?"
    r"|(?P<iso>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d))"
    r"|[A-Z][a-z]{2} (?P<local>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(?:\.\d+)? (?P<zone>\S+))"
    rf" \S+ {NAME}(?:\[\d+\])?: )?(?={NAME}\()"
)
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_WORD = r"[A-Za-z0-9._@%+:/-]+"
_LINE = re.compile(rf"{NAME}\((?:{_WORD}|{_QUOTED}):auth\): ([a-z]+)((?: [a-z_]+=(?:{_WORD}|{_QUOTED}))*)\s*")
_FIELD = re.compile(rf" ([a-z_]+)=({_WORD}|{_QUOTED})")
_NUMBER = re.compile(r"[0-9]{1,20}")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DAY = 86_400  # seconds
_LEAP_YEARS = 8  # years: 29 February exists at least once in so many years
_FUTURE_STEPS = 2 * 2880  # no clock and no drift make a login accept a step that is later than now by more than this

Key = tuple[str, int]  # a token's name and its time of creation


def parse(line: str) -> tuple[str, dict[str, str]] | None:
    """Return the verb and the fields of a line of the log, or None if it is no line of the audit log."""
    header = _HEADER.match(line)
    found = _LINE.fullmatch(line, header.end()) if header is not None else None
    if found is None:
        return None
    try:
        fields = {name: str(json.loads(text)) if text[0] == '"' else text for name, text in _FIELD.findall(found[2])}
    except ValueError:
        return None
    return found[1], fields


def written_at(line: str, now: int) -> int | None:
    """Return the time at the start of a line of the log (Unix seconds), or None. It is never older than the true time.

    A time without a year is the last one that is not later than `now` and a day.
    """
    header = _HEADER.match(line)
    if header is None:
        return None
    try:
        if header["iso"] is not None:
            return int(datetime.fromisoformat(header["iso"]).timestamp())
        if header["local"] is not None:
            return _in_zone(datetime.fromisoformat(header["local"]), header["zone"])
        return None if header["month"] is None else _in_last_year(header, now + _DAY)
    except (ValueError, OverflowError):
        return None


def _in_zone(local: datetime, zone: str) -> int | None:
    """Return a time in UTC or in the zone of this process as Unix seconds, or None for another zone."""
    if zone == "UTC":
        return int(local.replace(tzinfo=UTC).timestamp())
    local = _later(local)
    return int(local.timestamp()) if local.astimezone().tzname() == zone else None


def _in_last_year(header: re.Match[str], latest: int) -> int | None:
    """Return the last time with this month, day and time of day that is not later than `latest`, or None."""
    year = datetime.fromtimestamp(latest).astimezone().year
    month = _MONTHS.index(header["month"]) + 1
    for candidate in range(year, year - _LEAP_YEARS, -1):
        try:
            local = _later(datetime.fromisoformat(f"{candidate}-{month:02}-{int(header['day']):02} {header['clock']}"))
        except ValueError:  # 29 February of another year
            continue
        if local.timestamp() <= latest:
            return int(local.timestamp())
    return None


def _later(local: datetime) -> datetime:
    """Return the later of two times that a local clock shows twice, at the end of daylight saving time."""
    return local.replace(fold=1)


@dataclass(slots=True)
class _History:
    """What the changes in the log say about one token. `name` is its last name."""

    keys: set[Key]
    name: str
    enrolled: bool = False
    removed: bool = False
    enabled: bool | None = None


@dataclass(slots=True)
class _User:
    """What the log says about one user's tokens.

    `covering` has the highest counters or steps of the lines older than the restore. `confirmed` are the tokens with a
    line that only a confirmed token has. `recovery_made` is the last time of new recovery codes (Unix seconds).
    """

    next_factors: dict[Key, int] = field(default_factory=dict)
    covering: dict[Key, int] = field(default_factory=dict)
    confirmed: set[Key] = field(default_factory=set)
    recovery_made: int | None = None
    changes: list[tuple[int, int, str, Key, str]] = field(default_factory=list)  # time, number, change, token, new name


@dataclass(frozen=True, slots=True)
class Span:
    """The number of lines of pam_totp in a file, and the time and host of the first and of the last one."""

    lines: int
    first: str
    last: str


class Log:
    """What the lines of a log say about the tokens of all users."""

    def __init__(self, stores: Collection[str] = (), *, restored_at: int | None, now: int) -> None:
        """Create an empty log. The times are Unix seconds.

        Changes in a store count if its name is in `stores` or, as that of the default store, not in the line.
        `restored_at` is the time of the restore, or earlier. If it is None, no line covers a key fob.
        """
        self.lines = 0  # lines of pam_totp
        self.last_restored: int | None = None  # time of the last line of `pam-totp restored` since the restore
        self._stores = stores
        self._restored_at = restored_at
        self._now = now
        self._users: dict[str, _User] = {}

    def read(self, lines: Iterable[str]) -> Span:
        """Add lines, and return what was found."""
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
        at = _number(fields.get("at"), TIME_LIMIT)
        if what == "restored" and at is not None and at >= (self._restored_at or 0):
            self.last_restored = max(at, self.last_restored or 0)
        if not _is_name(user) or not self._is_of_store(fields):
            return
        if what == "recovery" and at is not None:
            known = self._users.setdefault(user, _User())
            known.recovery_made = max(at, known.recovery_made or 0)
        if not _is_name(name) or created is None:
            return
        known, key = self._users.setdefault(user, _User()), (name, created)
        if verb == "accepted" or what in ("confirm", "resync"):
            known.confirmed.add(key)
        next_factor = _number(fields.get("next"), MOVING_FACTOR_LIMIT + 1)
        if next_factor is not None:
            known.next_factors[key] = max(next_factor, known.next_factors.get(key, 0))
            if self._is_before_restore(line):
                known.covering[key] = max(next_factor, known.covering.get(key, 0))
        if what and at is not None:
            to = fields.get("to", "")
            known.changes.append((at, self.lines, what, key, to if _is_name(to) else ""))

    def _is_of_store(self, fields: Mapping[str, str]) -> bool:
        return "store" not in fields or fields["store"] in self._stores

    def _is_before_restore(self, line: str) -> bool:
        if self._restored_at is None:
            return False
        at = written_at(line, self._now)
        return at is not None and at < self._restored_at

    def forward(self, record: UserRecord) -> Forwarded:
        """Return the record of a backup, brought forward."""
        known = self._users.get(record.user, _User())
        histories = _histories(known)
        results = [_forwarded(token, known, histories, self._now) for token in record.tokens]
        missing = [
            history.name
            for history in {id(h): h for every in histories.values() for h in every}.values()
            if history.enrolled and not history.removed
            if not any((token.name, token.created) in history.keys for token in record.tokens)
        ]
        kept = tuple(token for token, _ in results if token is not None)
        return Forwarded(
            record=record.restored(kept) if kept or not record.tokens else None,
            tokens=tuple((old, new, tuple(notes)) for old, (new, notes) in zip(record.tokens, results, strict=True)),
            voided=len(record.recovery),
            missing=tuple(sorted(missing)),
            recovery_made=known.recovery_made,
        )

    def users(self) -> Iterator[str]:
        """Yield the users in the log."""
        yield from self._users


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The result for one record, which is None if no token is left.

    `tokens` has each token of the backup, the token brought forward (None if it was removed), and what was changed.
    `voided` counts the recovery codes of the backup. `missing` are the tokens that were enrolled since the backup.
    `recovery_made` is the time (Unix seconds) of the last new recovery codes in the log. They are void, too.
    """

    record: UserRecord | None
    tokens: tuple[tuple[Token, Token | None, tuple[str, ...]], ...]
    voided: int
    missing: tuple[str, ...]
    recovery_made: int | None


def covers(token: HotpToken, covering: int | None) -> bool:
    """Return True if a log with `covering` as the highest counter of this token covers the time since the backup.

    `covering` is of lines older than the restore. The log covers the token if it has a use that is not older than the
    backup: uses only go up, so all later ones are in the same log. For a token that was not used since the backup, the
    log must reach back to its last use before the backup. A forged line can claim coverage. Therefore lines must come
    from a source that names their writer.
    """
    return covering is not None and covering >= token.counter


def _is_name(text: str | None) -> TypeGuard[str]:
    """Return True if a user or a token can have this name. A name longer than a field is truncated in the log."""
    return text is not None and text.isprintable() and len(text) <= MAX_FIELD


def _number(text: str | None, limit: int) -> int | None:
    """Return a whole number below `limit`, or None."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    return int(text) if int(text) < limit else None


def _histories(known: _User) -> dict[Key, list[_History]]:
    """Apply the changes of a user in the order of their times. Return the histories of the tokens that had each key."""
    found: dict[Key, list[_History]] = {}
    current: dict[Key, _History] = {}

    def history(key: Key) -> _History:
        if key not in current:
            current[key] = _History({key}, key[0])
            found.setdefault(key, []).append(current[key])
        return current[key]

    for _, _, what, key, to in sorted(known.changes):
        token = history(key)
        if what in ("enroll", "import"):
            token.enrolled, token.removed = True, False
        elif what == "remove":
            token.removed = True
        elif what in ("enable-token", "disable-token"):
            token.enabled = what == "enable-token"
        elif what == "rename" and to:
            renamed = (to, key[1])
            del current[key]
            current[renamed] = token
            token.name = to
            if renamed not in token.keys:
                token.keys.add(renamed)
                found.setdefault(renamed, []).append(token)
    return found


def _forwarded(
    token: Token, known: _User, histories: Mapping[Key, list[_History]], now: int
) -> tuple[Token | None, list[str]]:
    """Return the token brought forward, or None if it was removed; and what was changed."""
    key = (token.name, token.created)
    history = histories.get(key, [_History({key}, token.name)])[0]
    if any(len(histories.get(k, ())) > 1 for k in history.keys):
        # Tokens that were enrolled in the same second had the same name in turn, so the log does not tell them apart.
        return _with_row(token, ["the log names it ambiguously"])
    if history.removed:
        return None, ["removed"]
    notes = []
    changed = token
    if history.enabled is False and token.enabled:
        changed = changed.switched(False)
        notes.append("disabled")
    next_factor = _highest(known.next_factors, history)
    is_future = isinstance(changed, TotpToken) and (next_factor or 0) > now // changed.period + _FUTURE_STEPS
    if is_future:
        notes.append("ignored a step that is in the future")
    elif next_factor is not None and next_factor > changed.next_factor:
        what = "counter" if isinstance(changed, HotpToken) else "next step"
        notes.append(f"{what} {changed.next_factor} -> {next_factor}")
        changed = changed.brought_forward(next_factor)
    notes += _losses(token, known, history)
    if isinstance(token, HotpToken) and not covers(token, _highest(known.covering, history)):
        return _with_row(changed, notes)
    return changed, notes


def _highest(factors: Mapping[Key, int], history: _History) -> int | None:
    return max((factors[key] for key in history.keys if key in factors), default=None)


def _losses(token: Token, known: _User, history: _History) -> list[str]:
    """Return the changes since the backup that the log cannot make again, because lines can be forged."""
    losses = []
    if history.enabled and not token.enabled:
        losses.append("still disabled: it was enabled since the backup")
    if not token.confirmed and not known.confirmed.isdisjoint(history.keys):
        losses.append("confirmed since the backup: confirm it again")
    if history.name != token.name:
        losses.append(f"has its old name again: it was renamed to '{history.name}'")
    return losses


def _with_row(token: Token, notes: list[str]) -> tuple[Token, list[str]]:
    return token.with_row_needed(), [*notes, "codes in a row needed"]
