"""Tests of `Value` and of the rules: a value is frozen, complete and valid, and its repr shows no field."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core import fields
from pam_totp.core.fields import Value

MARKER = "Xmarker0X"


class Point(Value):
    x: int
    y: int = 0
    limit: ClassVar[int] = 10

    def check(self, new: Collection[str]) -> None:
        if self.x > self.limit:
            raise ValueError("x: too far")

    def moved(self, x: int) -> Point:
        return self._replace(x=x)


class Named(Point):
    name: str = "here"


class Other(Value):
    x: int
    y: int = 0


class RangeError(ValueError):
    pass


class Ruled(Value):
    ERROR = RangeError
    RULES: ClassVar[dict[str, fields.Rule]] = {"low": fields.whole_number(0, 9), "high": fields.whole_number(0, 9)}

    low: int
    high: int
    free: object = None

    def check(self, new: Collection[str]) -> None:
        if self.low > self.high:
            raise RangeError("low: above high")

    def moved(self, **changes: object) -> Ruled:
        return self._replace(**changes)


# ---- Value


def test_a_value_has_its_arguments_and_defaults() -> None:
    point = Named(x=1)
    assert (point.x, point.y, point.name) == (1, 0, "here")
    assert Named._fields == ("x", "y", "name")
    assert Point._fields == ("x", "y")


def test_a_field_without_default_is_required() -> None:
    with pytest.raises(TypeError, match=r"^Point: unknown or missing fields: x$"):
        Point(y=1)  # type: ignore[call-arg]


def test_unknown_names_and_class_variables_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^Point: unknown or missing fields: z$"):
        Point(x=1, z=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"^Point: unknown or missing fields: limit$"):
        Point(x=1, limit=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg]


def test_a_value_is_checked_when_it_is_made_and_when_it_is_changed() -> None:
    with pytest.raises(ValueError, match="too far"):
        Point(x=11)
    with pytest.raises(ValueError, match="too far"):
        Point(x=1).moved(11)
    with pytest.raises(ValueError, match="too far"):
        Named(x=11)


def test_each_field_passes_its_rule_before_the_fields_are_checked_together() -> None:
    assert Ruled(low=1, high=2, free=MARKER).free == MARKER
    with pytest.raises(RangeError, match=r"^high: must be a whole number from 0 to 9$"):
        Ruled(low=1, high=MARKER)  # type: ignore[arg-type]
    with pytest.raises(RangeError, match=r"^low: above high$"):
        Ruled(low=2, high=1)


def test_a_copy_is_checked_by_the_rules_of_its_changed_fields_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ruled = Ruled(low=1, high=2)
    with pytest.raises(RangeError, match=r"^low: must be a whole number"):
        ruled.moved(low=-1)
    with pytest.raises(RangeError, match=r"^low: above high$"):
        ruled.moved(low=3)
    seen: list[object] = []
    monkeypatch.setitem(Ruled.RULES, "high", seen.append)
    assert ruled.moved(low=2).low == 2
    assert seen == []
    assert ruled.moved(high=5).high == 5
    assert seen == [5]


@pytest.mark.parametrize("name", ["x", "y", "z", "limit", "_fields", "check"])
def test_a_value_is_frozen(name: str) -> None:
    point = Point(x=1)
    with pytest.raises(AttributeError, match="Point is frozen"):
        setattr(point, name, 2)
    with pytest.raises(AttributeError, match="Point is frozen"):
        delattr(point, name)
    assert point == Point(x=1)


def test_a_change_makes_another_value() -> None:
    point = Named(x=1, y=2, name="there")
    moved = point.moved(3)
    assert (moved.x, moved.y, moved.name) == (3, 2, "there")  # type: ignore[attr-defined]
    assert type(moved) is Named
    assert point.x == 1


def test_values_are_equal_by_type_and_fields_and_hash_alike() -> None:
    assert Point(x=1) == Point(x=1, y=0)
    assert hash(Point(x=1)) == hash(Point(x=1, y=0))
    assert Point(x=1) != Point(x=1, y=1)
    assert Point(x=1) != Point(x=2)
    assert Point(x=1) != Other(x=1)
    assert Point(x=1) != Named(x=1)
    assert Point(x=1) != (1, 0)
    assert len({Point(x=1), Point(x=1), Point(x=2)}) == 2


def test_a_copy_is_equal() -> None:
    assert copy.copy(Point(x=1)) == copy.deepcopy(Point(x=1)) == Point(x=1)


def test_the_repr_shows_no_field() -> None:
    assert repr(Named(x=7, name=MARKER)) == "<Named>"


# ---- rules

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=300),
    st.binary(max_size=100),
    st.lists(st.integers(), max_size=3),
    st.tuples(st.integers()),
    st.dictionaries(st.text(max_size=2), st.none(), max_size=1),
    st.sampled_from([MARKER, MARKER.encode(), MARKER * 50, (MARKER,), [MARKER], "ab" * 16, "\ud800", " x", "x\n"]),
)

# Name of a rule -> (rule, independent predicate for the valid values).
RULES: dict[str, tuple[fields.Rule, Callable[[Any], bool]]] = {
    "whole_number": (
        fields.whole_number(-3, 7),
        lambda v: type(v) is int and v in {-3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7},
    ),
    "text": (
        fields.text,
        lambda v: type(v) is str and v != "" and len(v) < 256 and v.isprintable() and v[0] != " " and v[-1] != " ",
    ),
    "printable": (fields.printable, lambda v: type(v) is str and v != "" and len(v) < 256 and v.isprintable()),
    "boolean": (fields.boolean, lambda v: v is True or v is False),
    "choice": (fields.choice("a", "b"), lambda v: v in ("a", "b")),
    "hexadecimal": (
        fields.hexadecimal(2, 16),
        lambda v: type(v) is str and len(v) in range(4, 33, 2) and all(c in "0123456789abcdef" for c in v),
    ),
    "optional": (fields.optional(fields.boolean), lambda v: v is True or v is False or v is None),
    "tuple_of": (
        fields.tuple_of(int, 1),
        lambda v: type(v) is tuple and len(v) <= 1 and all(isinstance(x, int) for x in v),
    ),
}


@pytest.mark.parametrize("name", RULES)
@given(value=anything | st.integers(-5, 9) | st.text("0123456789abcdefAF g", max_size=34) | st.sampled_from("abc"))
def test_a_rule_accepts_its_stated_values_and_never_shows_a_refused_value(name: str, value: object) -> None:
    rule, means = RULES[name]
    said = rule(value)
    assert (said is None) == means(value)
    if said is not None:
        assert said.startswith("must be ")
        assert MARKER not in said


def test_a_rule_refuses_another_type_that_compares_equal() -> None:
    assert fields.whole_number(0, 1)(True) is not None
    assert fields.whole_number(0, 1)(1.0) is not None
    assert fields.choice(1, 2)(True) is not None
    assert fields.choice(1, 2)(1.0) is not None
    assert fields.choice(1, 2)(1) is None
    assert fields.boolean(1) is not None

    class Text(str):
        pass

    assert fields.text(Text("x")) is not None
    assert fields.hexadecimal(0, 16)(Text("ab")) is not None


@pytest.mark.parametrize(("low", "high"), [(0, 0), (6, 8), (-(2**31), 2**31), (0, 2**64)])
def test_both_ends_of_a_range_are_included(low: int, high: int) -> None:
    rule = fields.whole_number(low, high)
    assert [rule(v) is None for v in (low - 1, low, high, high + 1)] == [False, True, True, False]


def test_text_is_counted_in_characters_and_has_no_space_at_its_ends() -> None:
    assert fields.text("ü" * 255) is None
    assert fields.text("ü" * 256) is not None
    for bad in (" x", "x ", "\u00a0x", "x\u2003", "\u200bx", "a\x7fb", "a\x85b", "a\u2028b", "\u202ealice"):
        assert fields.text(bad) is not None, ascii(bad)


def test_a_tuple_has_its_type_and_at_most_its_length() -> None:
    rule = fields.tuple_of(str, 2)
    assert rule(()) is None
    assert rule(("a", "b")) is None
    for bad in (("a", "b", "c"), ("a", 1), ["a"], "ab", None):
        assert rule(bad) == "must be a list of at most 2 entries"
