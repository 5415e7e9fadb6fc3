"""The statistics of the log and of the store in a terminal: numbers, bars and short tables.

Rules:
- A line fits 80 columns, or the width of the terminal.
- A terminal without block characters gets ASCII.
- The names of users are escaped, as in all tables.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from pam_totp.cli import terminal
from pam_totp.cli.printing import Table, count, format_time, shown
from pam_totp.core.record import TOKEN_TYPES
from pam_totp.metrics.log_statistics import Clock, LogStatistics
from pam_totp.metrics.store_statistics import STATES, StoreStatistics

WIDTH = 80  # columns of a file or pipe
MAX_ROWS = 10  # of a table
NOTABLE_DRIFT = 0.5  # steps: users who type slowly cause less drift
_EIGHTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
_WORDS = {"accepted": "accepted by", "refused": "refused:", "ignored": "ignored:", "presented": "presented:"}

Row = tuple[str, str, int]  # group, label, number


def draw(log: LogStatistics, store: StoreStatistics | None, since: int | None, length: int | None, source: str) -> None:
    """Print all statistics. `store` is None on a member.

    `since` is in Unix seconds. `length` is the number of characters of a serial prefix, or None for the default.
    `source` names the log.
    """
    begin = log.first if since is None else since
    span = "" if begin is None else f" since {format_time(begin)}"
    _heading(f"ANSWERS{span} ({count(log.lines, 'line')} of {source})")
    answers = [
        (service, f"{_WORDS[outcome]} {reason}", number)
        for (service, outcome, reason), number in sorted(log.answers.items(), key=lambda item: (item[0][:2], -item[1]))
    ]
    _bars(answers)
    if not answers:
        print("  none")
    if log.errors:
        print(f"  {count(log.errors, 'error')} (see 'journalctl -t pam_totp -p err')")
    known = {} if store is None else store.known
    if store is not None:
        _draw_store(store)
    prefixes = log.prefixes(known, length)
    if prefixes:
        print()
        _heading("SKIPPED CODES of key fobs, by serial prefix")
        lines = [
            (prefix, str(tokens), str(of.codes), f"{of.mean:.1f}", str(of.most))
            for prefix, tokens, of in prefixes[:MAX_ROWS]
        ]
        _table(("PREFIX", "TOKENS", "CODES", "MEAN", "MOST"), lines, len(prefixes))
    clocks = [clock for clock in log.clocks(known) if abs(clock.drift.mean) >= NOTABLE_DRIFT]
    if clocks:
        print()
        _heading("DRIFT of clocks at accepted codes")
        rows = [
            (
                clock.user,
                clock.token,
                _serial(clock),
                str(clock.drift.codes),
                f"{clock.drift.mean:+.1f}",
                _seconds(clock),
            )
            for clock in clocks[:MAX_ROWS]
        ]
        _table(("USER", "TOKEN", "SERIAL", "CODES", "STEPS", "ABOUT"), rows, len(clocks))


def draw_note(text: str) -> None:
    print(f"\n{textwrap.fill(text, _columns())}")


def _draw_store(store: StoreStatistics) -> None:
    print()
    _heading(f"TOKENS of {count(store.users, 'user')}")
    tokens = [(kind, state.replace("_", " "), store.tokens[kind, state]) for kind in TOKEN_TYPES for state in STATES]
    _bars([row for row in tokens if row[2]])
    hint = " (see 'pam-totp list --without-recovery')" if store.without_recovery else ""
    print(f"  no recovery codes: {store.without_recovery} of {count(store.enrolled, 'user')}{hint}")
    if store.failures:
        most = sorted(store.failures.items(), key=lambda item: (-item[1], item[0]))
        names = ", ".join(f"{shown(user)} {number}" for user, number in most[:MAX_ROWS])
        more = f", and {len(most) - MAX_ROWS} more" if len(most) > MAX_ROWS else ""
        print(textwrap.fill(f"wrong answers: {names}{more}", _columns(), initial_indent="  ", subsequent_indent="    "))
    if store.unreadable:
        print(f"  {count(store.unreadable, 'record')} cannot be read (see 'pam-totp doctor')")


def _columns() -> int:
    size = terminal.size()
    return WIDTH if size is None else size.columns


def _heading(text: str) -> None:
    print(terminal.styled(text, "heading"))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], total: int) -> None:
    with Table(heads) as table:
        for row in rows:
            table.add(row)
    if total > MAX_ROWS:
        print(f"and {total - MAX_ROWS} more (see --json)")


def _serial(clock: Clock) -> str:
    return "-" if clock.facts is None or clock.facts.serial is None else clock.facts.serial


def _seconds(clock: Clock) -> str:
    if clock.facts is None or not clock.facts.period:
        return "-"
    seconds = round(clock.drift.mean * clock.facts.period)
    return f"{abs(seconds)} s {'fast' if seconds > 0 else 'slow'}"


def _bars(rows: Sequence[Row]) -> None:
    """Print each row with a bar. The bars of all rows have the same scale."""
    if not rows:
        return
    groups, labels = max(len(shown(row[0])) for row in rows), max(len(shown(row[1])) for row in rows)
    highest = max(row[2] for row in rows)
    numbers = len(str(highest))
    columns = _columns()
    room = max(columns - groups - labels - numbers - 8, 0)
    has_blocks = terminal.can_print(_FULL + _EIGHTHS) and terminal.has_half_blocks()
    before = None
    for group, label, number in rows:
        name = shown(group) if group != before else ""
        before = group
        bar = _bar(number / highest, room, has_blocks=has_blocks)
        print(f"  {name:{groups}}  {shown(label):{labels}}  {number:{numbers}}  {bar}".rstrip()[:columns])


def _bar(part: float, columns: int, *, has_blocks: bool) -> str:
    """Return a bar that fills `part`, from 0 to 1, of the columns. A part above 0 is visible."""
    if not has_blocks:
        return "#" * max(round(part * columns), 1 if part and columns else 0)
    eighths = max(round(part * columns * 8), 1 if part and columns else 0)
    return _FULL * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
