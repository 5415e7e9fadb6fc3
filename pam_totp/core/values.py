"""Frozen values, valid by construction.

The law: a value's fields never change after it was made; every value has passed its own `check`; its
`repr` shows no field that could be a secret.

`dataclasses` says the same, and costs 8 ms of imports (inspect, ast, dis) at every login for which the relay
has to start an interpreter; this costs none. Type checkers treat a `Value` as a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, NoReturn, Self, dataclass_transform


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """Base class: annotated names are the fields, class attributes are their defaults.

    Modules that define one say `from __future__ import annotations`, so that an annotation is a string.
    """

    _fields: ClassVar[tuple[str, ...]] = ()
    _names: ClassVar[frozenset[str]] = frozenset()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = cls.__dict__.get("__annotations__", {})
        cls._fields += tuple(n for n, kind in own.items() if not kind.startswith("ClassVar"))
        cls._names = frozenset(cls._fields)
        cls._defaults = {n: getattr(cls, n) for n in cls._fields if hasattr(cls, n)}

    def __init__(self, **given: Any) -> None:
        self._fill({**self._defaults, **given}, self._fields)

    def _but(self, **changes: Any) -> Self:
        """A copy with some fields changed, and these checked; for the named transitions of subclasses."""
        other = object.__new__(type(self))
        other._fill({**self.__dict__, **changes}, changes)
        return other

    def _fill(self, fields: dict[str, Any], new: Collection[str]) -> None:
        if fields.keys() != self._names:
            raise TypeError(f"{type(self).__name__} has no, or needs, {', '.join(sorted(fields.keys() ^ self._names))}")
        self.__dict__.update(fields)
        self.check(new)

    def check(self, new: Collection[str]) -> None:
        """Raise where the fields do not make a valid value together. Those that are not `new` have been looked at."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, n) == getattr(other, n) for n in self._fields)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, n) for n in self._fields))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"
