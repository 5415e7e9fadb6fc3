"""sshd's configuration files: their texts, and the position at which sshd reads an added file.

Rules:
- This module resolves Include lines as sshd does (sshd_config(5)).
- sshd uses the first value of a setting, and settings after a Match line belong to its block. A block in an included
  file ends with that file.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Mapping

MAIN = "/etc/ssh/sshd_config"
_FOLDER = "/etc/ssh"  # the folder of relative paths in Include
_INCLUDE = "Include /etc/ssh/sshd_config.d/*.conf"
_LINE = re.compile(r"^[ \t]*(\w+)(?:[ \t]*=[ \t]*|[ \t]+)(.*?)[ \t\r]*$", re.MULTILINE)
_WORD = re.compile(r'"([^"]*)"|([^\s"=]+)')
_ALIASES = {"challengeresponseauthentication": "kbdinteractiveauthentication"}
_MAX_DEPTH = 16  # files: SERVCONF_MAX_DEPTH


def lines(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the lower-case keyword and the other words of every line in `text`. Replace old names of settings."""
    for keyword, rest in _LINE.findall(text):
        words = [quoted or plain for quoted, plain in _WORD.findall(rest.partition("#")[0])]
        yield _ALIASES.get(keyword.lower(), keyword.lower()), words


def texts(root: str = "/") -> list[str]:
    """Return the texts of the configuration files: the main file, then the files that it includes."""
    return list(_texts(root, MAIN, 0))


def why_without_effect(path: str, new_settings: Mapping[str, str], root: str = "/") -> str | None:
    """Return the reason why sshd would not use `new_settings` of a new file `path`, or None."""
    earlier: str | None = None
    for file, keyword, words in _before_match(root, MAIN, path, 0):
        if file == path:
            return earlier
        if keyword in new_settings and words[:1] != [new_settings[keyword]]:
            earlier = f"{file} sets {keyword} {' '.join(words)} before sshd reads {path}"
            earlier += f" (move '{_INCLUDE}' to the beginning of {MAIN}, or delete that setting)"
    reason = f"sshd would not read {path}: {MAIN} must include it before the first Match block"
    return f"{reason} (put '{_INCLUDE}' at the beginning of {MAIN})"


def _texts(root: str, path: str, depth: int) -> Iterator[str]:
    text = _read(root, path)
    yield from () if text is None else (text,)
    for keyword, words in lines(text or ""):
        if keyword == "include" and depth < _MAX_DEPTH:
            for name in _included(root, words):
                yield from _texts(root, name, depth + 1)


def _before_match(root: str, path: str, new: str, depth: int) -> Iterator[tuple[str, str, list[str]]]:
    """Yield file, keyword and words of the settings before a Match block, in order. The file `new` is one item."""
    for keyword, words in lines(_read(root, path) or ""):
        if keyword == "match":
            return
        if keyword != "include" or depth >= _MAX_DEPTH:
            yield path, keyword, words
            continue
        for name in _included(root, words, new):
            if name == new:
                yield new, "", []
            else:
                yield from _before_match(root, name, new, depth + 1)


def _included(root: str, patterns: list[str], new: str | None = None) -> Iterator[str]:
    """Yield the absolute paths that an Include line names, in order, with `new` if a pattern fits it."""
    for pattern in (os.path.join(_FOLDER, word) for word in patterns):
        names = {f"/{name}" for name in glob.glob(pattern.lstrip("/"), root_dir=root)}
        fits = new is not None and fnmatch.fnmatchcase(new, pattern)
        yield from sorted(names | {new} if fits and new is not None else names)


def _read(root: str, path: str) -> str | None:
    try:
        with open(os.path.join(root, path.lstrip("/")), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return None
