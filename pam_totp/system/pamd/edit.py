"""Putting our line into a service file, and taking it out again. Text in, text out. Pure.

The law: nothing but our two lines is added, nothing else moves; where there is no place at which the stack is in
order, there is no edit; what others have written since stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pam_totp.system.pamd import analysis
from pam_totp.system.pamd.findings import ERROR, Finding
from pam_totp.system.pamd.stack import MODULE, Handler, Read, StackError, flat, rules

First = Literal["password", "key"]  # the first factor: PAM's own, or the ssh key that sshd has asked for before

_CONTROLS: dict[First, str] = {
    "password": "required",
    # The code is all that PAM asks for; whoever has none because of nullok falls through to the password.
    "key": "[success=done ignore=ignore default=die]",
}


def lines(service: str, first: First, arguments: Sequence[str]) -> str:
    """The two lines that are put into the file of `service`."""
    words = " ".join((MODULE, *(_quoted(a) for a in arguments)))
    return f"# put here by 'pam-totp enable {service}'; 'pam-totp disable {service}' takes it away\n" + (
        f"auth {_CONTROLS[first]} {words}\n"
    )


def inserted(text: str, name: str, ours: str, read: Read, first: First = "password") -> str:
    """The service file `name` with `ours` put behind its first factor (in front of it, for a key).

    `read` knows the files that it includes. Raises StackError where there is no good place, with the reason.
    """

    def with_ours(candidate: str) -> tuple[Handler, ...]:
        return flat(name, lambda other: candidate if other == name else read(other))

    before = with_ours(text)
    if analysis.ours(before):
        raise StackError(f"{name}: names {MODULE} already")
    factors = analysis.passwords(before)
    if not factors:
        raise StackError(f"{name}: asks for no password, so there is nothing that a code could come second to")
    earliest = before[factors[0]].origin
    origins = sorted({h.origin for h in before if h.origin >= earliest})
    physical = text.split("\n")
    own = rules(text, name)
    refused: list[str] = []
    acceptable: str | None = None
    for origin in origins[:1] if first == "key" else origins:
        where = own[origin].first if first == "key" else own[origin].last + 1
        candidate = _joined(physical[:where], ours, physical[where:])
        stack = with_ours(candidate)
        faults = _faults(name, stack, first)
        if not faults:
            return candidate
        refused += [f.what for f in faults]
        if acceptable is None and not any(f.severity == ERROR for f in faults):
            acceptable = candidate
    if acceptable is not None:
        return acceptable
    raise StackError(f"there is no good place for our line; behind the first factor, {refused[0]}")


def removed(text: str, ours: str) -> str:
    """The file without `ours`. Raises StackError where these lines are not in it exactly once, unchanged."""
    before, found, after = ("\n" + text).partition("\n" + ours)
    if not found or ("\n" + ours) in "\n" + after:
        raise StackError("the lines that were put there have been changed")
    return (before + "\n" + after)[1:]


def _faults(name: str, stack: Sequence[Handler], first: First) -> list[Finding]:
    """What is wrong with our line's place; ways in that the file had before, by no password, are not its fault."""
    at = analysis.ours(stack)[0]
    if analysis.splits_a_jump(stack, at):
        return [Finding(ERROR, analysis.CHECK, f"{name}: a jump leads over it", "")]
    elsewhere = {i for i, _ in analysis.bypasses(stack, [at]) if stack[i].rule.module not in analysis.PASSWORDS}
    found = analysis.findings(name, stack, alone=first == "key")
    return [f for f in found if not (elsewhere and "no code is asked for" in f.what and f.severity != ERROR)]


def _joined(head: list[str], ours: str, tail: list[str]) -> str:
    """The file with our lines between; one that did not end with a newline does so before them."""
    return "\n".join([*head, ours.removesuffix("\n"), *(tail or [""])])


def _quoted(argument: str) -> str:
    if argument and not set(argument) & set(" \t[]"):
        return argument
    return "[" + argument.replace("]", "\\]") + "]"
