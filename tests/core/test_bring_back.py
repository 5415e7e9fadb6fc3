"""Tests of `resynchronise`: it fails if another process uses, changes or deletes the token during the search."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, Token, UserRecord
from pam_totp.operations.resync import NotConsecutive, Progress, TokenChanged, resynchronise
from pam_totp.store import NotThere
from pam_totp.store.file import FileStore

KEY = b"12345678901234567890"
FOB = HotpToken(name="fob", secret=KEY, created=0)
LONG = HotpToken(name="long", secret=KEY[::-1], created=0, digits=8)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    folder = tmp_path / "store"
    folder.mkdir(0o700)
    made = FileStore(str(folder))
    made.update("alice", lambda record: (record.with_token(LONG).with_token(FOB), None), create=True)
    return made


def silently(token: Token) -> Progress:
    return lambda done, total: None


def found(store: FileStore, first: int, *, progress: Callable[[Token], Progress] = silently) -> Token:
    codes = (hotp(KEY, first), hotp(KEY, first + 1))
    tokens = store.read("alice").tokens
    return resynchronise(store, "alice", tokens, codes, reach=500, policy=Policy(), now=lambda: 1000, progress=progress)


def test_after_resynchronising_the_counter_is_after_the_codes(store: FileStore) -> None:
    token = found(store, 400)
    assert isinstance(token, HotpToken)
    assert (token.name, token.counter, token.last_used) == ("fob", 402, 1000)
    assert store.read("alice").token("fob") == token


def test_used_codes_and_codes_out_of_range_are_not_found(store: FileStore) -> None:
    found(store, 400)
    for first in (400, 401, 1000):
        with pytest.raises(NotConsecutive):
            found(store, first)


def while_searching(store: FileStore, change: Callable[[UserRecord], UserRecord | None]) -> Callable[[Token], Progress]:
    """Return a progress callback that changes the record during the search."""

    def progress(token: Token) -> Progress:
        return lambda done, total: store.update("alice", lambda record: (change(record), None))

    return progress


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.accepted(record.token("fob"), 400, 1, 999),
        lambda record: record.without_token("fob"),
        lambda record: record.without_token("fob").with_token(HotpToken(name="fob", secret=b"x" * 20, created=0)),
    ],
)
def test_a_token_that_was_used_or_changed_meanwhile_is_unchanged(
    store: FileStore, change: Callable[[UserRecord], UserRecord]
) -> None:
    with pytest.raises(TokenChanged):
        found(store, 400, progress=while_searching(store, change))
    changed = store.read("alice").token("fob")
    assert not isinstance(changed, HotpToken) or changed.counter in (0, 401)


def test_a_record_that_was_deleted_meanwhile_is_not_recreated(store: FileStore) -> None:
    with pytest.raises(NotThere):
        found(store, 400, progress=while_searching(store, lambda _: None))
