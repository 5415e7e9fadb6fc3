"""A simulation of libpam on a stack: the verdict for the modules' results, and a path to a verdict. Pure.

Rules:
- `advance` reproduces _pam_dispatch_aux of Linux-PAM 1.5. Tests compare `advance` with the real libpam on random
  stacks.
- Every finding about a service file comes from a simulation of its stack, never from a search for words in its text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from pam_totp.system.pamd.modules import CONSTANT_RESULTS
from pam_totp.system.pamd.stack import RESULTS, Action, Handler, parse_control

MUST_FAIL = "perm_denied"  # PAM_MUST_FAIL_CODE
_USUAL = ("success", "auth_err", "authinfo_unavail", "user_unknown", "ignore")  # the results to name in a finding


@dataclass(frozen=True, slots=True)
class State:
    """The state of libpam within a stack.

    `next` is the index of the next handler. `entered` has the impression and the status at the entry of each substack.
    """

    next: int = 0
    impression: str = "undefined"  # or positive, negative
    status: str = MUST_FAIL
    entered: tuple[tuple[str, str], ...] = (("undefined", MUST_FAIL),)


@dataclass(frozen=True, slots=True)
class Move:
    """One move on a path: the handler's index, the result of its module, the action of libpam, the next index."""

    index: int
    result: str
    action: Action
    next: int

    def skips(self, index: int) -> bool:
        """Return True if this move jumps over the handler at `index`."""
        return self.index < index < self.next


def verdict(stack: Sequence[Handler], result_of: Callable[[int], str]) -> str:
    """Return the result of pam_authenticate if the module at each index i returns `result_of(i)`."""
    state = State()
    while state.next < len(stack):
        index = state.next
        state = advance(stack, state, "success" if stack[index].is_head else result_of(index))
    return _verdict(state)


def advance(stack: Sequence[Handler], state: State, result: str) -> State:
    """Return the state after the module at `state.next` has returned `result`."""
    index, level = state.next, stack[state.next].level
    if stack[index].is_head:
        before = (state.impression, state.status)
        return replace(state, next=index + 1, entered=(*state.entered[: level + 1], before))
    action = stack[index].rule.action(result)
    impression, status, after = state.impression, state.status, index + 1
    if action in ("ok", "done"):
        if impression == "undefined" or (impression == "positive" and status == "success"):
            impression, status = "positive", result
        if action == "done" and impression == "positive":
            after = _end_of_substack(stack, index)
    elif action in ("bad", "die"):
        if impression != "negative":
            impression, status = "negative", MUST_FAIL if result == "ignore" else result
        if action == "die":
            after = _end_of_substack(stack, index)
    elif action == "reset":
        impression, status = state.entered[level]
    elif isinstance(action, int):
        after, missing = jump(stack, index, action)
        if missing:
            impression, status = "negative", MUST_FAIL
    return replace(state, next=after, impression=impression, status=status)


def jump(stack: Sequence[Handler], index: int, count: int) -> tuple[int, int]:
    """Return the index to which a jump over `count` modules leads, and the number of missing modules.

    A substack counts as one module.
    """
    after, level = index + 1, stack[index].level
    while after < len(stack) and stack[after].level >= level and count:
        after += 1
        while after < len(stack) and stack[after].level > level:
            after += 1
        count -= 1
    return after, count


def possible_results(handler: Handler, excluded: Collection[str] = ()) -> tuple[str, ...]:
    """Return one result for each effect that the module of `handler` may have in libpam, first success if possible.

    The module never returns a result in `excluded`. A module in CONSTANT_RESULTS returns only the results listed there.
    """
    if handler.is_head:
        return ("success",)
    if handler.rule.module in CONSTANT_RESULTS:
        return tuple(r for r in CONSTANT_RESULTS[handler.rule.module] if r not in excluded)
    table = parse_control(handler.rule.control)
    by_effect: dict[tuple[Action, bool], str] = {}
    for result in (*_USUAL, *(r for r in RESULTS if r in table), *(r for r in RESULTS if r not in table)):
        if result not in excluded:
            action = handler.rule.action(result)
            # libpam keeps the result after `ok` and `done`, so a refusal denies the login
            by_effect.setdefault((action, action in ("ok", "done") and result in _USUAL[1:]), result)
    return tuple(by_effect.values())


def find_path(
    stack: Sequence[Handler],
    results: Callable[[int], Sequence[str]],
    is_wanted: Callable[[Sequence[Move], str], bool],
    mark: Callable[[Move], object] = lambda move: None,
) -> tuple[Move, ...] | None:
    """Return a shortest path for which `is_wanted(path, verdict)` is true, or None.

    The module at index i returns any of `results(i)`. The search follows only the first of several paths to the same
    state with the same marks. So `mark` must return a value for every move that `is_wanted` tests.
    """
    waiting: deque[tuple[State, tuple[Move, ...]]] = deque([(State(), ())])
    known: set[tuple[State, frozenset[object]]] = set()
    while waiting:
        state, path = waiting.popleft()
        if state.next >= len(stack):
            if is_wanted(path, _verdict(state)):
                return path
            continue
        index = state.next
        for result in results(index):
            after = advance(stack, state, result)
            action: Action = "ignore" if stack[index].is_head else stack[index].rule.action(result)
            longer = (*path, Move(index, result, action, after.next))
            key = (after, frozenset(m for move in longer if (m := mark(move)) is not None))
            if key not in known:
                known.add(key)
                waiting.append((after, longer))
    return None


def _verdict(state: State) -> str:
    return MUST_FAIL if state.status == "success" and state.impression != "positive" else state.status


def _end_of_substack(stack: Sequence[Handler], index: int) -> int:
    """Return the index after the rest of the substack that contains `index`, or after the whole stack."""
    after = index + 1
    while after < len(stack) and stack[after].level >= stack[index].level:
        after += 1
    return after
