"""The ways through a stack without a code, for an attacker who knows the password. Pure.

Rules:
- The attacker chooses the result of every module, except of conditions, programs and other factors.
- A condition or program has one result in a login: equal lines have equal results. A world is one choice of these
  results.
- A way depends on conditions if it is missing in a world in which a login can succeed.
- Other factors fail in every world. A separate search finds the ways that need another factor.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product

from pam_totp.system.pamd.modules import ROOT_MODULE, Kind, kind
from pam_totp.system.pamd.stack import Handler
from pam_totp.system.pamd.verdicts import Move, find_path, possible_results

# A function that returns the possible results of the module at an index.
Results = Callable[[int], Sequence[str]]
Path = tuple[Move, ...]
# The results that are known before a login, by index.
Known = Mapping[int, str]

_MAX_WORLDS = 256  # the attacker chooses the results of further conditions
# results that a password module does not return after a wrong password
NO_PASSWORD = ("success", "ignore", "new_authtok_reqd")


class Need(StrEnum):
    """The requirement of a way in addition to the password."""

    NOTHING = "nothing"
    CONDITION = "condition"  # the result of a condition
    PROGRAM = "program"  # the result of a program
    FACTOR = "factor"  # another factor


@dataclass(frozen=True, slots=True)
class Bypass:
    """A way without pam_totp.so: the module at `index` skips it after `result`.

    `also_password` is True if such a way also works without the right password. With Need.FACTOR, the field is False.
    """

    index: int
    result: str
    need: Need
    also_password: bool = False


def bypasses(stack: Sequence[Handler], totp: Sequence[int], known: Known | None = None) -> list[Bypass]:
    """Return the ways to success that never run a module at `totp`, at most one for each module and result."""
    known = known or {}
    found: dict[tuple[int, str], Bypass] = {}
    is_always_open = is_exempt(stack, totp, known)
    passwords = [i for i, h in enumerate(stack) if not h.is_head and kind(h.rule) is Kind.PASSWORD]
    for world in worlds(stack, known):
        without_password = set(_causes(stack, totp, results_in(stack, world, refusing=passwords)))
        for cause in _causes(stack, totp, results_in(stack, world)):
            need = Need.NOTHING if is_always_open else _need(stack, cause[0], world)
            before = found.get(cause)
            also = cause in without_password or (before is not None and before.also_password)
            found[cause] = Bypass(*cause, need, also)
    for world in worlds(stack, known):
        for cause in _causes(stack, totp, results_in(stack, world, other_factors=True)):
            found.setdefault(cause, Bypass(*cause, Need.FACTOR))
    return sorted(found.values(), key=lambda b: (b.need != Need.NOTHING, b.index))


def is_exempt(stack: Sequence[Handler], totp: Sequence[int], known: Known) -> bool:
    """Return True if every world in which a login can succeed has a way without a code."""
    viable = [world for world in worlds(stack, known) if is_viable(stack, world)]
    return bool(viable) and all(find_without(stack, totp, results_in(stack, w)) is not None for w in viable)


def can_succeed(stack: Sequence[Handler], known: Known) -> bool:
    """Return True if a login with the results in `known` can succeed."""
    return any(is_viable(stack, world) for world in worlds(stack, known))


def worlds(stack: Sequence[Handler], known: Known) -> Iterator[dict[int, str]]:
    """Yield each choice of results for the conditions and programs that are not in `known`."""
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for index, handler in enumerate(stack):
        if not handler.is_head and index not in known and kind(handler.rule) in (Kind.CONDITION, Kind.PROGRAM):
            groups.setdefault((handler.rule.module, handler.rule.arguments), []).append(index)
    fixed = dict(known)
    choices: list[tuple[list[int], list[str]]] = []
    total = 1
    for indices in groups.values():
        possible = list(dict.fromkeys(r for i in indices for r in possible_results(stack[i], _excluded(stack[i]))))
        total *= len(possible)
        if total > _MAX_WORLDS:
            break
        choices.append((indices, possible))
    for chosen in product(*(possible for _, possible in choices)):
        yield fixed | {i: r for (indices, _), r in zip(choices, chosen, strict=True) for i in indices}


def results_in(
    stack: Sequence[Handler], world: Known, *, other_factors: bool = False, refusing: Collection[int] = ()
) -> Results:
    """Return a function that returns the results that an attacker can get from a module in `world`.

    `other_factors` lets other factors succeed. The modules at `refusing` refuse the password.
    """

    def results(index: int) -> Sequence[str]:
        if index in world:
            return (world[index],)
        excluded = NO_PASSWORD if index in refusing else _excluded(stack[index], other_factors=other_factors)
        return possible_results(stack[index], excluded)

    return results


def is_viable(stack: Sequence[Handler], world: Known) -> bool:
    """Return True if a login with a right code can succeed in `world`."""
    results = results_in(stack, world, other_factors=True)

    def with_code(index: int) -> Sequence[str]:
        is_ours = not stack[index].is_head and kind(stack[index].rule) is Kind.OURS
        return ("success",) if is_ours else results(index)

    return find_path(stack, with_code, lambda _, verdict: verdict == "success") is not None


def find_without(stack: Sequence[Handler], totp: Sequence[int], results: Results) -> Path | None:
    """Return a way to success that never runs a module at `totp`, or None."""
    return find_path(
        stack,
        results,
        lambda path, verdict: verdict == "success" and not any(move.index in totp for move in path),
        lambda move: move.index in totp or None,
    )


def _causes(stack: Sequence[Handler], totp: Sequence[int], results: Results) -> Iterator[tuple[int, str]]:
    """Yield each module and result that skips pam_totp.so on a way to success."""
    forbidden: set[tuple[int, str]] = set()

    def allowed(index: int) -> Sequence[str]:
        return [r for r in results(index) if (index, r) not in forbidden]

    while (path := find_without(stack, totp, allowed)) is not None:
        cause = next(m for m in reversed(path) if any(m.skips(i) for i in totp))
        forbidden.add((cause.index, cause.result))
        yield cause.index, cause.result


def _excluded(handler: Handler, *, other_factors: bool = False) -> tuple[str, ...]:
    """Return the results that an attacker never gets from a module: the success of another factor or of pam_rootok."""
    is_factor = kind(handler.rule) is Kind.FACTOR and not other_factors
    return ("success",) if is_factor or handler.rule.module == ROOT_MODULE else ()


def _need(stack: Sequence[Handler], index: int, world: Known) -> Need:
    """Return the requirement of a way that exists in some worlds only."""
    kinds = {kind(stack[i].rule) for i in world}
    is_program = kind(stack[index].rule) is Kind.PROGRAM or kinds == {Kind.PROGRAM}
    return Need.PROGRAM if is_program else Need.CONDITION
