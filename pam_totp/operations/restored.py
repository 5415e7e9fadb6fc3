"""A restored backup: bring its records forward from the log of the time since the backup.

Rules:
1. A token is identified by user, name and time of creation. Renames in the log are followed.
2. The log can only take rights away: counters and steps go up, a token is disabled or removed, a row is needed. Forged
   lines of an account that may write to the system log open nothing; `covers` states the one exception.
3. A line counts only if it begins as a log daemon writes the lines of pam_totp. Text in other lines does not count.
4. The time and the lines are arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pam_totp.core.oath import MOVING_FACTOR_LIMIT
from pam_totp.core.record import TIME_LIMIT, HotpToken, Token, TotpToken, UserRecord
from pam_totp.operations.audit_log import MAX_FIELD, NAME

# The start of a line: of rsyslog, syslogd and `journalctl -o short`, of RFC 3339 times, and of `-o short-full`.
_HEADER = re.compile(
    r"(?:(?:[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?"
    r"|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)"
    r"|[A-Z][a-z]{2} \d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? \S+)"
    rf" \S+ {NAME}(?:\[\d+\])?: )?(?={NAME}\()"
)
_QUOTED = r'"(?:[^"\\]|\\.)*"'
_WORD = r"[A-Za-z0-9._@%+:/-]+"
_LINE = re.compile(rf"{NAME}\((?:{_WORD}|{_QUOTED}):auth\): ([a-z]+)((?: [a-z_]+=(?:{_WORD}|{_QUOTED}))*)\s*")
_FIELD = re.compile(rf" ([a-z_]+)=({_WORD}|{_QUOTED})")
_NUMBER = re.compile(r"[0-9]{1,20}")
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


@dataclass(slots=True)
class _History:
    """What the changes in the log say about one token."""

    keys: set[Key]
    enrolled: bool = False
    removed: bool = False
    enabled: bool | None = None


@dataclass(slots=True)
class _User:
    """What the log says about one user's tokens."""

    next_factors: dict[Key, int] = field(default_factory=dict)
    changes: list[tuple[int, int, str, Key, str]] = field(default_factory=list)  # time, number, change, token, new name


@dataclass(frozen=True, slots=True)
class Span:
    """The number of lines of pam_totp in a file, and the time and host of the first and of the last one."""

    lines: int
    first: str
    last: str


class Log:
    """What the lines of a log say about the tokens of all users."""

    def __init__(self, store: str | None = None) -> None:
        """Create an empty log. Changes in other stores than `store` are ignored; None is the default store."""
        self.lines = 0  # lines of pam_totp
        self._store = store
        self._users: dict[str, _User] = {}

    def read(self, lines: Iterable[str]) -> Span:
        """Add lines, and return what was found."""
        before, first, last = self.lines, "", ""
        for line in lines:
            parsed = parse(line)
            if parsed is not None:
                self.lines += 1
                self._add(*parsed)
                last = line.partition(f" {NAME}")[0] if not line.startswith(NAME) else ""
                first = first or last
        return Span(self.lines - before, first, last)

    def _add(self, verb: str, fields: Mapping[str, str]) -> None:
        user, name, created = fields.get("user"), fields.get("token"), _number(fields.get("created"), TIME_LIMIT)
        if user is None or name is None or created is None or fields.get("store", self._store) != self._store:
            return
        if max(len(user), len(name)) > MAX_FIELD:  # truncated
            return
        known, key = self._users.setdefault(user, _User()), (name, created)
        next_factor = _number(fields.get("next"), MOVING_FACTOR_LIMIT + 1)
        if next_factor is not None:
            known.next_factors[key] = max(next_factor, known.next_factors.get(key, 0))
        at = _number(fields.get("at"), TIME_LIMIT)
        if verb == "changed" and at is not None:
            known.changes.append((at, self.lines, fields.get("what", ""), key, fields.get("to", "")))

    def forward(self, record: UserRecord, now: int) -> Forwarded:
        """Return the record of a backup, brought forward at `now` (Unix seconds)."""
        known = self._users.get(record.user, _User())
        histories = _histories(known)
        results = [_forwarded(token, known, histories, now) for token in record.tokens]
        missing = [
            max(history.keys)[0]
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
        )

    def users(self) -> Iterator[str]:
        """Yield the users in the log."""
        yield from self._users


@dataclass(frozen=True, slots=True)
class Forwarded:
    """The result for one record, which is None if no token is left.

    `tokens` has each token of the backup, the token brought forward (None if it was removed), and what was changed.
    `voided` counts the recovery codes of the backup. `missing` are the tokens that were enrolled since the backup.
    """

    record: UserRecord | None
    tokens: tuple[tuple[Token, Token | None, tuple[str, ...]], ...]
    voided: int
    missing: tuple[str, ...]


def covers(token: HotpToken, next_factor: int | None) -> bool:
    """Return True if a log with `next_factor` as the highest of this token covers the time since the backup.

    It does if it knows a use of the token that is not older than the backup: uses only go up, so all later ones are in
    the same log. A forged line can claim this. Therefore lines must come from a source that names their writer.
    """
    return next_factor is not None and next_factor >= token.counter


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
            current[key] = _History({key})
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
            if renamed not in token.keys:
                token.keys.add(renamed)
                found.setdefault(renamed, []).append(token)
    return found


def _forwarded(
    token: Token, known: _User, histories: Mapping[Key, list[_History]], now: int
) -> tuple[Token | None, list[str]]:
    """Return the token brought forward, or None if it was removed; and what was changed."""
    key = (token.name, token.created)
    history = histories.get(key, [_History({key})])[0]
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
    elif history.enabled and not token.enabled:
        notes.append("still disabled: it was enabled since the backup")
    next_factor = max((known.next_factors[k] for k in history.keys if k in known.next_factors), default=None)
    is_future = isinstance(changed, TotpToken) and (next_factor or 0) > now // changed.period + _FUTURE_STEPS
    if is_future:
        notes.append("ignored a step that is in the future")
    elif next_factor is not None and next_factor > changed.next_factor:
        what = "counter" if isinstance(changed, HotpToken) else "next step"
        notes.append(f"{what} {changed.next_factor} -> {next_factor}")
        changed = changed.brought_forward(next_factor)
    if isinstance(token, HotpToken) and not covers(token, next_factor):
        return _with_row(changed, notes)
    return changed, notes


def _with_row(token: Token, notes: list[str]) -> tuple[Token, list[str]]:
    return token.with_row_needed(), [*notes, "codes in a row needed"]
