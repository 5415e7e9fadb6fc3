"""Conversions of a user's input: names from a list, and seeds as text.

Rules:
- Names are compared without case, dashes, underscores and spaces: `eToken PASS` is `etoken-pass`.
- The error for an unknown name suggests the most similar name, or lists the known names.
- No error message contains a seed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable


def choose(word: object, choices: Iterable[str], what: str) -> str:
    """Return the name in `choices` that `word` matches. Raise ValueError; `what` is the kind of name in the error."""
    names = {_plain(name): str(name) for name in choices}
    if _plain(word) not in names:
        raise ValueError(unknown(word, names.values(), what))
    return names[_plain(word)]


def unknown(word: object, choices: Iterable[str], what: str) -> str:
    """Return the message for the unknown name `word` of the kind `what`."""
    import difflib  # slow to load

    names = {_plain(name): str(name) for name in choices}
    similar = difflib.get_close_matches(_plain(word), names, 1)
    hint = f"did you mean '{names[similar[0]]}'?" if similar else f"must be one of {', '.join(names.values())}"
    return f"unknown {what} '{str(word)[:40]}': {hint}"


def seed(text: str) -> bytes:
    """Return the seed in `text`: hex, or base32 with or without padding. Raise ValueError."""
    plain = re.sub(r"[\s-]", "", text, flags=re.ASCII)
    try:
        return bytes.fromhex(plain)
    except ValueError:
        pass
    try:
        plain = plain.upper().rstrip("=")
        return base64.b32decode(plain + "=" * (-len(plain) % 8))
    except (binascii.Error, ValueError):  # ValueError if the text is not ASCII
        raise ValueError("must be hex or base32") from None


def _plain(word: object) -> str:
    return re.sub("[-_ ]", "", str(word)).casefold()
