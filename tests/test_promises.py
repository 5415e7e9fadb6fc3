"""SECURITY.md names a test for every promise: each of them is there."""

from __future__ import annotations

import re

import pytest

from tests.site import TREE

NAMED = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (TREE / "SECURITY.md").read_text())


@pytest.mark.parametrize(("path", "test"), NAMED)
def test_the_test_of_a_promise_is_there(path: str, test: str) -> None:
    text = (TREE / path).read_text()
    assert f"def {test or 'test_'}" in text or (test == "" and "TestCase" in text)


@pytest.mark.parametrize(("begins", "at_least"), [("What is promised", 12), ("The portal, by OWASP's lists", 25)])
def test_every_promise_names_one(begins: str, at_least: int) -> None:
    (promised,) = (part for part in (TREE / "SECURITY.md").read_text().split("\n## ") if part.startswith(f"{begins}\n"))
    promises = re.findall(r"^\| (?!promise|concern|---)(.*) \|$", promised, re.MULTILINE)
    assert len(promises) >= at_least
    assert all(re.search(r"`tests/[\w/]+\.py", promise) for promise in promises)
