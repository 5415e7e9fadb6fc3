"""Rules for single fields: exact types and ranges, said once for values that are made and for files that are read.

The law: a rule returns None for a good value, else what it wants instead; it never repeats the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MAX_TEXT = 255  # characters: names of users, services, hosts and tokens

Rule = Callable[[Any], str | None]


def whole(low: int, high: int) -> Rule:
    """A whole number low … high; bool, which Python takes for one, is none."""
    wanted = f"not a whole number {low} … {high}"
    return lambda v: None if type(v) is int and low <= v <= high else wanted


def text(v: object) -> str | None:
    good = type(v) is str and 0 < len(v) <= MAX_TEXT and v.isprintable() and v == v.strip()
    return None if good else f"not 1 … {MAX_TEXT} printable characters without space at the ends"


def boolean(v: object) -> str | None:
    return None if type(v) is bool else "not true or false"


def one_of(*choices: object) -> Rule:
    wanted = "not one of " + ", ".join(map(str, choices))
    return lambda v: None if type(v) is type(choices[0]) and v in choices else wanted


def hexadecimal(low: int, high: int) -> Rule:
    wanted = f"not {low} … {high} bytes in lower-case hexadecimal"

    def check(v: object) -> str | None:
        good = type(v) is str and 2 * low <= len(v) <= 2 * high and len(v) % 2 == 0 and not v.strip("0123456789abcdef")
        return None if good else wanted

    return check


def maybe(rule: Rule) -> Rule:
    return lambda v: None if v is None else rule(v)


def tuple_of(kind: type[object], most: int) -> Rule:
    def check(v: object) -> str | None:
        good = type(v) is tuple and len(v) <= most and all(isinstance(x, kind) for x in v)
        return None if good else f"not a list of at most {most}"

    return check
