"""Tests of the file store with a fault at each of its system calls: a kill before the call, or an error from it.

Rules for a fault at any call, from opening the folder to printing the outcome:
- The file holds the old or the new record. A decision that was printed is durable.
- A code that was accepted is never accepted again.
- The next login works, and leaves no temporary file.
The calls are those that strace shows for one login, so the tests follow every change of the store.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pam_totp.store.file import FileStore
from tests.core.stores import code, counter_of, enrol, record_of, says

LOGIN = Path(__file__).with_name("login_once.py")
PYTHON = "/usr/bin/python3"


class Call(NamedTuple):
    """Call number `number` (from 1) of the system call `name` on the store's files. `shown` is strace's line."""

    name: str
    number: int
    shown: str


class Traced:
    """Logins under strace, which traces only the files of the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder.with_name("trace")

    def login(self, answer: str, *inject: str) -> tuple[str, int]:
        """Run `login_once.py` with faults `inject`. Return its standard output and its exit status."""
        paths = [self.folder, *(self.folder / f for f in ("alice.json", "alice.lock", ".alice.json.tmp"))]
        paths.append(self.folder / ".zoe.nobody")
        watched = [word for path in paths for word in ("-P", str(path))]
        command = ["strace", "-f", "-o", str(self.log), *watched, *inject, PYTHON, "-I", "-S", str(LOGIN)]
        done = subprocess.run(
            [*command, str(self.folder), answer], capture_output=True, text=True, timeout=60, check=False
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout.strip(), done.returncode

    def calls(self) -> list[Call]:
        counted: Counter[str] = Counter()
        found = []
        for line in self.log.read_text().splitlines():
            call = re.match(r"\d+ +(\w+)\(", line)
            if call is not None:
                counted[call[1]] += 1
                found.append(Call(call[1], counted[call[1]], line))
        return found


def _can_trace() -> bool:
    try:
        return subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.bare,
    pytest.mark.skipif(not _can_trace(), reason="needs strace, and permission to trace its own processes"),
]


def fresh(folder: Path) -> Path:
    """Reset the store to the record of alice at counter 0, and a lock file. Return the record's path."""
    for name in os.listdir(folder):
        (folder / name).unlink()
    path = enrol(folder, failures=1, failures_at=0)
    (folder / "alice.lock").touch(mode=0o600)
    return path


def calls_of(folder: Path, answer: str) -> list[Call]:
    fresh(folder)
    traced = Traced(folder)
    traced.login(answer)
    found = traced.calls()
    assert {"openat", "fsync", "flock", "close"} <= {call.name for call in found}
    return found


def after(folder: Path, path: Path, said: str, what: object) -> None:
    """Check the rules after a fault in a login with the code of counter 0."""
    record = record_of(path)  # raises an error unless the file holds a whole record
    assert counter_of(path) in (0, 1), what
    if said == "code":
        assert counter_of(path) == 1, f"the decision is durable before it is printed: {what}"
    if counter_of(path) == 1:
        assert says(folder, code(0)) == "replayed", what
    else:
        assert record.failures == 1
        assert says(folder, code(0)) == "code", f"the next login succeeds: {what}"
    assert says(folder, code(1)) == "code", what
    assert sorted(os.listdir(folder)) == ["alice.json", "alice.lock"], what


def _order(calls: list[Call]) -> list[str]:
    """Return the calls that matter for durability, in order, each with its file."""
    names: dict[str, str] = {}  # descriptor: file
    found = []
    for call in calls:
        opened = re.search(r'openat\((?:AT_FDCWD|\d+), "([^"]+)".* = (\d+)$', call.shown)
        about = re.search(r"\((\d+)", call.shown)
        if opened is not None:
            names[opened[2]] = opened[1].rpartition("/")[2]
            found.append(f"open {names[opened[2]]}")
        elif call.name.startswith("rename"):
            found.append("rename")
        elif about is not None and call.name in ("flock", "read", "write", "pread64", "fsync"):
            found.append(f"{call.name} {names[about[1]]}")
    return [entry for i, entry in enumerate(found) if entry != (found[i - 1] if i else None)]


def test_a_decision_is_durable_before_it_is_printed(folder: Path) -> None:
    """The order: lock, read, write a temporary file, read it back, fsync, rename, fsync the folder, and print."""
    assert _order(calls_of(folder, code(0).decode())) == [
        "open store",
        "open alice.lock",
        "flock alice.lock",
        "open alice.json",
        "read alice.json",
        "open .alice.json.tmp",
        "write .alice.json.tmp",
        "pread64 .alice.json.tmp",
        "fsync .alice.json.tmp",
        "rename",
        "fsync store",
    ]


def test_the_work_for_an_unknown_user_syncs_as_often(folder: Path) -> None:
    assert _order(calls_of(folder, "decoy")) == [
        "open store",
        "open .zoe.nobody",
        "flock .zoe.nobody",
        "write .zoe.nobody",
        "pread64 .zoe.nobody",
        "fsync .zoe.nobody",
        "fsync store",
    ]


def test_a_removal_is_durable_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fresh(folder)
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{file}"), path.exists()))
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    FileStore(str(folder)).update("alice", lambda record: (None, None))
    assert synced == [(str(folder), False)]


def test_a_kill_before_any_call_leaves_the_old_or_the_new_record(folder: Path) -> None:
    calls = calls_of(folder, code(0).decode())
    tried = Counter[int]()
    for call in calls:
        path = fresh(folder)
        said, status = Traced(folder).login(
            code(0).decode(), "-e", f"inject={call.name}:signal=KILL:when={call.number}"
        )
        assert status in (137, -9), call
        assert said == "", f"a killed process prints nothing: {call}"
        tried[counter_of(path)] += 1
        after(folder, path, said, call)
    renamed = next(i for i, call in enumerate(calls) if call.name.startswith("rename"))
    assert tried == {0: renamed + 1, 1: len(calls) - renamed - 1}, "only kills after the rename leave the new record"
    assert len(calls) >= 20
    print(f"{len(calls)} points tried")


def test_a_kill_before_any_call_counts_a_wrong_answer_at_most_once(folder: Path) -> None:
    for call in calls_of(folder, "000000"):
        path = fresh(folder)
        said, _ = Traced(folder).login("000000", "-e", f"inject={call.name}:signal=KILL:when={call.number}")
        assert said == "", call
        assert record_of(path).failures in (1, 2), call
        assert says(folder, code(0)) == "code", call
        assert sorted(os.listdir(folder)) == ["alice.json", "alice.lock"], call


FAILURES = [
    *(("openat", e) for e in ("EIO", "EMFILE", "ENOSPC", "EACCES", "EROFS", "EINTR")),
    *((call, e) for call in ("fstat", "newfstatat") for e in ("EIO", "EACCES")),  # libc uses one of these two calls
    *(("flock", e) for e in ("ENOLCK", "EIO", "EINTR")),
    *(("unlinkat", e) for e in ("EIO", "EROFS")),
    *(("read", e) for e in ("EIO", "EINTR", "EISDIR")),
    *(("fchmod", e) for e in ("EPERM", "EIO", "EINTR")),
    *(("write", e) for e in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EINTR")),
    *(("ftruncate", e) for e in ("EIO", "EINTR")),
    *(("pread64", e) for e in ("EIO", "EINTR")),
    *(("fsync", e) for e in ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EROFS")),
    *(("renameat", e) for e in ("EIO", "ENOSPC", "EACCES", "EXDEV")),
    ("close", "EIO"),
]


def _failures(folder: Path, answer: str) -> Iterator[tuple[Call, str]]:
    calls = calls_of(folder, answer)
    names = {call.name for call in calls}
    assert names | {"fstat", "newfstatat"} == {name for name, _ in FAILURES}, (
        "FAILURES lists every call of the store, and no other"
    )
    for call in calls:
        for name, error in FAILURES:
            if name == call.name:
                yield call, error


def test_after_a_failed_call_it_refuses_or_retries(folder: Path) -> None:
    tried = 0
    for call, error in _failures(folder, code(0).decode()):
        path = fresh(folder)
        said, _ = Traced(folder).login(code(0).decode(), "-e", f"inject={call.name}:error={error}:when={call.number}")
        tried += 1
        if said != "code":
            assert said.startswith("unavailable: "), (call, error, said)
            assert os.strerror(getattr(errno, error)) in said, (call, error, said)
            left = set(os.listdir(folder)) - {"alice.json", "alice.lock"}
            assert not left, f"a refused login removes its temporary file: {call} {error}"
        elif error != "EINTR":
            assert call.name == "close" or "ENOENT" in call.shown, (call, error)
        after(folder, path, said, (call, error))
    assert tried >= 60


def test_a_kill_or_failure_in_decoy_work_leaves_no_lasting_file(folder: Path) -> None:
    names = {name for name, _ in FAILURES} | {"fcntl", "utimensat"}
    for call in calls_of(folder, "decoy"):
        assert call.name in names
        for fault in ("signal=KILL", "error=EIO"):
            fresh(folder)
            said, _ = Traced(folder).login("decoy", "-e", f"inject={call.name}:{fault}:when={call.number}")
            if fault == "error=EIO":
                stays = call.name == "unlinkat"
                assert stays or said.startswith("unavailable: "), call
                assert set(os.listdir(folder)) - {"alice.json", "alice.lock"} == ({".zoe.nobody"} if stays else set())
            FileStore(str(folder)).update_decoy("zoe")
            assert set(os.listdir(folder)) == {"alice.json", "alice.lock"}, call


@pytest.mark.parametrize(
    ("inject", "said"),
    [
        ("write:retval=1", "the data just written cannot be read back"),  # write reports success and writes nothing
        ("write:retval=100", "the data just written cannot be read back"),
        ("write:retval=0", "the file system accepts no more data"),
        ("ftruncate:retval=0", "the data just written cannot be read back"),
        ("pread64:retval=0", "the data just written cannot be read back"),
        ("pread64:retval=5", "the data just written cannot be read back"),
        ("read:retval=0", "empty"),
        ("read:retval=5", "alice.json: "),
    ],
)
def test_an_incomplete_file_is_never_renamed_over_the_record(folder: Path, inject: str, said: str) -> None:
    path = fresh(folder)
    before = path.read_bytes()
    answered, _ = Traced(folder).login(code(0).decode(), "-e", f"inject={inject}:when=1")
    assert answered.startswith("unavailable: ")
    assert said in answered
    assert path.read_bytes() == before
    assert set(os.listdir(folder)) == {"alice.json", "alice.lock"}
    after(folder, path, answered, inject)


def test_on_a_full_disk_every_answer_of_every_user_is_unavailable(
    folder: Path,
) -> None:
    """With a limit on the file size, a write stores a part and then fails, as on a full disk."""
    path = fresh(folder)
    assert says(folder, code(0)) == "code"
    before = path.read_bytes()
    limit = (100, 100)  # bytes
    answers = [code(1), code(1, 2), code(0), b"000000", b"ZZZZZZZZZZZZZZZZ", b"decoy"]
    for answer in answers:
        done = subprocess.run(
            [PYTHON, "-I", "-S", str(LOGIN), str(folder), answer.decode()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
        )
        assert done.stdout == f"unavailable: {folder}: File too large\n", answer
    assert path.read_bytes() == before
    assert set(os.listdir(folder)) == {"alice.json", "alice.lock"}
    assert says(folder, code(1)) == "code"


def test_short_reads_and_writes_are_continued(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fresh(folder)
    read, write = os.read, os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "read", lambda file, size: read(file, min(size, 7)))
        patched.setattr(os, "write", lambda file, data: write(file, data[:7]))
        assert says(folder, code(0)) == "code"
    assert counter_of(path) == 1
