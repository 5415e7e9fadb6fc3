"""The change of one table in the text of a site file.

Rules:
1. Comments and other tables are unchanged, byte for byte.
2. The new text is parsed. The edit fails if the new text differs from the old text in other keys.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from pam_totp.core.settings import SettingsError, parse_site

Value = str | list[str]
# The header [member], alone on its line; the next header; the value of a key: a list of strings, or one string.
_HEADER = re.compile(r"^[ \t]*\[[ \t]*member[ \t]*\][ \t]*(?:#.*)?$", re.MULTILINE)
_NEXT_HEADER = re.compile(r"^[ \t]*\[[ \t]*[A-Za-z\"'\[]", re.MULTILINE)
_STRING = r"(?:\"[^\"\n]*\"|'[^'\n]*')"
_VALUE = rf"(?:\[(?:{_STRING}|#[^\n]*|[^\]\"'#])*\]|{_STRING})"


def with_member(text: str, values: Mapping[str, Value]) -> str:
    """Return the text of a site file in which `[member]` has `values`. Raise SettingsError."""
    new = _edited(text, values)
    before, after = _parse(text), _parse(new)
    wanted = before | {"member": {**before.get("member", {}), **values}}
    if after != wanted:
        lines = "; ".join(_line(name, value) for name, value in values.items())
        raise SettingsError(f"[member] of the site file cannot be edited (write these lines into the table: {lines})")
    parse_site(new)
    return new


def _edited(text: str, values: Mapping[str, Value]) -> str:
    header = _HEADER.search(text)
    if header is None:
        gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
        return f"{text}{gap}[member]\n{_lines(values)}"
    following = _NEXT_HEADER.search(text, header.end())
    end = len(text) if following is None else following.start()
    table = text[header.end() : end]
    missing = {}
    for name, value in values.items():
        key = re.compile(rf"^([ \t]*){name}[ \t]*=[ \t]*{_VALUE}", re.MULTILINE)
        found = key.search(table)
        if found is None:
            missing[name] = value
        else:
            table = f"{table[: found.start()]}{found[1]}{_line(name, value)}{table[found.end() :]}"
    first = f"\n{_lines(missing).rstrip()}" if missing else ""
    return f"{text[: header.end()]}{first}{table}{text[end:]}"


def _lines(values: Mapping[str, Value]) -> str:
    return "".join(f"{_line(name, value)}\n" for name, value in values.items())


def _line(name: str, value: Value) -> str:
    return f"{name} = {json.dumps(value, ensure_ascii=False)}"


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise SettingsError(f"the site file must be valid TOML: {e}") from None
