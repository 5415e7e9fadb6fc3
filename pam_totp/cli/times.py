"""Times as arguments of commands. `durations` has the lengths of time."""

from __future__ import annotations

import argparse
from datetime import datetime


def time(text: str) -> int:
    """Return a time in the form of ISO 8601 as Unix seconds. A time without a zone is in this host's time zone."""
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text}: must be a time such as 2026-11-28T14:00") from None
