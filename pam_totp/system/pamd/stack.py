"""PAM service files: their rules, and the flat stack that libpam runs. Pure.

Rules:
- A file is read as libpam reads it (pam.d(5), libpam/pam_handlers.c).
- A parser raises StackError for text that libpam would refuse, or that this module does not support.
- `enable` and `disable` never edit a file for which a parser raises StackError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MODULE = "pam_totp.so"
PHASES = ("auth", "account", "password", "session")
MAX_INCLUDE_DEPTH = 32  # files: PAM_INCLUDE_MAX_DEPTH

# the names in _pam_types.h, in the order of their numbers
RESULTS = (  # noqa: SIM905  thirty-two words
    "success open_err symbol_err service_err system_err buf_err perm_denied auth_err cred_insufficient "
    "authinfo_unavail user_unknown maxtries new_authtok_reqd acct_expired session_err cred_unavail cred_expired "
    "cred_err no_module_data conv_err authtok_err authtok_recover_err authtok_lock_busy authtok_disable_aging "
    "try_again ignore abort authtok_expired module_unknown bad_item conv_again incomplete"
).split()
ACTIONS = ("ignore", "bad", "die", "ok", "done", "reset")

Action = str | int  # a number of modules to skip
_NAMED: dict[str, dict[str, Action]] = {  # pam.d(5)
    "required": {"success": "ok", "new_authtok_reqd": "ok", "ignore": "ignore", "default": "bad"},
    "requisite": {"success": "ok", "new_authtok_reqd": "ok", "ignore": "ignore", "default": "die"},
    "sufficient": {"success": "done", "new_authtok_reqd": "done", "default": "ignore"},
    "optional": {"success": "ok", "new_authtok_reqd": "ok", "default": "ignore"},
}
_INCLUDES = ("include", "substack")
_MAX_DIGITS = 6  # digits of a jump: libpam keeps only some bits of a huge number
_TOKEN = re.compile(r"\[((?:\\\]|[^\]])*)\]|([^ \t\n]+)")


class StackError(Exception):
    """A service file cannot be read, or cannot be edited safely. The message gives the reason."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of a service file, on the physical lines `first` to `last`, counted from 0.

    `control` is the control word or the bracketed text. `target` is a module, or the file to include. An `@include`
    line has the control "@include" and the phase "*".
    """

    first: int
    last: int
    phase: str
    control: str
    target: str
    arguments: tuple[str, ...] = ()

    @property
    def is_include(self) -> bool:
        return self.control == "@include" or self.control in _INCLUDES

    @property
    def module(self) -> str:
        """Return the module's file name without its folder, always with `.so`: libpam accepts names without it too."""
        name = self.target.rsplit("/", 1)[-1]
        return name if name.endswith(".so") else name + ".so"

    @property
    def is_pam_totp(self) -> bool:
        """Return True if the rule runs pam_totp.so."""
        return not self.is_include and self.module == MODULE

    def action(self, result: str) -> Action:
        """Return the action of libpam if the module returns `result`."""
        table = parse_control(self.control)
        return table.get(result, table.get("default", "bad"))


@dataclass(frozen=True, slots=True)
class Handler:
    """One module of a flat stack.

    `rule` is the module's rule and `file` the file that contains it. `level` is the number of substacks around the
    module. `origin` is the index of the rule in the service's own file that leads to this module. The head of a
    substack is also a handler (`is_head`).
    """

    rule: Rule
    file: str
    level: int
    origin: int
    is_head: bool = False


# A function that returns the text of a service file by its name or absolute path, or None if the file is missing.
ReadService = Callable[[str], str | None]


def parse(text: str, name: str = "the file") -> tuple[Rule, ...]:
    """Return the rules in `text`, the file of the service `name`, in order. Raise StackError."""
    return tuple(_rule(first, last, line, name) for first, last, line in _logical_lines(text, name))


def flatten(name: str, read: ReadService, phase: str = "auth") -> tuple[Handler, ...]:
    """Return the modules that libpam runs for the service `name`, with includes resolved. Raise StackError."""
    return tuple(_flatten(name, read, phase))


def parse_control(control: str) -> dict[str, Action]:
    """Return the action for each result that a control names, including "default". Raise StackError."""
    if control.lower() in _NAMED:
        return _NAMED[control.lower()]
    if not control.startswith("["):
        raise StackError(f"unknown control {control}")
    table: dict[str, Action] = {}
    for pair in re.sub(r"\s*=\s*", "=", control[1:-1]).split():
        result, _, action = pair.partition("=")
        is_jump = action.isascii() and action.isdigit()
        if (result != "default" and result not in RESULTS) or (not is_jump and action not in ACTIONS):
            raise StackError(f"{pair}: must be RESULT=ACTION, as in pam.d(5)")
        if is_jump and len(action) > _MAX_DIGITS:
            raise StackError(f"{pair}: a number must have at most {_MAX_DIGITS} digits")
        if result != "default" or result not in table:  # the first of several defaults applies
            table[result] = int(action) if is_jump else action
    return table


def _logical_lines(text: str, name: str) -> Iterator[tuple[int, int, str]]:
    """Yield the first and last number (from 0) and the text of each line that libpam assembles.

    These lines are without comments. A line that ends in a backslash is joined to the next line.

    Comments and empty lines between joined lines do not end the join.
    """
    first, joined = None, ""
    for number, physical in enumerate(text.split("\n")):
        content, hash_sign, _ = physical.partition("#")
        content = content.strip(" \t")
        if not content:
            continue
        first = number if first is None else first
        if content.endswith("\\") and not hash_sign:
            joined += content[:-1] + " "
            continue
        yield first, number, joined + content
        first, joined = None, ""
    if first is not None:
        raise StackError(f"{name}:{first + 1}: the file ends in a line that continues (delete the backslash)")


def _rule(first: int, last: int, line: str, name: str) -> Rule:
    where = f"{name}:{first + 1}"
    if "\r" in line:
        raise StackError(f"{where}: the line contains a carriage return, which libpam reads as part of a word")
    tokens = [m[0] if m[1] is not None else m[2] for m in _TOKEN.finditer(line)]
    if tokens[0].lower() == "@include":
        if len(tokens) < 2:
            raise StackError(f"{where}: @include must name a file")
        return Rule(first, last, "*", "@include", tokens[1])
    phase = tokens[0].lower().removeprefix("-")
    if phase not in PHASES:
        raise StackError(f"{where}: unknown phase {tokens[0]}")
    if len(tokens) < 3:
        raise StackError(f"{where}: the line must name a module")
    control = tokens[1].lower() if not tokens[1].startswith("[") else tokens[1]
    rule = Rule(first, last, phase, control, tokens[2], tuple(_argument(t) for t in tokens[3:]))
    if not rule.is_include:
        try:
            parse_control(control)
        except StackError as e:
            raise StackError(f"{where}: {e}") from None
    return rule


def _argument(token: str) -> str:
    return token[1:-1].replace("\\]", "]") if token.startswith("[") else token


def _flatten(
    name: str, read: ReadService, phase: str, level: int = 0, *, origin: int | None = None, depth: int = 0
) -> Iterator[Handler]:
    if depth > MAX_INCLUDE_DEPTH:
        raise StackError(
            f"{name}: includes must be at most {MAX_INCLUDE_DEPTH} files deep (check whether a file includes itself)"
        )
    text = read(name)
    if text is None:
        raise StackError(f"{name}: not found")
    for index, rule in enumerate(parse(text, name)):
        if rule.phase not in (phase, "*"):
            continue
        top_rule = index if origin is None else origin
        if not rule.is_include:
            yield Handler(rule, name, level, top_rule)
            continue
        inner_level = level
        if rule.control == "substack":
            yield Handler(rule, name, level, top_rule, is_head=True)
            inner_level += 1
        yield from _flatten(rule.target, read, phase, inner_level, origin=top_rule, depth=depth + 1)
