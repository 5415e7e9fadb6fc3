"""The host's clock, and spans of time in text: 90d, 36h, 1h30m, 250ms."""

from __future__ import annotations

import re
import time

UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 7 * 86_400_000}
LONGEST = 100 * 365 * UNITS["d"]  # ms

_PART = r"([0-9]{1,15})(ms|[smhdw])"


def now_ms() -> int:
    """Return the host's time in Unix milliseconds. Only this function of the package reads that time."""
    return time.time_ns() // 1_000_000


def parse_span(text: str) -> int:
    """Return the span of time in `text`, in milliseconds. Raise ValueError if it has no units, or exceeds 100 years."""
    if not re.fullmatch(f"(?:{_PART})+", text, re.ASCII):
        raise ValueError(f"'{text[:40]}' must be a span of time (write 90d, 36h, 1h30m, 45s or 250ms)")
    span = sum(int(number) * UNITS[unit] for number, unit in re.findall(_PART, text))
    if span > LONGEST:
        raise ValueError("a span of time must be at most 100 years")
    return span


def show_span(ms: int) -> str:
    """Return `ms` milliseconds as text in the largest two units, for users: 3d4h, 1m5s, 250ms."""
    if abs(ms) < UNITS["s"]:
        return f"{ms}ms"
    sign, left, parts = "-" if ms < 0 else "", abs(ms), []
    for unit in ("d", "h", "m", "s"):
        number, left = divmod(left, UNITS[unit])
        if number:
            parts.append(f"{number}{unit}")
    return sign + "".join(parts[:2])
