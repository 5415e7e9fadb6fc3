"""Tests of `update_many`: a bulk change is complete or rolled back, even after a kill, and used codes remain used."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.core.secretfile import serialize
from pam_totp.core.slots import BLOCK, decode, new_file
from pam_totp.core.verify import verify
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.store import NotThere, StoreError, journal
from pam_totp.store.bulk import Changes, update_many
from pam_totp.store.file import FileStore
from tests.support.nth_call import killed, nth
from tests.support.site import KEY, codes, fob

OLD = [f"old{i}" for i in range(5)]
NEW = [f"new{i}" for i in range(5)]
ADDED = b"the key that came in"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    folder = tmp_path / "store"
    folder.mkdir(0o700)
    made = FileStore(str(folder))
    for user in OLD:
        made.update(user, lambda record: (record.with_token(fob(3)), None), create=True)
    return made


def content(store: FileStore) -> dict[str, bytes]:
    """Return the documents of all records, and the content of all other files except the lock file."""
    found = {p.name: p.read_bytes() for p in Path(store.folder).iterdir() if p.name != ".lock" and p.is_file()}
    return {name: decode(data).document if name.endswith(".record") else data for name, data in found.items()}


def raw(store: FileStore) -> dict[str, bytes]:
    """Return the content of all files by name, byte for byte."""
    return {p.name: p.read_bytes() for p in Path(store.folder).iterdir() if p.is_file()}


def put_back(store: FileStore, files: dict[str, bytes]) -> None:
    for path in (Path(store.folder) / name for name in files):
        path.write_bytes(files[path.name])
        path.chmod(0o600)


def added(record: UserRecord) -> tuple[UserRecord, str]:
    return record.with_token(HotpToken(name="came", secret=ADDED, created=0, counter=7)), record.user


CHANGES = [(user, added) for user in [*OLD, *NEW]]
USERS = [user for user, _ in CHANGES]


def test_all_records_are_changed_and_no_temporary_file_remains(store: FileStore) -> None:
    seen: list[tuple[int, int]] = []
    assert update_many(store, CHANGES, lambda done, total: seen.append((done, total))) == USERS
    assert all(store.read(user).tokens[-1].secret == ADDED for user in USERS)
    assert [t.name for t in store.read(OLD[0]).tokens] == ["fob", "came"]
    assert not (Path(store.folder) / ".import").exists()
    assert {p.stat().st_mode & 0o777 for p in Path(store.folder).iterdir() if p.is_file()} == {0o600}
    assert seen[-1] == (20, 20)


def test_an_unchanged_record_is_not_written(store: FileStore) -> None:
    before = (Path(store.folder) / "old0.record").stat()
    update_many(store, [("old0", lambda record: (record, None))])
    after = (Path(store.folder) / "old0.record").stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_nlink) == (before.st_ino, before.st_mtime_ns, 1)


def test_a_change_that_fails_changes_nothing(store: FileStore) -> None:
    before = content(store)

    def fails(record: UserRecord) -> tuple[UserRecord, str]:
        raise KeyError(record.user)

    with pytest.raises(KeyError):
        update_many(store, [*CHANGES, ("zoe", fails)])
    assert content(store) == before
    assert not (Path(store.folder) / ".import").exists()


def killed_bulk_change(
    store: FileStore,
    call: str,
    number: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    changes: Changes[str] = CHANGES,
) -> bool:
    """Return True if a bulk change, in a child process, reaches call `number` of `os.<call>`, where the child kills
    itself.
    """
    return killed(lambda: update_many(store, changes, progress), call, number)


@pytest.mark.parametrize("call", ["pwritev", "link", "fsync", "write", "unlink", "mkdir", "rmdir"])
def test_after_a_kill_at_any_point_all_or_no_records_are_changed(store: FileStore, call: str) -> None:
    before = content(store)
    number = 0
    while killed_bulk_change(store, call, number + 1):
        number += 1
        journal.recover(store)
        after = content(store)
        if after != before:
            assert all(user in "".join(after) for user in USERS)
            assert all(store.read(user).token("came") is not None for user in USERS), "a commit changes every record"
            break
        assert not (Path(store.folder) / ".import").exists()
    assert number > 0, "at least one kill interrupted the bulk change"
    update_many(store, [("next", added)])
    assert store.read("next").token("came") is not None


def test_the_roll_back_of_an_import_does_not_make_a_used_code_valid(store: FileStore) -> None:
    before = content(store)
    assert killed_bulk_change(store, "link", 4)  # old0 … old4, new0 … new2 are changed
    for user, key, counter in (("old1", KEY, 3), ("new1", ADDED, 7), ("old2", ADDED, 7)):

        def accept(record: UserRecord, answer: str = codes(counter, key=key)) -> tuple[UserRecord, bool]:
            decision = verify(record, Answer.parse(answer.encode()), 1_700_000_000, Policy())
            return decision.record, decision.outcome.accepted

        assert store.update(user, accept), user
    assert journal.recover(store) == 6, "two of the eight records are kept, because they have a used new token"
    after = content(store)
    assert {name for name in after if after[name] != before.get(name)} == {"old1.record", "old2.record", "new1.record"}
    old1, old2, new1 = (store.read(user) for user in ("old1", "old2", "new1"))
    assert [(t.name, getattr(t, "counter", None)) for t in old1.tokens] == [("fob", 4)], "an unused token is removed"
    assert [(t.name, getattr(t, "counter", None)) for t in old2.tokens] == [("fob", 3), ("came", 8)], (
        "a used token is kept"
    )
    assert [(t.name, getattr(t, "counter", None)) for t in new1.tokens] == [("came", 8)]


def test_the_roll_back_of_an_import_keeps_used_recovery_codes_and_guesses(store: FileStore) -> None:
    """A roll-back removes the unused token of a new record, and keeps later changes to the record's other fields."""
    whole, recovery = new_recovery_codes(added(UserRecord(user="new"))[0], 2)

    def came(record: UserRecord) -> tuple[UserRecord, str]:
        return (whole if record == UserRecord(user="new") else added(record)[0]), record.user

    def answered(answer: str) -> bool:
        def accept(record: UserRecord) -> tuple[UserRecord, bool]:
            decision = verify(record, Answer.parse(answer.encode()), 1_700_000_000, Policy())
            return decision.record, decision.outcome.accepted

        return store.update("new", accept)

    changes = [("new", came), *CHANGES]
    assert killed_bulk_change(store, "pwritev", 1, changes=changes)
    assert answered(recovery[0])
    assert not answered("123456")
    assert journal.recover(store) == 1
    assert (store.read("new").enrolled, store.read("new").failures) == (False, 1)
    update_many(store, changes)
    assert store.read("new").failures == 1
    assert not answered(recovery[0]), "each recovery code is accepted once"
    assert answered(recovery[1])


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), OSError(errno.EIO, "I/O error")]
)
@pytest.mark.parametrize(("call", "number"), [("pwritev", 1), ("pwritev", 4), ("link", 1), ("link", 5)])
def test_a_bulk_change_that_cannot_finish_is_rolled_back_at_once(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, error: BaseException, call: str, number: int
) -> None:
    before = content(store)

    def fail() -> None:
        raise error

    monkeypatch.setattr(os, call, nth(getattr(os, call), number, fail))
    with pytest.raises(StoreError if isinstance(error, OSError) else KeyboardInterrupt):
        update_many(store, CHANGES)
    assert content(store) == before
    assert not (Path(store.folder) / ".import").exists()


@pytest.mark.parametrize("call", ["pwritev", "link"])
def test_a_bulk_change_is_rolled_back_even_on_a_full_disk(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The disk becomes full after the bulk change has written some records."""

    def full() -> None:
        monkeypatch.setattr(os, "open", opened)
        raise OSError(errno.ENOSPC, "No space left on device")

    def opened(name: str, flags: int, *arguments: Any, **named: Any) -> int:
        exists = os.path.lexists(os.path.join(f"/proc/self/fd/{named['dir_fd']}", name)) if "dir_fd" in named else True
        if flags & os.O_CREAT and not exists:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, flags, *arguments, **named)

    before, real = content(store), os.open
    monkeypatch.setattr(os, call, nth(getattr(os, call), 3, full))
    with pytest.raises(StoreError):
        update_many(store, CHANGES)
    assert content(store) == before
    assert not (Path(store.folder) / ".import").exists()


def test_a_record_that_grew_is_rolled_back_in_place(store: FileStore) -> None:
    digests = tuple(f"{number:064x}" for number in range(13))
    store.update("old0", lambda record: (record.with_recovery("00" * 16, digests), None))
    path, before = Path(store.folder) / "old0.record", content(store)
    assert path.stat().st_size == 2 * BLOCK
    assert killed_bulk_change(store, "link", 4)
    assert path.stat().st_size == 4 * BLOCK
    assert journal.recover(store) == 8
    assert path.stat().st_size == 4 * BLOCK
    assert content(store) == before


def test_a_new_record_that_lost_its_content_in_a_power_cut_is_rolled_back(store: FileStore) -> None:
    """A bulk change flushes the files of new users together at its end. An earlier power cut can empty these files."""
    before = content(store)
    assert killed_bulk_change(store, "link", 4)
    for user in ("new0", "new1"):
        os.truncate(Path(store.folder) / f"{user}.record", 0)
    with pytest.raises(StoreError, match=r"new0\.record: must not be empty"):
        store.read("new0")
    assert journal.recover(store) == 8
    assert content(store) == before


def link_elsewhere(path: Path) -> None:
    os.link(path, path.parent.parent / "backup")


def damage_both_slots(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"x" + data[1:BLOCK] + b"x" + data[BLOCK + 1 :])


@pytest.mark.parametrize("damage", [link_elsewhere, damage_both_slots], ids=["hard link", "slots"])
def test_a_new_record_that_is_damaged_is_kept_by_the_roll_back(
    tmp_path: Path, store: FileStore, damage: Callable[[Path], None]
) -> None:
    """`nullok` would accept the user without a code if the roll-back deleted the used record."""
    assert killed_bulk_change(store, "link", 4)
    store.update("new0", lambda record: (record.accepted(record.tokens[0], 7, 1, 5), None))
    damage(Path(store.folder) / "new0.record")
    warnings: list[str] = []
    assert journal.recover(FileStore(store.folder, warn=warnings.append)) == 7
    (warning,) = warnings
    assert warning.startswith(f"{store.folder}/new0.record: ")
    assert warning.endswith(" (the roll-back of an import left this file unchanged)")
    with pytest.raises(StoreError, match=r"new0\.record: "):
        store.read("new0")
    assert [[t.name for t in store.read(user).tokens] for user in OLD] == [["fob"]] * 5
    assert sorted(store.users()) == sorted([*OLD, "new0"])
    assert not (Path(store.folder) / ".import").exists()


@pytest.mark.parametrize("size", [BLOCK, 2 * BLOCK])
def test_a_new_record_of_zeros_is_rolled_back(store: FileStore, size: int) -> None:
    before = content(store)
    assert killed_bulk_change(store, "link", 4)
    (Path(store.folder) / "new1.record").write_bytes(bytes(size))
    assert journal.recover(store) == 8
    assert content(store) == before


def test_an_old_record_that_is_damaged_stops_the_roll_back(store: FileStore) -> None:
    assert killed_bulk_change(store, "link", 4)
    os.truncate(Path(store.folder) / "old0.record", 0)
    with pytest.raises(StoreError, match=r"old0\.record: must not be empty"):
        journal.recover(store)
    assert (Path(store.folder) / ".import" / "committing").exists()
    assert [[t.name for t in store.read(user).tokens] for user in OLD[1:]] == [["fob"]] * 4, (
        "the other records are rolled back"
    )


def test_a_record_with_an_invalid_document_is_kept_by_the_roll_back(store: FileStore) -> None:
    assert killed_bulk_change(store, "link", 4)
    path = Path(store.folder) / "new0.record"
    path.write_bytes(new_file(b"an invalid document", BLOCK))
    assert journal.recover(store) == 7
    assert path.read_bytes() == new_file(b"an invalid document", BLOCK)


def test_a_bulk_change_writes_records_of_version_1_too(store: FileStore) -> None:
    folder = Path(store.folder)
    for user in OLD:
        path = folder / f"{user}.record"
        (folder / f"{user}.json").write_bytes(decode(path.read_bytes()).document)
        (folder / f"{user}.json").chmod(0o600)
        path.unlink()
    before = content(store)
    assert killed_bulk_change(store, "link", 9)  # old0 … old4, new0 … new2 are changed
    assert journal.recover(store) == 8
    assert [store.read(user).tokens for user in OLD] == [(fob(3),)] * 5
    assert {Path(name).stem for name in content(store)} == {Path(name).stem for name in before}
    update_many(store, CHANGES)
    assert not any(data for name, data in content(store).items() if not name.endswith(".record"))
    assert [t.name for t in store.read("old0").tokens] == ["fob", "came"]


@pytest.mark.parametrize("call", ["pwritev", "unlink", "fsync", "rmdir"])
def test_a_killed_roll_back_is_completed_by_the_next(store: FileStore, call: str) -> None:
    """A code that a login uses between the two roll-backs remains used."""

    def used(record: UserRecord) -> tuple[UserRecord, bool]:
        decision = verify(record, Answer.parse(codes(3).encode()), 1_700_000_000, Policy())
        return decision.record, decision.outcome.accepted

    before, files, number = content(store), raw(store), 1
    while True:
        assert killed_bulk_change(store, "link", 4)
        if not killed(lambda: journal.recover(store), call, number):
            break
        rolled_back = [user for user in OLD if [t.name for t in store.read(user).tokens] == ["fob"]]
        assert all(store.update(user, used) for user in rolled_back)
        journal.recover(store)
        assert [[t.name for t in store.read(user).tokens] for user in OLD] == [["fob"]] * 5
        assert [getattr(store.read(user).tokens[0], "counter", None) for user in rolled_back] == [4] * len(rolled_back)
        put_back(store, files)
        assert content(store) == before
        number += 1
    assert number > 1, "at least one roll-back was killed"
    assert content(store) == before


def test_an_interrupt_after_the_commit_has_no_effect(store: FileStore) -> None:
    """The command would report a committed import as failed if `update_many` raised KeyboardInterrupt then."""

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    assert update_many(store, CHANGES, interrupt) == USERS
    assert all(store.read(user).token("came") is not None for user in USERS)


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_near_the_end_reports_commit_or_roll_back(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """An interrupt before the removal of the roll-back mark rolls the change back; a later interrupt has no effect."""
    before = content(store)

    def interrupt() -> None:
        raise KeyboardInterrupt

    def unmark(opened: int) -> None:
        monkeypatch.setattr(os, "fsync", nth(os.fsync, 1, interrupt))  # the fsync of the journal's folder
        real(opened)

    real = journal.unmark
    if number == 1:
        monkeypatch.setattr(journal, "unmark", nth(real, 1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            update_many(store, CHANGES)
        assert content(store) == before
    else:
        monkeypatch.setattr(journal, "unmark", unmark)
        assert update_many(store, CHANGES) == USERS
        assert all(store.read(user).token("came") is not None for user in USERS)
    assert not (Path(store.folder) / ".import").exists()


def test_a_record_that_was_used_meanwhile_is_decided_again(store: FileStore) -> None:
    def progress(done: int, total: int) -> None:
        if done == len(CHANGES):  # all records are staged, and no record is changed yet
            store.update("old3", lambda record: (record.accepted(record.tokens[0], 3, 1, 5), None))
            store.update("new3", lambda record: (record.with_token(fob()), None), create=True)
            store.update("old4", lambda _: (None, None))

    update_many(store, CHANGES, progress)
    for user, expected in (("old3", [("fob", 4), ("came", 7)]), ("new3", [("fob", 0), ("came", 7)])):
        assert [(t.name, getattr(t, "counter", None)) for t in store.read(user).tokens] == expected
    assert [t.name for t in store.read("old4").tokens] == ["came"]


def used_meanwhile(store: FileStore) -> Callable[[int, int], None]:
    """Return a progress callback that changes two records after the bulk change has staged all records.

    The bulk change has not yet written any of the staged records.
    """

    def progress(done: int, total: int) -> None:
        if done == len(CHANGES):
            store.update("old3", lambda record: (record.refused_as_wrong(5), None))
            store.update("new3", lambda record: (record.with_token(fob()), None), create=True)

    return progress


@pytest.mark.parametrize("call", ["pwritev", "link", "fsync", "unlink"])
def test_a_kill_while_deciding_again_loses_no_token(store: FileStore, call: str) -> None:
    files = raw(store)
    number = 0
    while killed_bulk_change(store, call, number + 1, used_meanwhile(store)):
        number += 1
        journal.recover(store)
        if all(store.read(user).token("came") is not None for user in OLD):
            break  # the kill was after the commit
        for user in OLD:
            assert [t.name for t in store.read(user).tokens] == ["fob"], (
                f"{user} is unchanged: kill before {call} {number}"
            )
        users = set(store.users())
        assert users - set(OLD) <= {"new3"}
        if "new3" in users:
            assert [t.name for t in store.read("new3").tokens] == ["fob"], "only `used_meanwhile` has changed new3"
            store.update("new3", lambda _: (None, None))
        put_back(store, files)
    assert number >= (len(NEW) if call == "link" else len(CHANGES) + 1)
    assert all(store.read(user).token("came") is not None for user in USERS)


def test_a_user_named_twice_gets_both_tokens_or_after_a_kill_neither(store: FileStore) -> None:
    def second(record: UserRecord) -> tuple[UserRecord, str]:
        assert record.token("came") is not None, "the changes of a user are applied in the order of the list"
        return record.with_token(HotpToken(name="second", secret=b"another secret key.", created=0)), "second"

    before, files = content(store), raw(store)
    twice = [*CHANGES, *((user, second) for user in reversed(USERS))]
    for call in ("pwritev", "link", "write", "unlink"):
        number = 0
        while killed_bulk_change(store, call, number + 1, changes=twice):
            number += 1
            journal.recover(store)
            after = content(store)
            if after != before:
                assert all(b"second" in data for data in after.values()), "a commit changes every record"
                break
        assert number > 0
        for user in USERS:
            store.update(user, lambda _: (None, None), create=True)
        put_back(store, files)
    assert update_many(store, twice) == [*USERS, *["second"] * len(USERS)]
    assert [t.name for t in store.read("old0").tokens] == ["fob", "came", "second"]


def test_the_result_is_that_of_the_last_decision(store: FileStore) -> None:
    def counted(record: UserRecord) -> tuple[UserRecord, int]:
        return added(record)[0], len(record.tokens)

    changes = [(user, counted) for user in USERS]
    assert update_many(store, changes, used_meanwhile(store)) == [1, 1, 1, 1, 1, 0, 0, 0, 1, 0]


def test_only_one_bulk_change_runs_at_a_time(store: FileStore) -> None:
    def meanwhile(done: int, total: int) -> None:
        if done == 0:
            assert journal.recover(store) == 0, "a running bulk change is not rolled back"
            with pytest.raises(StoreError, match="another import is running"):
                update_many(store, [("x", added)])

    update_many(store, CHANGES, meanwhile)
    assert store.read("new0").token("came") is not None
    with pytest.raises(NotThere):
        store.read("x")


def test_a_damaged_record_stops_the_bulk_change_and_is_unchanged(store: FileStore) -> None:
    damaged = Path(store.folder) / "old2.record"
    damaged.write_text("{}")
    before = content(store)
    with pytest.raises(StoreError, match=r"old2\.record"):
        update_many(store, CHANGES)
    assert content(store) == before
    link = Path(store.folder) / "new2.record"
    link.symlink_to("/etc/passwd")
    with pytest.raises(StoreError):
        update_many(store, [("new2", added)])
    assert link.is_symlink()


@pytest.mark.parametrize("invalid", [b"{", b"\xff\n", b'["old0.record", 1, true]\n', b"[" * 100_000 + b"\n", b"[]\n"])
def test_an_invalid_manifest_rolls_nothing_back_and_gives_instructions(store: FileStore, invalid: bytes) -> None:
    folder = Path(store.folder)
    before = content(store)
    opened = folder / ".import"
    opened.mkdir(0o700)
    (opened / "committing").touch(0o600)
    good = journal.Entry("old1.record", None, before["old1.record"]).line()
    (opened / "manifest").write_bytes(good + invalid + b"\n")
    with pytest.raises(StoreError, match=r"\.import/manifest: line 2 must be .* delete \.import"):
        journal.recover(store)
    assert content(store) == before
    assert (opened / "committing").exists(), "the journal is kept for the administrator"


# --- Imports of version 1


PENDING = ["old2", "old3", "old4", "new2", "new3", "new4"]


def import_1(store: FileStore, *, pending: list[str], mark: bool = True) -> None:
    """Replace all records by files of version 1, and create the journal of a killed import of version 1.

    The import has changed the records of all users except `pending`. A hard link in the journal keeps each old file.
    """
    folder, opened = Path(store.folder), Path(store.folder) / ".import"
    opened.mkdir(0o700)
    lines = []
    for user in USERS:
        path, old = folder / f"{user}.json", folder / f"{user}.record"
        new = serialize(added(store.read(user) if user in OLD else UserRecord(user=user))[0])
        if user in OLD:
            path.write_bytes(decode(old.read_bytes()).document)
            path.chmod(0o600)
            old.unlink()
            os.link(path, opened / f"{user}.json.old")
        staged = opened / f"{user}.json.new"
        staged.write_bytes(new)
        staged.chmod(0o600)
        if user not in pending:
            staged.rename(path)
        lines.append(json.dumps([path.name, new.decode(), user in OLD]) + "\n")
    (opened / "manifest").write_text("".join(lines))
    if mark:
        (opened / "committing").touch(0o600)


def tokens(store: FileStore, user: str) -> list[tuple[str, int | None]]:
    return [(token.name, getattr(token, "counter", None)) for token in store.read(user).tokens]


def used(counter: int, key: bytes) -> Callable[[UserRecord], tuple[UserRecord, bool]]:
    """Return the change by a login with the code of `counter` for `key`."""

    def accept(record: UserRecord) -> tuple[UserRecord, bool]:
        decision = verify(record, Answer.parse(codes(counter, key=key).encode()), 1_700_000_000, Policy())
        return decision.record, decision.outcome.accepted

    return accept


def test_an_import_of_version_1_is_rolled_back(store: FileStore) -> None:
    import_1(store, pending=PENDING)
    assert journal.recover(store) == 4
    assert [tokens(store, user) for user in OLD] == [[("fob", 3)]] * 5
    assert sorted(store.users()) == OLD
    assert not (Path(store.folder) / ".import").exists()
    assert update_many(store, CHANGES) == USERS


def test_an_import_of_version_1_without_a_mark_is_only_removed(store: FileStore) -> None:
    import_1(store, pending=USERS, mark=False)
    before = content(store)
    assert journal.recover(store) == 0
    assert content(store) == before
    assert not (Path(store.folder) / ".import").exists()


def test_codes_used_after_an_import_of_version_1_stay_used(store: FileStore) -> None:
    import_1(store, pending=PENDING)
    for user, counter, key in (("old0", 3, KEY), ("old1", 7, ADDED), ("old2", 3, KEY), ("new1", 7, ADDED)):
        assert store.update(user, used(counter, key)), user
    assert journal.recover(store) == 2, "a record with a used new token is kept"
    assert tokens(store, "old0") == [("fob", 4)]
    assert tokens(store, "old1") == [("fob", 3), ("came", 8)]
    assert tokens(store, "old2") == [("fob", 4)]
    assert tokens(store, "new1") == [("came", 8)]
    assert sorted(store.users()) == sorted([*OLD, "new1"])


@pytest.mark.parametrize("is_used", [True, False])
def test_a_record_that_version_1_staged_again_is_unchanged(store: FileStore, is_used: bool) -> None:
    """Version 1 deletes NAME.json.new before it computes the new record again.

    NAME.json.old is a hard link to the current record.
    """
    import_1(store, pending=PENDING)
    (Path(store.folder) / ".import" / "old2.json.new").unlink()
    if is_used:
        assert store.update("old2", used(3, KEY))
    assert journal.recover(store) == 4
    assert tokens(store, "old2") == [("fob", 4 if is_used else 3)]


def test_a_roll_back_that_version_1_began_is_completed(store: FileStore) -> None:
    """Version 1 rolls back by renaming NAME.json.old to NAME.json. The next login converts that file."""
    import_1(store, pending=PENDING)
    folder = Path(store.folder)
    (folder / ".import" / "old0.json.old").rename(folder / "old0.json")
    assert store.update("old0", used(3, KEY))
    assert journal.recover(store) == 3
    assert tokens(store, "old0") == [("fob", 4)]


@pytest.mark.parametrize("call", ["link", "unlink", "fsync", "rmdir"])
def test_a_killed_roll_back_of_version_1_is_completed_by_the_next(store: FileStore, call: str) -> None:
    files, number = raw(store), 1
    while True:
        import_1(store, pending=PENDING)
        ended = not killed(lambda: journal.recover(store), call, number)
        rolled_back = [user for user in OLD if tokens(store, user) == [("fob", 3)]]
        assert all(store.update(user, used(3, KEY)) for user in rolled_back)
        journal.recover(store)
        assert [tokens(store, user) for user in OLD] == [[("fob", 4 if user in rolled_back else 3)] for user in OLD]
        assert sorted(store.users()) == OLD
        assert not (Path(store.folder) / ".import").exists()
        if ended:
            break
        for path in Path(store.folder).glob("*.json"):
            path.unlink()
        put_back(store, files)
        number += 1
    assert number > 1, "at least one roll-back was killed"
