"""Tests of docs/scale.md: each result equals its formula, and measured values equal those of docs/speed.md."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scale.md").read_text()
SPEED = (ROOT / "docs" / "speed.md").read_text()
_ROW = re.compile(r"^\| (?P<what>[^|]+) \| `(?P<arithmetic>[^`]+)` \| (?P<result>[0-9][0-9,.]*)", re.MULTILINE)
_INLINE = re.compile(r"`(?P<arithmetic>[^`]+)` =\s(?P<result>[0-9][0-9,.]*)")
ROWS = [(m["arithmetic"], m["result"]) for pattern in (_ROW, _INLINE) for m in pattern.finditer(PAGE)]


def value(arithmetic: str) -> float:
    """Return the value of an expression of numbers, + - * / and ceil."""
    tree = ast.parse(arithmetic, mode="eval")
    allowed = (
        ast.Expression,
        ast.BinOp,
        ast.Add,
        ast.Sub,
        ast.Mult,
        ast.Div,
        ast.Constant,
        ast.Call,
        ast.Name,
        ast.Load,
    )
    assert all(isinstance(node, allowed) for node in ast.walk(tree)), arithmetic
    return float(eval(compile(tree, "arithmetic", "eval"), {"__builtins__": {}, "ceil": math.ceil}))  # noqa: S307


def test_the_page_has_its_arithmetic() -> None:
    assert len(ROWS) >= 40
    assert len(re.findall(r"`[0-9c][^`]* [*/+] [^`]*`", PAGE)) == sum(not a.replace(".", "").isdigit() for a, _ in ROWS)


@pytest.mark.parametrize(("arithmetic", "result"), ROWS)
def test_the_arithmetic_has_the_stated_result(arithmetic: str, result: str) -> None:
    shown = result.rstrip(".,").replace(",", "")
    digits = len(shown.partition(".")[2])
    assert f"{value(arithmetic):.{digits}f}" == shown


@pytest.mark.parametrize("number", ["965", "785", "133", "1,571", "1,381", "147", "1,845", "70 KiB", "207", "614"])
def test_the_measured_values_are_those_of_the_benchmark(number: str) -> None:
    assert number in SPEED
    assert re.search(rf"\b{number.replace(',', '').split()[0]}\b", PAGE)
