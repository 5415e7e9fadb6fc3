"""Tests of each parser with the saved inputs of the fuzzer."""

from __future__ import annotations

import pytest

from tests.fuzz import corpus
from tests.fuzz.targets import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_every_kept_input_is_read_or_refused(name: str) -> None:
    kept = corpus.kept(name)
    assert kept, "the corpus has inputs for this parser"
    for data in (*SEEDS[name], *kept):
        TARGETS[name](data)


def test_every_kept_input_belongs_to_an_existing_parser() -> None:
    assert {path.name for path in corpus.FOLDER.iterdir()} == set(TARGETS)
