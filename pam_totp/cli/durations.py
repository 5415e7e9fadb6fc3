"""Lengths of time on the command line, such as 90d or 12h."""

from __future__ import annotations

import argparse
import re

_UNITS = {"h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}  # seconds


def duration(text: str) -> int:
    """Return a time such as 90d or 12h in seconds. Raise ArgumentTypeError."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([hdwy])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 to 99999 and h, d, w or y, such as 90d")
    return int(found[1]) * _UNITS[found[2]]
