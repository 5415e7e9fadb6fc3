"""What libpam makes of a stack: the verdict for given results of its modules, and the ways to a verdict. Pure.

The law: `step` is libpam's own (_pam_dispatch_aux, Linux-PAM 1.5): tests hold it against the real libpam, for stacks
made at random. What is said about a service file is found by walking it, not by looking for words in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pam_totp.system.pamd.stack import Action, Handler

MUST_FAIL = "perm_denied"  # PAM_MUST_FAIL_CODE

# Modules that always say the same. All others may say anything.
_ALWAYS = {
    "pam_deny.so": ("auth_err",),
    "pam_permit.so": ("success",),
    "pam_faildelay.so": ("ignore",),
    "pam_echo.so": ("ignore",),
    "pam_warn.so": ("ignore",),
}


@dataclass(frozen=True, slots=True)
class State:
    """Where libpam stands: the next handler, what it thinks so far, and what it thought on entering each substack."""

    next: int = 0
    impression: str = "undefined"  # positive, negative
    status: str = MUST_FAIL
    entered: tuple[tuple[str, str], ...] = (("undefined", MUST_FAIL),)


@dataclass(frozen=True, slots=True)
class Taken:
    """One step of a way: the handler's place, what its module returned, what libpam did."""

    at: int
    result: str
    action: Action


def verdict(stack: Sequence[Handler], result_of: Callable[[int], str]) -> str:
    """What pam_authenticate returns when the module at place i returns `result_of(i)`."""
    state = State()
    while state.next < len(stack):
        at = state.next
        state = step(stack, state, "success" if stack[at].head else result_of(at))
    return _verdict(state)


def step(stack: Sequence[Handler], state: State, result: str) -> State:
    """The state after the module at `state.next` has returned `result`."""
    at, level = state.next, stack[state.next].level
    if stack[at].head:
        before = (state.impression, state.status)
        return replace(state, next=at + 1, entered=(*state.entered[: level + 1], before))
    action = stack[at].rule.action(result)
    impression, status, after = state.impression, state.status, at + 1
    if action in ("ok", "done"):
        if impression == "undefined" or (impression == "positive" and status == "success"):
            impression, status = "positive", result
        if action == "done" and impression == "positive":
            after = _end_of(stack, at)
    elif action in ("bad", "die"):
        if impression != "negative":
            impression, status = "negative", MUST_FAIL if result == "ignore" else result
        if action == "die":
            after = _end_of(stack, at)
    elif action == "reset":
        impression, status = state.entered[level]
    elif isinstance(action, int):
        after, missing = _jump(stack, at, action)
        if missing:
            impression, status = "negative", MUST_FAIL
    return replace(state, next=after, impression=impression, status=status)


def results_of(handler: Handler) -> tuple[str, ...]:
    """One result for each thing that libpam may do after this module, success and refusal first."""
    if handler.head:
        return ("success",)
    if handler.rule.module in _ALWAYS:
        return _ALWAYS[handler.rule.module]
    table = handler.rule.control if handler.rule.control.startswith("[") else ""
    named = (pair.partition("=")[0] for pair in table.strip("[]").split())
    seen: dict[Action, str] = {}
    for result in ("success", "auth_err", "authinfo_unavail", "user_unknown", "ignore", *named):
        if result != "default":
            seen.setdefault(handler.rule.action(result), result)
    return ("success", *(r for r in seen.values() if r != "success"))


def way(
    stack: Sequence[Handler],
    results: Callable[[int], Sequence[str]],
    wanted: Callable[[Sequence[Taken], str], bool],
    through: Callable[[int], object] = lambda at: None,
) -> tuple[Taken, ...] | None:
    """A shortest way on which the modules return some of `results` and `wanted(way, verdict)` holds, or None.

    Two ways to one state count as one, unless they differ in what `through` says of the places that they visited.
    """
    waiting: deque[tuple[State, tuple[Taken, ...]]] = deque([(State(), ())])
    known: set[tuple[State, frozenset[object]]] = set()
    while waiting:
        state, taken = waiting.popleft()
        if state.next >= len(stack):
            if wanted(taken, _verdict(state)):
                return taken
            continue
        at = state.next
        for result in results(at):
            after = step(stack, state, result)
            so_far = (*taken, Taken(at, result, "ignore" if stack[at].head else stack[at].rule.action(result)))
            mark = (after, frozenset(m for t in so_far if (m := through(t.at)) is not None))
            if mark not in known:
                known.add(mark)
                waiting.append((after, so_far))
    return None


def _verdict(state: State) -> str:
    return MUST_FAIL if state.status == "success" and state.impression != "positive" else state.status


def _end_of(stack: Sequence[Handler], at: int) -> int:
    """Behind the rest of the substack that `at` is in, or of all."""
    after = at + 1
    while after < len(stack) and stack[after].level >= stack[at].level:
        after += 1
    return after


def _jump(stack: Sequence[Handler], at: int, count: int) -> tuple[int, int]:
    """Where a jump over `count` modules lands, and how many there were too few. A substack counts as one."""
    after, level = at + 1, stack[at].level
    while after < len(stack) and stack[after].level >= level and count:
        after += 1
        while after < len(stack) and stack[after].level > level:
            after += 1
        count -= 1
    return after, count
