"""Service files of PAM: text in, rules out, and the flat stack that libpam makes of them. Pure.

The law: what is read here is read as libpam reads it (pam.d(5), libpam/pam_handlers.c); what libpam would refuse, or
what we do not understand, is a StackError, and a file that raises one is never edited.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MODULE = "pam_totp.so"
PHASES = ("auth", "account", "password", "session")
MOST_INCLUDES = 32  # files deep: PAM_INCLUDE_MAX_DEPTH

# _pam_types.h, in the order of their numbers
RESULTS = (  # noqa: SIM905  thirty-two words
    "success open_err symbol_err service_err system_err buf_err perm_denied auth_err cred_insufficient "
    "authinfo_unavail user_unknown maxtries new_authtok_reqd acct_expired session_err cred_unavail cred_expired "
    "cred_err no_module_data conv_err authtok_err authtok_recover_err authtok_lock_busy authtok_disable_aging "
    "try_again ignore abort authtok_expired module_unknown bad_item conv_again incomplete"
).split()
ACTIONS = ("ignore", "bad", "die", "ok", "done", "reset")

Action = str | int  # a number skips so many modules
_NAMED: dict[str, dict[str, Action]] = {  # pam.d(5)
    "required": {"success": "ok", "new_authtok_reqd": "ok", "ignore": "ignore", "default": "bad"},
    "requisite": {"success": "ok", "new_authtok_reqd": "ok", "ignore": "ignore", "default": "die"},
    "sufficient": {"success": "done", "new_authtok_reqd": "done", "default": "ignore"},
    "optional": {"success": "ok", "new_authtok_reqd": "ok", "default": "ignore"},
}
_INCLUDES = ("include", "substack")
_TOKEN = re.compile(r"\[((?:\\\]|[^\]])*)\]|([^ \t\n]+)")


class StackError(Exception):
    """A service file that libpam would refuse, or that we cannot read; the text names the place."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a service file, on the physical lines `first` … `last`, counted from 0.

    `control` is the word or the bracketed text as it stands there; for `@include` it is that word, and `phase` is
    "*". `target` is a module, or the file that is included.
    """

    first: int
    last: int
    phase: str
    control: str
    target: str
    arguments: tuple[str, ...] = ()

    @property
    def includes(self) -> bool:
        return self.control == "@include" or self.control in _INCLUDES

    @property
    def module(self) -> str:
        """The module's file name, without its folder; with or without `.so`, as libpam takes both."""
        name = self.target.rsplit("/", 1)[-1]
        return name if name.endswith(".so") else name + ".so"

    @property
    def ours(self) -> bool:
        return not self.includes and self.module == MODULE

    def action(self, result: str) -> Action:
        """What libpam does when the module returns `result`."""
        table = actions(self.control)
        return table.get(result, table.get("default", "bad"))


@dataclass(frozen=True, slots=True)
class Handler:
    """One module of a flat stack: its rule, the file that names it, the depth of substacks, and the index of the
    service file's own rule through which it comes. The head of a substack is a handler too (`head`)."""

    rule: Rule
    file: str
    level: int
    origin: int
    head: bool = False


Read = Callable[[str], str | None]  # the text of a service file by its name or absolute path; None: not there


def rules(text: str, name: str = "the file") -> tuple[Rule, ...]:
    """The rules of a service file in their order. Raises StackError with the place."""
    return tuple(_rule(first, last, line, name) for first, last, line in _logical(text))


def flat(name: str, read: Read, phase: str = "auth") -> tuple[Handler, ...]:
    """The modules that libpam runs for the service `name`, includes followed. Raises StackError."""
    return tuple(_flat(name, read, phase))


def actions(control: str) -> dict[str, Action]:
    """What a control says by result, with "default" for those it does not name. Raises StackError."""
    if control.lower() in _NAMED:
        return _NAMED[control.lower()]
    if not control.startswith("["):
        raise StackError(f"no control is called {control}")
    table: dict[str, Action] = {}
    for pair in re.sub(r"\s*=\s*", "=", control[1:-1]).split():
        result, _, action = pair.partition("=")
        number = int(action) if action.isascii() and action.isdigit() else None
        if (result != "default" and result not in RESULTS) or (number is None and action not in ACTIONS):
            raise StackError(f"{pair}: is no pair of a result and an action")
        table[result] = action if number is None else number
    return table


def _logical(text: str) -> Iterator[tuple[int, int, str]]:
    """Lines as libpam assembles them: no comment, a backslash at the end joins the next."""
    first, joined = None, ""
    number = -1
    for number, physical in enumerate(text.split("\n")):
        said, hash_sign, _ = physical.partition("#")
        said = said.strip(" \t\r")
        if first is None and not said:
            continue
        first = number if first is None else first
        if said.endswith("\\") and not hash_sign:
            joined += said[:-1] + " "
            continue
        yield first, number, joined + said
        first, joined = None, ""
    if first is not None and joined.strip():
        yield first, number, joined


def _rule(first: int, last: int, line: str, name: str) -> Rule:
    at = f"{name}:{first + 1}"
    tokens = [m[0] if m[1] is not None else m[2] for m in _TOKEN.finditer(line)]
    if tokens[0].lower() == "@include":
        if len(tokens) < 2:
            raise StackError(f"{at}: includes nothing")
        return Rule(first, last, "*", "@include", tokens[1])
    phase = tokens[0].lower().removeprefix("-")
    if phase not in PHASES:
        raise StackError(f"{at}: no phase is called {tokens[0]}")
    if len(tokens) < 3:
        raise StackError(f"{at}: names no module")
    control = tokens[1].lower() if not tokens[1].startswith("[") else tokens[1]
    found = Rule(first, last, phase, control, tokens[2], tuple(_argument(t) for t in tokens[3:]))
    if not found.includes:
        try:
            actions(control)
        except StackError as e:
            raise StackError(f"{at}: {e}") from None
    return found


def _argument(token: str) -> str:
    return token[1:-1].replace("\\]", "]") if token.startswith("[") else token


def _flat(
    name: str, read: Read, phase: str, level: int = 0, *, origin: int | None = None, depth: int = 0
) -> Iterator[Handler]:
    if depth > MOST_INCLUDES:
        raise StackError(f"{name}: includes itself, or too many others")
    text = read(name)
    if text is None:
        raise StackError(f"{name}: is not there")
    for index, rule in enumerate(rules(text, name)):
        if rule.phase not in (phase, "*"):
            continue
        here = index if origin is None else origin
        if not rule.includes:
            yield Handler(rule, name, level, here)
            continue
        inside = level
        if rule.control == "substack":
            yield Handler(rule, name, level, here, head=True)
            inside += 1
        yield from _flat(rule.target, read, phase, inside, origin=here, depth=depth + 1)
