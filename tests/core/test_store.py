"""Tests of the file store: reading and writing, file names, temporary files, and the required owners and modes."""

from __future__ import annotations

import fcntl
import gc
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.record import RecordError, Token, UserRecord
from pam_totp.core.secretfile import MAX_FILE
from pam_totp.store import NotThere, StoreError
from pam_totp.store.file import FileStore, file_name
from tests.conftest import as_root
from tests.core.stores import code, counter_of, enrol, record_of, says
from tests.support.site import PATIENCE, fob, until


@pytest.fixture
def store(folder: Path) -> FileStore:
    return FileStore(str(folder))


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Return the metadata, except the access time, and the content of every file."""
    found: dict[str, tuple[object, ...]] = {}
    for name in files(folder):
        status = (folder / name).lstat()
        content = (folder / name).read_bytes() if stat.S_ISREG(status.st_mode) else None
        found[name] = (content, status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
    return found


# ---- reading and writing


def test_an_enrolled_record_is_read_and_advanced_by_a_login(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    assert store.read("alice").tokens == (fob(),)
    assert says(folder, code(0)) == "code"
    assert counter_of(path) == 1
    assert store.read("alice") == record_of(path)
    assert says(folder, code(0)) == "replayed"
    assert files(folder) == ["alice.json", "alice.lock"]


def test_a_key_that_another_process_removed_is_not_kept_in_memory(folder: Path, store: FileStore) -> None:
    secret = b"a key that was removed"
    enrol(folder, tokens=(fob(), fob(name="removed", secret=secret)))
    assert len(store.read("alice").tokens) == 2
    enrol(folder)
    assert store.read("alice").tokens == (fob(),)
    gc.collect()
    assert not [held for held in gc.get_objects() if isinstance(held, Token) and held.secret == secret]


def test_the_result_of_the_change_is_returned(folder: Path, store: FileStore) -> None:
    enrol(folder)
    marker = object()
    assert store.update("alice", lambda record: (record, marker)) is marker


def test_an_unchanged_record_is_not_written(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    before = snapshot(folder)["alice.json"]
    store.update("alice", lambda record: (record, None))
    assert says(folder, b"malformed") == "malformed"
    assert snapshot(folder)["alice.json"] == before
    assert says(folder, b"000000") == "wrong"
    assert snapshot(folder)["alice.json"] != before
    assert record_of(path).failures == 1


def test_a_failed_change_writes_nothing_and_releases_the_lock(folder: Path, store: FileStore) -> None:
    enrol(folder)
    before = snapshot(folder)["alice.json"]

    def fails(record: UserRecord) -> tuple[UserRecord, None]:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        store.update("alice", fails)
    assert snapshot(folder)["alice.json"] == before
    assert files(folder) == ["alice.json", "alice.lock"]
    assert says(folder, code(0), store=FileStore(str(folder), lock_wait=0.0)) == "code"


def test_an_unknown_user_is_not_found_and_leaves_no_lock_file(folder: Path, store: FileStore) -> None:
    with pytest.raises(NotThere):
        store.read("alice")
    with pytest.raises(NotThere):
        store.update("alice", lambda record: (record, None))
    assert files(folder) == []


def test_create_starts_an_empty_record_and_keeps_an_existing_one(folder: Path, store: FileStore) -> None:
    seen: list[UserRecord] = []

    def add(record: UserRecord) -> tuple[UserRecord, None]:
        seen.append(record)
        return record.with_token(fob(name=f"t{len(seen)}", secret=bytes([len(seen)]) * 20)), None

    store.update("alice", add, create=True)
    store.update("alice", add, create=True)
    assert seen[0] == UserRecord(user="alice")
    assert [t.name for t in seen[1].tokens] == ["t1"]
    assert [t.name for t in store.read("alice").tokens] == ["t1", "t2"]


def test_none_deletes_the_record_and_keeps_the_lock_file(folder: Path, store: FileStore) -> None:
    enrol(folder)
    assert store.update("alice", lambda record: (None, record.user)) == "alice"
    assert files(folder) == ["alice.lock"]
    with pytest.raises(NotThere):
        store.read("alice")
    assert store.update("bob", lambda record: (None, 5), create=True) == 5


def test_a_user_deleted_while_the_lock_is_awaited_is_not_found(folder: Path) -> None:
    path = enrol(folder)
    inside, go_on = threading.Event(), threading.Event()
    outcomes: list[object] = []

    def removes(record: UserRecord) -> tuple[None, None]:
        inside.set()
        assert go_on.wait(30)
        return None, None

    def waits() -> None:
        try:
            outcomes.append(says(folder, code(0)))
        except NotThere as e:
            outcomes.append(e)

    admin = threading.Thread(target=FileStore(str(folder)).update, args=("alice", removes))
    login = threading.Thread(target=waits)
    admin.start()
    assert inside.wait(30)
    login.start()
    go_on.set()
    admin.join()
    login.join()
    assert not path.exists()
    assert isinstance(outcomes[0], NotThere)


def test_a_record_too_large_to_be_read_back_is_not_written(folder: Path, store: FileStore) -> None:
    path = enrol(folder)
    before = path.read_bytes()
    tokens = tuple(fob(name="n" * 250 + str(i), secret=bytes([i]) * 128, serial="ü" * 255) for i in range(8))
    recovery = tuple(f"{i:064x}" for i in range(100))

    def grow(record: UserRecord) -> tuple[UserRecord, None]:
        from pam_totp.core.record import Grace

        grace = tuple(Grace(service="ü" * 255, rhost=f"{i}", granted=0) for i in range(64))
        return UserRecord(user="alice", tokens=tokens, salt="00" * 16, recovery=recovery, grace=grace), None

    with pytest.raises(StoreError, match=f"would be larger than {MAX_FILE} bytes"):
        store.update("alice", grow)
    assert path.read_bytes() == before
    assert files(folder) == ["alice.json", "alice.lock"]


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o077)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277, 0o777])
def test_files_are_private_to_their_owner_under_every_umask(
    folder: Path, store: FileStore, umask: Callable[[int], int], mask: int
) -> None:
    umask(mask)
    store.update("alice", lambda record: (record.with_token(fob()), None), create=True)
    store.update_decoy("zoe")
    umask(0o077)
    assert {name: stat.S_IMODE((folder / name).stat().st_mode) for name in files(folder)} == {
        "alice.json": 0o600,
        "alice.lock": 0o600,
    }
    assert says(folder, code(0)) == "code"


def test_every_descriptor_is_closed(folder: Path, store: FileStore) -> None:
    enrol(folder)
    enrol(folder, "broken").write_bytes(b"{")
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        says(folder, b"000000")
        store.update_decoy("zoe")
        list(store.users())
        for broken in ("broken", "zoe", "x" * 300):
            with pytest.raises((StoreError, NotThere)):
                store.update(broken, lambda record: (record, None))
            with pytest.raises((StoreError, NotThere)):
                store.read(broken)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# ---- decoy work for an unknown user


def test_the_work_for_an_unknown_user_leaves_no_file(folder: Path, store: FileStore) -> None:
    for user in ("zoe", "zoe", "..", "x" * 245):
        store.update_decoy(user)
        assert files(folder) == []


@pytest.mark.parametrize("left", ["", "x" * 5000])
def test_a_leftover_of_killed_decoy_work_is_removed_by_the_next(folder: Path, store: FileStore, left: str) -> None:
    (folder / ".zoe.nobody").touch(0o600)
    (folder / ".zoe.nobody").write_text(left)
    assert list(store.users()) == []
    store.update_decoy("zoe")
    assert files(folder) == []


def test_unknown_users_run_in_parallel_and_repeats_are_serialised(folder: Path) -> None:
    """Logins of enrolled users wait in the same way. Otherwise the wait would show that a user is unknown."""
    impatient = FileStore(str(folder), lock_wait=0.01)
    enrol(folder)
    for held, name in ((folder / "alice.lock", "alice"), (folder / ".zoe.nobody", "zoe")):
        lock = os.open(held, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        work: dict[str, Callable[[], None]] = {
            "alice": lambda: impatient.update("alice", lambda record: (record, None)),
            "zoe": lambda: impatient.update_decoy("zoe"),
        }
        with pytest.raises(StoreError, match=r"not acquired within 0.01 s"):
            work.pop(name)()
        for other in work.values():
            other()
        impatient.update_decoy("yan")
        os.close(lock)


def test_a_process_that_waited_for_decoy_work_does_its_own(folder: Path, store: FileStore) -> None:
    lock = os.open(folder / ".zoe.nobody", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    waiting = threading.Thread(target=store.update_decoy, args=("zoe",))
    waiting.start()
    until(lambda: _open_in(folder) >= 3, "the thread has opened the folder and the file")
    (folder / ".zoe.nobody").unlink()  # as the process with the lock does at its end
    before = folder.stat().st_mtime_ns
    os.close(lock)
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    assert files(folder) == []
    assert folder.stat().st_mtime_ns > before, "the thread created its own file in the folder"


def _open_in(folder: Path) -> int:
    """Return how many files of the folder this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sum(path.startswith(str(folder)) for path in found)


def test_a_user_with_the_name_nobody_is_an_ordinary_user(folder: Path, store: FileStore) -> None:
    path = enrol(folder, "nobody")
    enrol(folder, ".nobody", file="%2Enobody.json")
    store.update_decoy("zoe")
    assert says(folder, code(0), "nobody") == "code"
    assert says(folder, code(0), ".nobody") == "code"
    assert counter_of(path) == 1
    assert files(folder) == ["%2Enobody.json", "%2Enobody.lock", "nobody.json", "nobody.lock"]


# ---- leftovers of a killed writer


@pytest.mark.parametrize("kind", ["half", "whole", "empty", "unreadable", "link", "pipe"])
def test_a_leftover_of_a_killed_writer_does_not_block_and_is_removed(folder: Path, tmp_path: Path, kind: str) -> None:
    path = enrol(folder)
    aside = folder / ".alice.json.tmp"
    target = tmp_path / "target"
    target.write_text("not ours")
    if kind == "link":
        aside.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(aside)
    else:
        content = path.read_bytes().replace(b'"counter": 0', b'"counter": 9')
        aside.write_bytes({"half": content[:50], "empty": b""}.get(kind, content))
        aside.chmod(0 if kind == "unreadable" else 0o600)
    assert says(folder, code(0)) == "code"
    assert files(folder) == ["alice.json", "alice.lock"]
    assert counter_of(path) == 1
    assert target.read_text() == "not ours"


def test_a_leftover_is_removed_even_if_nothing_is_written(folder: Path) -> None:
    enrol(folder)
    (folder / ".alice.json.tmp").write_bytes(b"a secret")
    assert says(folder, b"malformed") == "malformed"
    assert files(folder) == ["alice.json", "alice.lock"]


def test_a_leftover_of_another_user_is_left_to_that_users_next_writer(folder: Path) -> None:
    enrol(folder)
    (folder / ".bob.json.tmp").write_bytes(b"being written")
    says(folder, code(0))
    assert (folder / ".bob.json.tmp").exists()


# ---- invalid files


def _hard(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _link(path: Path) -> None:
    path.rename(path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o600)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/null")


def _other_user(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"alice"', b'"mallory"'))


def _mode(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_hard, "invalid JSON"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "one byte": (lambda path: path.write_bytes(b"{"), "invalid JSON"),
    "NULs": (lambda path: path.write_bytes(bytes(400)), "invalid JSON"),
    "just too large": (lambda path: path.write_bytes(b" " * (MAX_FILE + 1)), "must be at most"),
    "much too large": (lambda path: os.truncate(path, 1 << 40), "must be at most"),
    "another user's": (_other_user, "the field 'user' must match the file name"),
    "a link": (_link, "Too many levels of symbolic links"),
    "a dangling link": (_dangling, "Too many levels of symbolic links"),
    "a link to itself": (_loop, "Too many levels of symbolic links"),
    "a link to a device": (_device, "Too many levels of symbolic links"),
    "a pipe": (_pipe, "must be a regular file"),
    "a folder": (_directory, "must be a regular file"),
    **{
        f"mode {mode:04o}": (_mode(mode), "its mode must be 0600")
        for mode in (
            0o601,
            0o604,
            0o606,
            0o610,
            0o620,
            0o640,
            0o660,
            0o644,
            0o666,
            0o700,
            0o777,
            0o1600,
            0o2600,
            0o4600,
        )
    },
}


@pytest.mark.parametrize("how", SPOILED)
def test_an_invalid_file_is_unavailable_and_unchanged(folder: Path, store: FileStore, how: str) -> None:
    spoil, said = SPOILED[how]
    path = enrol(folder)
    spoil(path)
    before = {name: what for name, what in _looks(folder).items() if name != "alice.lock"}
    for attempt in (
        lambda: store.read("alice"),
        lambda: says(folder, code(0)),
        lambda: store.update("alice", lambda record: (record, None), create=True),
    ):
        with pytest.raises(StoreError, match=said) as caught:
            attempt()
        assert "alice.json" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert {name: what for name, what in _looks(folder).items() if name != "alice.lock"} == before
    assert says_bob(folder) == "code", "another user can log in"


def _looks(folder: Path) -> dict[str, tuple[int, int, int, int]]:
    looks = {name: (folder / name).lstat() for name in files(folder)}
    return {name: (s.st_ino, s.st_mode, s.st_size, s.st_mtime_ns) for name, s in looks.items()}


def says_bob(folder: Path) -> str:
    enrol(folder, "bob")
    return says(folder, code(0), "bob")


@pytest.mark.parametrize("mode", [0, 0o200, 0o400])
def test_a_mode_without_the_owners_rights_is_refused_too(folder: Path, store: FileStore, mode: int) -> None:
    enrol(folder).chmod(mode)
    with pytest.raises(StoreError, match=r"mode must be 0600|Permission denied"):
        store.read("alice")


@pytest.mark.parametrize("spoil", [_link, _dangling, _pipe, _directory], ids=lambda f: f.__name__)
def test_a_lock_that_is_not_a_file_makes_the_user_unavailable(folder: Path, spoil: Callable[[Path], None]) -> None:
    path = enrol(folder)
    assert says(folder, code(0)) == "code"
    spoil(folder / "alice.lock")
    with pytest.raises(StoreError):
        says(folder, code(1))
    assert counter_of(path) == 1
    assert not (folder / "nowhere").exists()


@pytest.mark.parametrize("mode", [0o400, 0o666, 0o644])
def test_a_lock_file_of_another_mode_is_corrected(folder: Path, mode: int) -> None:
    """The store sets the mode of a lock file, so that its owner can open it and no other account can."""
    enrol(folder)
    assert says(folder, code(0)) == "code"
    (folder / "alice.lock").chmod(mode)
    if os.access(folder / "alice.lock", os.W_OK):
        assert says(folder, code(1)) == "code"
        assert stat.S_IMODE((folder / "alice.lock").stat().st_mode) == 0o600


@as_root
def test_a_file_of_another_account_is_unavailable(folder: Path) -> None:
    path = enrol(folder)
    os.chown(path, 65534, 65534)
    with pytest.raises(StoreError, match="must be owned"):
        says(folder, code(0))
    os.chown(path, 0, 65534)
    assert says(folder, code(0)) == "code", "the group of the file does not matter"
    os.chown(folder / "alice.lock", 65534, 0)
    with pytest.raises(StoreError, match="must be owned"):
        says(folder, code(1))


# ---- invalid folders


@as_root
def test_a_folder_of_another_account_is_unavailable(folder: Path) -> None:
    enrol(folder)
    os.chown(folder, 65534, 65534)
    with pytest.raises(StoreError, match="belongs to uid 65534"):
        says(folder, code(0))


@pytest.mark.parametrize(
    "mode", [0o701, 0o702, 0o704, 0o710, 0o720, 0o740, 0o750, 0o755, 0o777, 0o1777, 0o500, 0o600, 0o300]
)
def test_a_folder_without_mode_0700_is_unavailable(folder: Path, store: FileStore, mode: int) -> None:
    enrol(folder)
    folder.chmod(mode)
    for attempt in (
        lambda: store.read("alice"),
        lambda: says(folder, code(0)),
        lambda: store.update_decoy("zoe"),
        lambda: list(store.users()),
    ):
        with pytest.raises(StoreError, match=r"its mode must be 0700|Permission denied"):
            attempt()
    folder.chmod(0o700)
    assert files(folder) == ["alice.json"]


@pytest.mark.parametrize("kind", ["nothing", "a file", "a dangling link", "a pipe", "no folder above"])
def test_a_path_that_is_not_a_folder_is_unavailable_not_an_unknown_user(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "gone"
    if kind == "a file":
        folder.write_bytes(b"")
    elif kind == "a dangling link":
        folder.symlink_to("nowhere")
    elif kind == "a pipe":
        os.mkfifo(folder)
    elif kind == "no folder above":
        folder = folder / "deeper"
    store = FileStore(str(folder))
    for attempt in (
        lambda: store.read("alice"),
        lambda: says(folder, code(0)),
        lambda: store.update("alice", lambda record: (record, None), create=True),
        lambda: store.update_decoy("zoe"),
        lambda: list(store.users()),
    ):
        with pytest.raises(StoreError, match=str(folder)):
            attempt()


# ---- names

NAMES = {
    "alice": "alice",
    "Alice": "Alice",
    "a.b_c-d@example.org": "a.b_c-d@example.org",
    "..": "%2E.",
    ".": "%2E",
    ".hidden": "%2Ehidden",
    "a.": "a.",
    "../../etc/shadow": "%2E.%2F..%2Fetc%2Fshadow",
    "/etc/shadow": "%2Fetc%2Fshadow",
    "a/b": "a%2Fb",
    "a\0b": "a%00b",
    "a b": "a%20b",
    "a\nb": "a%0Ab",
    "DOMAIN\\alice": "DOMAIN%5Calice",
    "%2E": "%252E",
    "é": "%C3%A9",
    "e\u0301": "e%CC%81",
    "\udcff": "%FF",
    "~": "%7E",
    "a+b$": "a%2Bb%24",
}


@pytest.mark.parametrize("user", NAMES, ids=ascii)
def test_a_users_name_is_one_file_name(user: str) -> None:
    assert file_name(user) == NAMES[user]


@pytest.mark.parametrize("user", [u for u in NAMES if u.isprintable()], ids=ascii)
def test_a_user_of_any_name_is_stored_in_the_folder(tmp_path: Path, folder: Path, store: FileStore, user: str) -> None:
    before = files(tmp_path)
    store.update(user, lambda record: (record.with_token(fob()), None), create=True)
    assert says(folder, code(0), user) == "code"
    assert files(folder) == sorted([f"{NAMES[user]}.json", f"{NAMES[user]}.lock"])
    assert list(store.users()) == [user]
    assert files(tmp_path) == before


@pytest.mark.parametrize("user", [u for u in NAMES if not u.isprintable()], ids=ascii)
def test_an_impossible_user_name_is_not_enrolled_and_leaves_no_trace(folder: Path, store: FileStore, user: str) -> None:
    with pytest.raises(NotThere):
        says(folder, code(0), user)
    assert files(folder) == []
    with pytest.raises((RecordError, StoreError)):
        store.update(user, lambda record: (record, None), create=True)
    assert [name for name in files(folder) if name.endswith(".json")] == []


@pytest.mark.parametrize(
    "user", ["", "x" * 246, "x" * 300, "é" * 41 + "x", "/" * 82, "\ud800", "\udcc3\udca9"], ids=ascii
)
def test_a_user_name_that_cannot_be_a_file_name_is_unavailable(folder: Path, store: FileStore, user: str) -> None:
    for attempt in (
        lambda: store.read(user),
        lambda: says(folder, code(0), user),
        lambda: store.update(user, lambda record: (record, None), create=True),
    ):
        with pytest.raises(StoreError, match="the user name"):
            attempt()
    assert files(folder) == []


@pytest.mark.parametrize("user", ["x" * 245, "é" * 40 + "x" * 5])
def test_the_longest_name_works(folder: Path, store: FileStore, user: str) -> None:
    store.update(user, lambda record: (record.with_token(fob()), None), create=True)
    assert says(folder, code(0), user) == "code"
    assert list(store.users()) == [user]


names = st.text(max_size=30) | st.text("ab./%\0 \udcc3\udca9é", max_size=8)


def _file_name(user: str) -> str | None:
    try:
        return file_name(user)
    except StoreError:
        return None


@given(names)
def test_no_user_name_leaves_the_folder_or_collides_with_other_files(user: str) -> None:
    name = _file_name(user)
    if name is not None:
        assert "/" not in name
        assert "\0" not in name
        assert not name.startswith(".")
        assert name.isascii()
        assert len(f".{name}.json.tmp") <= 255


@given(names, names)
def test_no_two_names_share_a_file(one: str, other: str) -> None:
    if one != other and _file_name(one) is not None:
        assert _file_name(one) != _file_name(other)
        assert f"{_file_name(one)}.json" != f"{_file_name(other)}.lock"


def test_users_are_those_with_a_record(folder: Path, store: FileStore) -> None:
    for user in ("alice", "bob"):
        enrol(folder, user)
        says(folder, code(0), user)
    enrol(folder, "a/b", file="a%2Fb.json")
    (folder / ".carol.json.tmp").write_bytes(b"left behind")
    (folder / "notes.txt").write_bytes(b"")
    (folder / ".hidden.json").write_bytes(b"no name begins with a dot")
    store.update_decoy("zoe")
    assert sorted(store.users()) == ["a/b", "alice", "bob"]
