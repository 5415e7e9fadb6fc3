"""Frozen values, and the rules for their fields.

Rules:
1. A value is immutable. Methods of its class, such as `Token.renamed`, return changed copies.
2. A value is always valid: each new field passes its rule, and then `check` compares the fields.
3. A rule returns None for a valid value, otherwise the requirement as text. This text never contains the value.
4. A rule compares exact types: True is not a whole number, for example.
5. `repr` shows no field, because a field can be a secret.

`Value` replaces frozen dataclasses: the import of `dataclasses` (inspect, ast, dis) would add 8 ms to each login that
starts an interpreter. Type checkers treat a `Value` as a frozen dataclass.
"""

from __future__ import annotations

from pam_totp.core.lean import TYPE_CHECKING, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, ClassVar, NoReturn, Self, TypeAlias

MAX_TEXT = 255  # characters: the longest name of a user, service, host or token

Rule: TypeAlias = "Callable[[Any], str | None]"


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """Base class of frozen values. Annotated names of a subclass are the fields; class attributes are the defaults.

    A module that defines a subclass needs `from __future__ import annotations`: `Value` reads annotations as strings.
    """

    RULES: ClassVar[dict[str, Rule]] = {}  # field -> its rule; any value is valid for a field without a rule
    ERROR: ClassVar[type[ValueError]] = ValueError  # the exception for a field that breaks its rule

    _fields: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = cls.__dict__.get("__annotations__", {})
        cls._fields += tuple(n for n, kind in own.items() if not kind.startswith("ClassVar"))
        cls._names = frozenset(cls._fields)
        cls._defaults = {n: getattr(cls, n) for n in cls._fields if hasattr(cls, n)}

    def __init__(self, **given: Any) -> None:
        self._set(self._defaults, given, self._fields)

    def _replace(self, **changes: Any) -> Self:
        """Return a copy with `changes`. Check only the changed fields."""
        other = object.__new__(type(self))
        other._set(self.__dict__, changes, changes)
        return other

    def _set(self, old: dict[str, Any], changes: dict[str, Any], new: Collection[str]) -> None:
        fields, rules = self.__dict__, self.RULES
        fields.update(old)
        fields.update(changes)
        if fields.keys() != self._names:
            wrong = ", ".join(sorted(fields.keys() ^ self._names))
            raise TypeError(f"{type(self).__name__}: unknown or missing fields: {wrong}")
        if rules:
            for name in new:
                if name in rules and (requirement := rules[name](fields[name])) is not None:
                    raise self.ERROR(f"{name}: {requirement}")
        self.check(new)

    def check(self, new: Collection[str]) -> None:
        """Raise ERROR if the fields contradict each other. `new` contains the names of the fields that were set."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, n) for n in self._fields))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def require(rule: Rule, value: object, place: str, error: type[ValueError]) -> None:
    """Raise `error`, with `place` and the requirement, if `value` breaks `rule`."""
    requirement = rule(value)
    if requirement is not None:
        raise error(f"{place}: {requirement}")


# ---- rules


def whole_number(low: int, high: int) -> Rule:
    """Return the rule for an int from `low` to `high`, both included; bool is not accepted."""
    requirement = f"must be a whole number from {low} to {high}"
    return lambda v: None if type(v) is int and low <= v <= high else requirement


def text(v: object) -> str | None:
    """Require 1 to MAX_TEXT printable characters without white space at the ends."""
    good = type(v) is str and 0 < len(v) <= MAX_TEXT and v.isprintable() and v == v.strip()
    return None if good else f"must be 1 to {MAX_TEXT} printable characters without white space at the ends"


def printable(v: object) -> str | None:
    """Require 1 to MAX_TEXT printable characters."""
    good = type(v) is str and 0 < len(v) <= MAX_TEXT and v.isprintable()
    return None if good else f"must be 1 to {MAX_TEXT} printable characters"


def boolean(v: object) -> str | None:
    """Require True or False."""
    return None if type(v) is bool else "must be true or false"


def choice(*choices: object) -> Rule:
    """Return the rule for a value in `choices`. All choices have the same type."""
    requirement = "must be one of " + ", ".join(map(str, choices))
    return lambda v: None if type(v) is type(choices[0]) and v in choices else requirement


def hexadecimal(low: int, high: int) -> Rule:
    """Return the rule for `low` to `high` bytes as lower-case hexadecimal digits."""
    requirement = f"must be {low} to {high} bytes in lower-case hexadecimal"

    def check(v: object) -> str | None:
        good = type(v) is str and 2 * low <= len(v) <= 2 * high and len(v) % 2 == 0 and not v.strip("0123456789abcdef")
        return None if good else requirement

    return check


def optional(rule: Rule) -> Rule:
    """Return a rule that accepts None, and values that pass `rule`."""
    return lambda v: None if v is None else rule(v)


def instance_of(kind: type[object]) -> Rule:
    """Return the rule for an instance of `kind`. The fields of the instance have separate rules."""
    return lambda v: None if type(v) is kind else "must be an object"


def tuple_of(kind: type[object], most: int) -> Rule:
    """Return the rule for a tuple of at most `most` instances of `kind`."""

    def check(v: object) -> str | None:
        good = type(v) is tuple and len(v) <= most and all(isinstance(x, kind) for x in v)
        return None if good else f"must be a list of at most {most} entries"

    return check
