"""Tests of `import_tokens`: the selection of tokens, and for each token a status and a reason."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pam_totp.core.record import MAX_TOKENS, UserRecord
from pam_totp.formats.format import ParsedFile, ParseOptions, parsed_at_once
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.registry import FORMATS
from pam_totp.operations import import_tokens as operation
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.operations.import_tokens import (
    Interrupted,
    PackedResult,
    Report,
    Result,
    SelectedTokens,
    Selection,
    Status,
    UserFile,
    import_tokens,
    select_user_files,
)
from pam_totp.store import NotThere
from pam_totp.store.file import LOCK, FileStore
from tests.formats.reading import NOW, written
from tests.support.site import KEY, fob

OPTIONS = ParseOptions(now=NOW)


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    folder = tmp_path / "store"
    folder.mkdir(0o700)
    return FileStore(str(folder))


def token(line: int = 1, **fields: Any) -> ImportedToken:
    given: dict[str, Any] = {"line": line, "secret": line.to_bytes(20, "big"), "user": "alice"} | fields
    return ImportedToken(**given)


def selected(*tokens: ImportedToken, **selection: Any) -> SelectedTokens:
    return SelectedTokens(parsed_at_once(list(tokens)), Selection(account=str.lower, **selection))


def statuses(report: Report) -> list[Status]:
    return [result.status for result in report]


def test_every_reason_has_a_code_for_programs(store: FileStore) -> None:
    report = import_tokens(
        store,
        selected(
            token(1),
            token(2, secret=token(1).secret),
            token(3, secret=b"short"),
            token(4, user=None),
            token(5, user="a\0b"),
            token(6, unsupported="unsupported algorithm PIN: must be HOTP or TOTP"),
            *(token(line, user="bob") for line in range(10, 11 + MAX_TOKENS)),
        ),
        now=NOW,
    )
    assert statuses(report) == [
        Status.IMPORTED,
        Status.ALREADY_IMPORTED,
        Status.INVALID,
        Status.NO_USER,
        Status.INVALID_USER,
        Status.UNSUPPORTED,
        *[Status.IMPORTED] * MAX_TOKENS,
        Status.TOO_MANY_TOKENS,
    ]
    assert (report.imported, report.skipped, report.ok) == (1 + MAX_TOKENS, 6, False)
    assert [result.line for result in report][:6] == [1, 2, 3, 4, 5, 6], "results have the order of the file"
    assert all((result.reason is None) == (result.status is Status.IMPORTED) for result in report)


def test_a_file_that_was_imported_before_is_a_success(store: FileStore) -> None:
    for expected in (Status.IMPORTED, Status.ALREADY_IMPORTED):
        report = import_tokens(store, selected(token(1), token(2, user="bob")), now=NOW)
        assert (statuses(report), report.ok) == ([expected] * 2, True)
    assert not import_tokens(store, selected(), now=NOW).ok, "`ok` is False for a file without tokens"


def test_a_dry_run_gives_the_same_codes_and_changes_nothing(store: FileStore) -> None:
    tokens = (token(1), token(2, secret=token(1).secret), token(3), token(4, user=None))
    planned = statuses(import_tokens(store, selected(*tokens), now=NOW, dry_run=True))
    assert list(store.users()) == []
    assert statuses(import_tokens(store, selected(*tokens), now=NOW)) == planned


def test_a_dry_run_creates_nothing_in_the_store(store: FileStore) -> None:
    give_serial(store, "zoe", "A")
    for leftover in (LOCK, ".serial"):
        path = Path(store.folder) / leftover
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(os.listdir(store.folder))
    tokens = selected(token(1, serial="a"), token(2, serial="B"))
    assert statuses(import_tokens(store, tokens, now=NOW, dry_run=True)) == [Status.SERIAL_TAKEN, Status.IMPORTED]
    assert sorted(os.listdir(store.folder)) == before


def give_serial(store: FileStore, user: str, serial: str) -> None:
    added = fob(secret=user.encode().rjust(20, b"."), serial=serial)
    store.update(user, lambda record: (record.with_token(added), None), create=True)


@pytest.mark.parametrize("seed", range(5))
def test_a_dry_run_gives_the_results_of_the_import(store: FileStore, seed: int) -> None:
    chosen = random.Random(seed)
    keys = [bytes([number] * 20) for number in range(4)]

    def some(number: int) -> SelectedTokens:
        users, serials = ("alice", "bob", "eve"), ("S1", "s-1", "S2", None)
        facts = [(chosen.choice(keys), chosen.choice(users), chosen.choice(serials)) for _ in range(number)]
        return selected(*(token(n, secret=k, user=u, serial=s) for n, (k, u, s) in enumerate(facts, 1)))

    for _ in range(40):
        import_tokens(store, some(chosen.randint(0, 3)), now=NOW)
        tokens = some(chosen.randint(2, 6))
        planned = list(import_tokens(store, tokens, now=NOW, dry_run=True))
        assert planned == list(import_tokens(store, tokens, now=NOW))
        for user in list(store.users()):
            store.update(user, lambda _: (None, None))


def test_a_result_is_the_same_after_it_was_packed() -> None:
    result = Result(Status.INVALID, "line 7", 7, "zoë", None, "totp", "S-1", ("one", "two"), "a reason")
    assert PackedResult(result).unpack() == result


def test_a_selection_assigns_tokens_by_map_by_user_or_by_the_file() -> None:
    tokens = (token(1, serial="A", user="Alice"), token(2, serial="B", user=None), token(3, serial="C", user="bob"))

    def users(**selection: Any) -> list[tuple[int, str | None]]:
        return [
            (1, each.user) if isinstance(each, operation.Candidate) else (0, each.user)
            for each in selected(*tokens, **selection)
        ]

    assert users() == [(1, "alice"), (0, None), (1, "bob")]
    assert users(user="carl") == [(1, "carl")] * 3
    assert users(user="carl", serial="B") == [(1, "carl")]
    assert users(user="bob", user_selects=True) == [(1, "bob")]
    assert users(users_by_serial={"A": "Zoe"}) == [(1, "zoe"), (0, None), (0, None)]


def test_the_rest_of_an_exported_record_goes_only_to_its_own_user(store: FileStore) -> None:
    whole, recovery = new_recovery_codes(UserRecord(user="alice", tokens=(fob(3),)), 2)
    store.update("bob", lambda record: (record.with_token(fob(secret=b"b" * 20)), None), create=True)
    two = selected(token(1, secret=KEY), token(2, user="bob"), token(3, user="carl"))
    import_tokens(store, two, now=NOW, new_record=whole.without_tokens("alice"))
    assert [len(store.read(user).recovery) for user in ("alice", "bob", "carl")] == [len(recovery), 0, 0]


def with_codes(user: str, *tokens: Any) -> UserRecord:
    return new_recovery_codes(UserRecord(user=user, tokens=tokens), 2)[0]


def test_recovery_codes_are_imported_beside_an_existing_token(store: FileStore) -> None:
    whole = with_codes("alice", fob(3))
    store.update("alice", lambda record: (record.with_token(fob(secret=b"a" * 20, name="old")), None), create=True)
    rest = whole.without_tokens("alice")
    for status, remarks in ((Status.IMPORTED, ("2 recovery codes imported too",)), (Status.ALREADY_IMPORTED, ())):
        (result,) = import_tokens(store, selected(token(1, secret=KEY)), now=NOW, new_record=rest)
        assert (result.status, result.remarks) == (status, remarks)
    assert store.read("alice").recovery == whole.recovery


def test_an_import_reports_the_recovery_codes_that_it_dropped(store: FileStore) -> None:
    mine = with_codes("alice", fob(secret=b"a" * 20, name="old"))
    store.update("alice", lambda _: (mine, None), create=True)
    rest = with_codes("alice").without_tokens("alice")
    results = list(import_tokens(store, selected(token(1), token(2)), now=NOW, new_record=rest))
    dropped = "2 recovery codes dropped: alice already has a set of recovery codes"
    assert [result.remarks for result in results] == [(dropped,), ()]
    assert store.read("alice").recovery == mine.recovery


def test_an_import_does_not_restore_used_recovery_codes(store: FileStore) -> None:
    whole = with_codes("alice", fob(3))
    used = whole.with_recovery(str(whole.salt), ())
    store.update("alice", lambda _: (used, None), create=True)
    (result,) = import_tokens(store, selected(token(1)), now=NOW, new_record=whole.without_tokens("alice"))
    assert (result.status, result.remarks, store.read("alice").recovery) == (Status.IMPORTED, (), ())


def test_with_a_refused_token_nothing_of_its_user_is_imported(store: FileStore) -> None:
    whole, _ = new_recovery_codes(UserRecord(user="alice", tokens=(fob(3),)), 2)
    report = import_tokens(
        store, selected(token(1, secret=b"short")), now=NOW, new_record=whole.without_tokens("alice")
    )
    assert statuses(report) == [Status.INVALID]
    with pytest.raises(NotThere):
        store.read("alice")


def test_an_unreadable_record_of_one_user_does_not_stop_other_users(store: FileStore) -> None:
    files = [
        UserFile(path="/home/alice/.ga", user="Alice", data=written("google-authenticator", [fob(5)])),
        UserFile(path="/home/bob/.ga", user="bob", data=b"junk=\n"),
        UserFile(path="/home/carl/.ga", user="carl", problem="not a regular file"),
    ]
    found = select_user_files(files, FORMATS["google-authenticator"], OPTIONS, str.lower)
    report = import_tokens(store, found, now=NOW)
    assert sorted((result.place, result.status) for result in report) == [
        ("/home/alice/.ga", Status.IMPORTED),
        ("/home/bob/.ga", Status.UNREADABLE),
        ("/home/carl/.ga", Status.UNREADABLE),
    ]
    assert store.read("alice").tokens[0].secret == KEY


def test_an_interrupted_import_reports_that_it_was_rolled_back(store: FileStore) -> None:
    def interrupt(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as interrupted:
        import_tokens(store, selected(token(1), token(2, user="bob")), now=NOW, progress=interrupt)
    assert interrupted.value.rolled_back
    assert list(store.users()) == []


def test_tokens_by_line_are_read_again_and_not_kept_in_memory(store: FileStore) -> None:
    passes = 0

    class Counted:
        def __iter__(self) -> Iterator[ImportedToken]:
            nonlocal passes
            passes += 1
            yield from (token(1), token(2), token(3, user="bob"))

    tokens = SelectedTokens(ParsedFile(Counted(), 3), Selection(account=str.lower))
    import_tokens(store, tokens, now=NOW, dry_run=True)
    assert passes == 2, "a second pass handles the two tokens of alice"
