"""Edits of a service file: the insertion of the pam_totp.so line, and its removal. Pure.

Rules:
- An insertion adds a block of lines: a comment and its rules. All other lines are unchanged.
- With `key-or-password`, two blocks are added: a login after a key runs only the first block, other logins only the
  second block.
- The line is inserted only at a position at which the stack is safe (`analysis`).
- The removal keeps every other edit that was made after the insertion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pam_totp.system.pamd import analysis
from pam_totp.system.pamd.findings import ERROR, Code, Finding, errors
from pam_totp.system.pamd.stack import MODULE, Handler, ReadService, StackError, flatten, parse

# PAM asks for a password, sshd checks an SSH key first, or sshd accepts either.
FirstFactor = Literal["password", "key", "key-or-password"]

_INTENDED = (Code.LOGIN_WITHOUT_CODE, Code.CODE_EXEMPTION, Code.PASSWORD_EXEMPTION)
# With `key`, PAM asks for the code only. With `nullok`, PAM asks a user without a token for the password instead.
_AFTER_PASSWORD, _AFTER_KEY = "required", "[success=done ignore=ignore default=die]"
# sshd lists the successful methods in this variable. The command succeeds after a key. Otherwise, PAM skips the next
# line.
_IF_KEY = (
    "auth [success=ignore default=1] pam_exec.so quiet quiet_log "
    "/bin/sh -c [case $SSH_AUTH_INFO_0 in publickey*) exit 0;; esac; exit 1]\n"
)
_COMMENT = "# added by 'pam-totp enable "


def new_lines(service: str, first: FirstFactor, arguments: Sequence[str]) -> str:
    """Return the lines to insert into the file of `service`: a block for each first factor, in order."""
    words = " ".join((MODULE, *(_quote(a) for a in arguments)))
    comment = f"{_COMMENT}{service}'; 'pam-totp disable {service}' removes it\n"
    after_key, after_password = (f"auth {control} {words}\n" for control in (_AFTER_KEY, _AFTER_PASSWORD))
    if first == "key-or-password":
        return f"{comment}{_IF_KEY}{after_key}{comment}{after_password}"
    return comment + (after_key if first == "key" else after_password)


def blocks(added_lines: str) -> list[str]:
    """Return the blocks of `added_lines`, a text from `new_lines`. Each block begins with the comment."""
    return [_COMMENT + block for block in added_lines.split(_COMMENT)[1:]] or [added_lines]


def has_all(text: str, added_lines: str) -> bool:
    """Return True if `text` contains all blocks of `added_lines`, unchanged."""
    return all(block in text for block in blocks(added_lines))


def insert(text: str, name: str, added_lines: str, read: ReadService, first: FirstFactor = "password") -> str:
    """Return `text`, the file of service `name`, with `added_lines` after the first factor (before it, for a key).

    `read` returns the text of an included file. Raise StackError with the reason if no position is safe.
    """
    if first != "key-or-password":
        return _insert(text, name, added_lines, read, first)
    for_key, for_password = blocks(added_lines)
    _insert(text, name, for_key.replace(_IF_KEY, ""), read, "key")  # raises StackError; the text is not used
    with_password = _insert(text, name, for_password, read, "password")
    earliest = min(line for line in _factor_lines(text, name, read))
    lines = with_password.split("\n")  # the line of the password is above the added lines
    return _join(lines[:earliest], for_key, lines[earliest:])


def _factor_lines(text: str, name: str, read: ReadService) -> list[int]:
    """Return the numbers of the lines of `text` that ask for a password, directly or in an included file."""
    stack = flatten(name, _with(text, name, read))
    rules = parse(text, name)
    return [rules[stack[i].origin].first for i in analysis.password_modules(stack)]


def _insert(text: str, name: str, added_lines: str, read: ReadService, first: FirstFactor) -> str:

    def flatten_with(candidate: str) -> tuple[Handler, ...]:
        return flatten(name, _with(candidate, name, read))

    before = flatten_with(text)
    if analysis.totp_modules(before):
        raise StackError(f"{name}: already names {MODULE}")
    factors = analysis.password_modules(before)
    if not factors:
        raise StackError(f"{name}: the stack has no password module, so a code would be the only factor")
    earliest = before[factors[0]].origin
    origins = sorted({h.origin for h in before if h.origin >= earliest})
    physical = text.split("\n")
    rules = parse(text, name)
    reasons: dict[bool, list[str]] = {True: [], False: []}  # True: reasons of severity ERROR
    acceptable: str | None = None
    for origin in origins[:1] if first == "key" else origins:
        line = rules[origin].first if first == "key" else rules[origin].last + 1
        candidate = _join(physical[:line], added_lines, physical[line:])
        stack = flatten_with(candidate)
        if analysis.is_jumped_over(stack, analysis.totp_modules(stack)[0]):
            reasons[False].append(f"{name}: a jump would skip the line")
            continue
        found = _problems(name, stack, first)
        if not found:
            return candidate
        for f in found:
            remedy = hint(f, name, _with(candidate, name, read))
            reasons[f.severity == ERROR].append(f.what if remedy is None else f"{f.what} ({remedy})")
        if acceptable is None and not any(f.severity == ERROR for f in found):
            acceptable = candidate
    if acceptable is not None:
        return acceptable
    reason = (reasons[True] + reasons[False])[0]
    raise StackError(f"no position for the pam_totp.so line is safe: {reason}")


def insert_at(text: str, name: str, added_lines: str, read: ReadService, *, first: FirstFactor, line: int) -> str:
    """Return `text` with `added_lines` before the physical line number `line` (from 0).

    Raise StackError if the new stack is unsafe.
    """
    physical = text.split("\n")
    candidate = _join(physical[:line], added_lines, physical[line:])
    found = errors(_problems(name, flatten(name, _with(candidate, name, read)), first))
    if found:
        raise StackError(found[0].what)
    return candidate


def remove(text: str, added_lines: str) -> str:
    """Return `text` without `added_lines`. Raise StackError unless `text` contains them unchanged, exactly once."""
    for block in blocks(added_lines):
        before, found, after = ("\n" + text).partition("\n" + block)
        if not found or ("\n" + block) in "\n" + after:
            raise StackError("the lines that 'enable' added were changed")
        text = (before + "\n" + after)[1:]
    return text


def hint(finding: Finding, service: str, read: ReadService) -> str | None:
    """Return another remedy for `finding`: a substack in place of an include. Return None if that does not help.

    In an included file, a control such as `sufficient` ends the whole stack. In a substack, it ends only this substack.
    """
    text = read(service)
    if finding.code is not Code.LOGIN_WITHOUT_CODE or finding.severity != ERROR or text is None:
        return None
    physical = text.split("\n")
    for rule in parse(text, service):
        is_auth = rule.control == "include" and rule.phase == "auth"
        if not is_auth and (rule.control != "@include" or _other_phases(rule.target, read)):
            continue
        new = f"auth substack {rule.target}"
        candidate = "\n".join([*physical[: rule.first], new, *physical[rule.last + 1 :]])
        stack = flatten(service, _with(candidate, service, read))
        if not any(f.code is finding.code and f.severity == ERROR for f in analysis.check_order(service, stack)):
            return f"replace '{physical[rule.first].strip()}' in {service} by '{new}'"
    return None


def _with(text: str, name: str, read: ReadService) -> ReadService:
    """Return a function like `read` that returns `text` for the service `name`."""
    return lambda other: text if other == name else read(other)


def _other_phases(name: str, read: ReadService) -> bool:
    return any(rule.phase != "auth" for rule in parse(read(name) or "", name))


def _problems(name: str, stack: Sequence[Handler], first: FirstFactor) -> list[Finding]:
    """Return the findings that make the stack with the new line unsafe.

    Skip the findings about other factors and conditions that let users in without a code: the file has them already.
    """
    found = analysis.check_order(name, stack, code_only=first == "key")
    return [f for f in found if f.severity == ERROR or f.code not in _INTENDED]


def _join(head: list[str], added_lines: str, tail: list[str]) -> str:
    """Return the text of the lines `head`, `added_lines` and the lines `tail`. An empty `tail` adds a newline."""
    return "\n".join([*head, added_lines.removesuffix("\n"), *(tail or [""])])


def _quote(argument: str) -> str:
    if argument and not set(argument) & set(" \t[]"):
        return argument
    return "[" + argument.replace("]", "\\]") + "]"
