"""Tests of the file store with a fault at each of its system calls: a kill before the call, or an error of the call.

The rules for every call, from the open of the folder to the printed outcome:
- The record is the old or the new record, and a printed outcome is durable.
- An accepted code is never accepted again.
- The next login succeeds, and a change of keys leaves no temporary file.
strace lists the calls of each change, so the list remains complete if the code of the store changes.
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

from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.core.slots import decode
from pam_totp.store import NotThere
from pam_totp.store.decoys import FOLDER as DECOYS
from pam_totp.store.file import FileStore
from tests.core.login_once import CHANGES
from tests.core.stores import code, enrol, enrol_1, log_in

LOGIN = Path(__file__).with_name("login_once.py")
PYTHON = "/usr/bin/python3"
RIGHT = code(0).decode()


class Call(NamedTuple):
    """Call number `number` (from 1) of the system call `name` on the store's files.

    `line` is the line that strace prints.
    """

    name: str
    number: int
    line: str


class Program:
    """The program login_once.py, which performs each change in a new process."""

    def __init__(self) -> None:
        self._program = subprocess.Popen(
            [PYTHON, "-I", "-S", LOGIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def _say(self, line: str) -> None:
        assert self._program.stdin is not None
        self._program.stdin.write(f"{line}\n")
        self._program.stdin.flush()

    def start(self, folder: Path, word: str) -> int:
        """Start the process of the change `word`, and return the process ID. The process waits for a call of `end`."""
        assert self._program.stdout is not None
        self._say(f"{folder}\t{word}")
        return int(self._program.stdout.readline())

    def end(self) -> tuple[str, int]:
        """Let the process perform its change. Return the text on standard output and the exit status."""
        assert self._program.stdout is not None
        self._say("")
        printed = ""
        while not (line := self._program.stdout.readline()).startswith("exit "):
            assert line, "login_once.py ended"
            printed += line
        assert "Traceback" not in printed, printed
        return printed.strip(), int(line.removeprefix("exit "))

    def close(self) -> None:
        self._program.communicate(timeout=60)


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    made = Program()
    yield made
    made.close()


class Traced:
    """A change under strace, which traces only the files of the store."""

    def __init__(self, folder: Path, program: Program) -> None:
        self.folder = folder
        self.log = folder.with_name("trace")
        self._program = program

    def run(self, word: str, *inject: str) -> tuple[str, int]:
        """Perform the change `word` under strace with `inject`. Return the standard output and the exit status."""
        names = ["alice.record", ".alice.record", "alice.json", "alice.lock", ".lock"]
        names += [f"{DECOYS}/{n:02}" for n in range(64)]
        watched = [
            word for path in (self.folder, *(self.folder / name for name in names)) for word in ("-P", str(path))
        ]
        pid = self._program.start(self.folder, word)
        command = ["strace", "-f", "-p", str(pid), "-o", str(self.log), *watched, *inject]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            attached = strace.stderr.readline()
            assert attached.rstrip().endswith(" attached"), attached
            ended = self._program.end()
            strace.communicate(timeout=60)
        return ended

    def fault(self, word: str, call: Call, what: str) -> tuple[str, int]:
        """Run with the fault `what` at `call`. Trace the calls of this name only. Return the results of `run`."""
        only = ("-e", f"trace={call.name}", "-e", f"inject={call.name}:{what}:when={call.number}")
        return self.run(word, *only)

    def calls(self) -> list[Call]:
        counted: Counter[str] = Counter()
        found = []
        for line in self.log.read_text().splitlines():
            call = re.match(r"\d+ +(\w+)\(", line)
            if call is not None:
                counted[call[1]] += 1
                found.append(Call(call[1], counted[call[1]], line))
        return found


@pytest.fixture
def traced(folder: Path, program: Program) -> Traced:
    return Traced(folder, program)


def can_trace() -> bool:
    try:
        return subprocess.run(["strace", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.bare,
    pytest.mark.skipif(not can_trace(), reason="requires strace, and permission to trace its own processes"),
]

STATES = ["used", "new", "version 1"]  # two documents, a document and an empty slot, or version 1


def fresh(folder: Path, state: str = "used") -> None:
    """Delete all except the lock file and the decoys. Enrol alice with counter 0 and one failure, in a file of `state`.

    Enrol no user if `state` is `nothing`.
    """
    FileStore(str(folder)).prepare()
    for name in set(os.listdir(folder)) - {".lock", DECOYS}:
        (folder / name).unlink()
    if state == "version 1":
        enrol_1(folder, failures=1, failures_at=0)
    elif state != "nothing":
        path = enrol(folder, failures=1, failures_at=0, refused=5)
    if state == "used":
        data, slots = path.read_bytes(), decode(path.read_bytes())
        path.write_bytes(data[: slots.size] + slots.next(slots.document)[1])


def calls_of(traced: Traced, word: str, state: str = "used") -> list[Call]:
    fresh(traced.folder, state)
    printed, status = traced.run(word)
    assert status == 0 and not printed.startswith("unavailable"), printed
    found = traced.calls()
    assert {"openat", "fcntl", "close"} <= {call.name for call in found}
    return found


def record(folder: Path) -> UserRecord | None:
    try:
        return FileStore(str(folder)).read("alice")
    except NotThere:
        return None


def counter(folder: Path) -> int:
    found = record(folder)
    assert found is not None
    token = found.tokens[0]
    assert isinstance(token, HotpToken)
    return token.counter


def after(folder: Path, printed: str, what: object) -> None:
    """Check the rules after a fault in a login with the code of counter 0."""
    assert counter(folder) in (0, 1), what
    if printed == "code":
        assert counter(folder) == 1, f"the outcome was printed before it was durable: {what}"
    if counter(folder) == 1:
        assert log_in(folder, code(0)) == "replayed", what
    else:
        found = record(folder)
        assert found is not None
        assert found.failures == 1
        assert log_in(folder, code(0)) == "code", f"the next login fails: {what}"
    assert log_in(folder, code(1)) == "code", what
    sizes = {name: (folder / name).stat().st_size for name in os.listdir(folder) if name not in (".lock", DECOYS)}
    assert sizes in ({"alice.record": 8192}, {"alice.record": 8192, "alice.json": 0}), what


def _order(calls: list[Call]) -> list[str]:
    """Return the calls that open, lock, read, write, link, rename or unlink files, in their order."""
    names: dict[str, str] = {}  # descriptor: file
    found = []
    for call in calls:
        opened = re.search(r'openat\((?:AT_FDCWD|\d+), "([^"]+)".* = (\d+)$', call.line)
        about = re.search(r"\((\d+)", call.line)
        if opened is not None:
            name = re.sub(r".*/store(/|$)", "", opened[1]) or "store"
            names[opened[2]] = re.sub(r"\.decoy/\d\d", "a decoy", name)
            found.append(f"open {names[opened[2]]}")
        elif call.name.startswith(("rename", "link", "unlink")):
            found.append(f"{call.name.removesuffix('at')}")
        elif about is not None and call.name in (
            "fcntl",
            "pread64",
            "write",
            "pwritev2",
            "pwrite64",
            "fsync",
            "fdatasync",
        ):
            found.append(f"{call.name} {names[about[1]]}")
    return found


# ---- the order of the calls


def test_a_login_is_one_write_that_is_durable_when_it_returns(traced: Traced) -> None:
    calls = calls_of(traced, RIGHT)
    assert _order(calls) == [
        "open store",
        "open .lock",
        "fcntl .lock",
        "open alice.record",
        "pread64 alice.record",
        "open alice.record",
        "pwritev2 alice.record",
    ]
    assert [call.line.endswith("RWF_DSYNC) = 4096") for call in calls if call.name == "pwritev2"] == [True]


def test_an_unknown_user_causes_the_same_calls_as_a_login(traced: Traced) -> None:
    decoy = [line.replace("a decoy", "alice.record") for line in _order(calls_of(traced, "decoy"))]
    assert decoy == _order(calls_of(traced, RIGHT))
    assert decoy == _order(calls_of(traced, "000000")), "a wrong code causes the same calls"


def test_file_and_name_are_durable_before_the_second_slot_is_filled(traced: Traced) -> None:
    order = _order(calls_of(traced, RIGHT, "new"))
    assert [line for line in order if not line.startswith("unlink")][-4:] == [
        "open alice.record",
        "fsync alice.record",
        "fsync store",
        "pwritev2 alice.record",
    ]


def test_a_file_is_durable_before_it_gets_its_name(traced: Traced) -> None:
    created = [line for line in _order(calls_of(traced, "add", "nothing")) if not line.startswith("unlink")]
    assert created[-5:] == ["open .alice.record", "write .alice.record", "fsync .alice.record", "link", "fsync store"]
    grown = [line for line in _order(calls_of(traced, "grow")) if not line.startswith("unlink")]
    assert grown[-5:] == ["open .alice.record", "write .alice.record", "fsync .alice.record", "rename", "fsync store"]


def test_a_removal_is_durable_too(traced: Traced) -> None:
    assert _order(calls_of(traced, "remove"))[-2:] == ["unlink", "fsync store"]


def test_without_rwf_dsync_the_write_is_flushed_before_and_after(folder: Path, traced: Traced) -> None:
    fresh(folder)
    printed, _ = traced.run(RIGHT, "-e", "inject=pwritev2:error=EOPNOTSUPP")
    assert printed == "code"
    assert _order(traced.calls())[-4:] == [
        "pwritev2 alice.record",
        "fdatasync alice.record",
        "pwrite64 alice.record",
        "fdatasync alice.record",
    ]
    after(folder, printed, "without RWF_DSYNC")


# ---- kills


@pytest.mark.parametrize("state", STATES)
def test_a_kill_before_any_call_leaves_the_old_or_the_new_record(folder: Path, traced: Traced, state: str) -> None:
    calls = calls_of(traced, RIGHT, state)
    counters = Counter[int]()
    for call in calls:
        fresh(folder, state)
        printed, status = traced.fault(RIGHT, call, "signal=KILL")
        assert status in (137, -9), call
        assert printed == "", f"a killed process printed an outcome: {call}"
        counters[counter(folder)] += 1
        after(folder, printed, call)
    done = "link" if state == "version 1" else "pwritev2"
    changed = next(i for i, call in enumerate(calls) if call.name.startswith(done))
    assert counters == {0: changed + 1, 1: len(calls) - changed - 1}, f"the new record exists after the {done}"
    assert len(calls) >= 16
    print(f"{len(calls)} kills")


@pytest.mark.parametrize("state", STATES)
def test_a_kill_before_any_call_counts_a_wrong_answer_at_most_once(folder: Path, traced: Traced, state: str) -> None:
    for call in calls_of(traced, "000000", state):
        fresh(folder, state)
        printed, _ = traced.fault("000000", call, "signal=KILL")
        assert printed == "", call
        found = record(folder)
        assert found is not None
        assert found.failures in (1, 2), call
        assert log_in(folder, code(0)) == "code", call


@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_in_a_change_of_keys_leaves_the_old_or_the_new_record(folder: Path, traced: Traced, change: str) -> None:
    state = "nothing" if change == "add" else "used"
    for call in calls_of(traced, change, state):
        fresh(folder, state)
        before = record(folder)
        expected = CHANGES[change](before or UserRecord(user="alice"))
        printed, _ = traced.fault(change, call, "signal=KILL")
        assert printed == "", call
        assert record(folder) in (before, expected), call
        store = FileStore(str(folder))
        store.update("alice", lambda found: (found.unlocked(), None), create=True)
        store.update("alice", lambda found: (None, None))
        assert sorted(os.listdir(folder)) == [DECOYS, ".lock"], call


# ---- errors

ERRORS = [
    *(("openat", e) for e in ("EIO", "EMFILE", "ENOSPC", "EACCES", "EROFS", "EINTR")),
    *((call, e) for call in ("fstat", "newfstatat") for e in ("EIO", "EACCES")),  # libc uses one of these calls
    *((call, e) for call in ("fcntl", "flock") for e in ("ENOLCK", "EIO", "EINTR")),
    *(("unlinkat", e) for e in ("EIO", "EROFS")),
    *(("pread64", e) for e in ("EIO", "EINTR", "EISDIR")),
    *(("fchmod", e) for e in ("EPERM", "EIO", "EINTR")),
    *(("write", e) for e in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EINTR")),
    *(("pwritev2", e) for e in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EINTR", "EROFS")),
    *(("fsync", e) for e in ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EROFS")),
    *(("linkat", e) for e in ("EIO", "ENOSPC", "EACCES", "EXDEV", "EMLINK")),
    ("close", "EIO"),
]


@pytest.mark.parametrize("state", STATES)
def test_after_a_failed_call_a_login_is_refused_or_the_call_is_retried(
    folder: Path, traced: Traced, state: str
) -> None:
    calls = calls_of(traced, RIGHT, state)
    assert {call.name for call in calls} <= {name for name, _ in ERRORS}, "ERRORS must contain every call of the store"
    tried = 0
    for call, error in ((call, error) for call in calls for name, error in ERRORS if name == call.name):
        fresh(folder, state)
        printed, _ = traced.fault(RIGHT, call, f"error={error}")
        tried += 1
        if printed != "code":
            assert printed.startswith("unavailable: "), (call, error, printed)
            assert os.strerror(getattr(errno, error)) in printed, (call, error, printed)
        elif error != "EINTR":
            assert call.name == "close" or "ENOENT" in call.line, (call, error)
        after(folder, printed, (call, error))
    assert tried >= 30


def test_a_kill_or_an_error_in_decoy_work_leaves_the_decoys_valid(folder: Path, traced: Traced) -> None:
    for call in calls_of(traced, "decoy"):
        assert call.name in {name for name, _ in ERRORS}
        for fault in ("signal=KILL", "error=EIO"):
            printed, _ = traced.fault("decoy", call, fault)
            if fault == "error=EIO":
                assert call.name == "close" or printed.startswith("unavailable: "), call
            assert all(decode(path.read_bytes()).document for path in (folder / DECOYS).iterdir())
            FileStore(str(folder)).update_decoy("zoe", int)
    assert sorted(os.listdir(folder)) == [DECOYS, ".lock", "alice.record"]


@pytest.mark.parametrize(
    ("inject", "state", "message"),
    [
        # `retval` makes strace skip the call and return this number of bytes.
        ("pwritev2:retval=1", "used", "the file system wrote only a part of a slot"),
        ("pwritev2:retval=100", "used", "the file system wrote only a part of a slot"),
        ("pwritev2:retval=0", "new", "the file system wrote only a part of a slot"),
        ("write:retval=100", "version 1", "No space left on device"),
        ("pread64:retval=0", "used", "alice.record: must not be empty"),
        ("pread64:retval=5", "used", "must be two slots"),
    ],
)
def test_an_incomplete_write_or_read_refuses(
    folder: Path, traced: Traced, inject: str, state: str, message: str
) -> None:
    fresh(folder, state)
    printed, _ = traced.run(RIGHT, "-e", f"inject={inject}")
    assert printed.startswith("unavailable: ")
    assert message in printed
    assert counter(folder) == 0
    after(folder, printed, inject)


@pytest.mark.parametrize("state", ["used", "new"])
def test_a_slot_that_was_written_in_part_is_emptied(folder: Path, program: Program, state: str) -> None:
    """The kernel writes only a part of a slot because of a limit on the file size, as after a disk error."""
    for limit in (0, 1, 100, 4095, 4096, 4097, 5000, 8191):
        for answer in (RIGHT, "000000", code(0, 2).decode()):
            fresh(folder, state)
            before = record(folder)
            resource.prlimit(program.start(folder, answer), resource.RLIMIT_FSIZE, (limit, limit))
            printed, status = program.end()
            assert status == 0
            if printed.startswith("unavailable: "):
                assert record(folder) == before
            else:
                assert (limit, state) >= (4096, "used"), printed
            assert log_in(folder, code(0)) in ("code", "replayed")
