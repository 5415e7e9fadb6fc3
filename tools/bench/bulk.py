"""The time and memory of commands that read all users, with a large store and with a tenth of its users.

Rule: a small launcher process starts the measured command. A command inherits the memory peak of its parent, and the
peak of this process is too large.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pam_totp.store.file import FileStore
from tests.support.site import MODULE, TREE

LAUNCHER = """
import json, os, sys, time
begun = time.perf_counter()
null = os.open(os.devnull, os.O_RDWR)
actions = [(os.POSIX_SPAWN_DUP2, null, to) for to in range(3)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions)
_, status, usage = os.wait4(child, 0)
took = time.perf_counter() - begun, usage.ru_utime + usage.ru_stime
print(json.dumps([*took, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)]))
"""
SERVICE = "bulk"
LIMIT = 20.0  # seconds
LOOKUP_LIMIT = 0.05  # seconds
LOOKUPS = 1000


class Says(Protocol):
    """A report: `say` prints and stores one result."""

    def say(self, what: str, result: str, target: str = "", **data: Any) -> None: ...


@dataclass(frozen=True)
class Run:
    """The cost of a command, and its exit status.

    `processor` is in seconds of processor time, `megabytes` is the memory peak in units of 2^20 bytes.
    """

    seconds: float
    processor: float
    megabytes: float
    status: int


def run(*words: str | Path) -> Run:
    """Run `pam-totp` with the arguments `words`, discard the output, and return the cost."""
    launcher = [sys.executable, "-I", "-S", "-c", LAUNCHER]
    command = [sys.executable, "-m", "pam_totp.cli", *map(str, words)]
    done = subprocess.run([*launcher, *command], cwd=TREE, capture_output=True, check=True, text=True)
    return Run(*json.loads(done.stdout))


def commands(report: Says, store: Path, users: int, folder: Path) -> None:
    """Measure all commands on `store`, which has `users` users (user0, user1, ...). /etc/pam.d must be private."""
    sizes = (users // 10, users)
    tenth = folder / "tenth"
    tenth.mkdir(mode=0o700)
    for i in range(sizes[0]):
        shutil.copy2(store / f"user{i}.record", tenth / f"user{i}.record")
    results: dict[str, list[Run]] = {}
    for size, place in zip(sizes, (tenth, store), strict=True):
        for name, words in _commands(place, size, folder):
            done = run(*words)
            results.setdefault(name, []).append(done)
            result = f"{done.seconds:.1f} s ({done.processor:.1f} s CPU), {done.megabytes:.1f} MB, exit {done.status}"
            target = f"under {LIMIT:.0f} s" if size == users else ""
            report.say(f"{name}, {size:,} users", result, target, **vars(done))
    for name, (few, many) in results.items():
        each = (many.megabytes - few.megabytes) * 1024 * 1024 / (sizes[1] - sizes[0])
        ratio, busy = many.seconds / few.seconds, many.processor / few.processor
        result = f"{ratio:.1f} × the time ({busy:.1f} × CPU), {each:.0f} bytes per user"
        report.say(f"{name}: ten times the users", result, "at most 10 ×", ratio=ratio, busy=busy, bytes_a_user=each)
    lookups(report, {size: _numbered(size, folder) for size in sizes})


def lookups(report: Says, stores: Mapping[int, Path]) -> None:
    """Measure look-ups of existing and unknown serial numbers. `stores` maps numbers of users to stores.

    `enroll`, `import` and `list --serial` make the same look-ups in their own process.
    """
    for what, prefix in (("a serial number", "SN"), ("an unknown serial number", "XX")):
        medians = []
        for users, folder in stores.items():
            store, seconds, began = FileStore(str(folder)), [], time.process_time()
            for number in random.Random(0).choices(range(users), k=LOOKUPS):
                begun = time.perf_counter()
                owner = store.owner_of_serial(f"{prefix}{number}")
                seconds.append(time.perf_counter() - begun)
                assert owner == (f"user{number}" if prefix == "SN" else None)
            processor = (time.process_time() - began) / LOOKUPS
            medians.append(statistics.median(seconds))
            result = f"{1e6 * medians[-1]:.0f} µs, at most {1e6 * max(seconds):.0f} µs ({1e6 * processor:.0f} µs CPU)"
            target = f"under {1000 * LOOKUP_LIMIT:.0f} ms"
            more = {"seconds": medians[-1], "longest": max(seconds), "processor": processor}
            report.say(f"look-up of {what} of {users:,}", result, target, **more)
        ratio = medians[-1] / medians[0]
        report.say(f"look-up of {what}: ten times the users", f"{ratio:.1f} × the time", ratio=ratio)


def _commands(store: Path, users: int, folder: Path) -> Iterator[tuple[str, Sequence[str | Path]]]:
    yield "list", ["list", "--store", store]
    yield "list --json", ["list", "--json", "--store", store]
    yield (
        "export of one user",
        ["export", "user0", "--format", "json", "--output", folder / f"{users}", "--store", store],
    )
    Path(f"/etc/pam.d/{SERVICE}").write_text(f"auth required {MODULE} store={store} socket=none\n")
    yield "doctor", ["doctor", SERVICE]
    file = folder / f"{users}.oath"
    with open(file, "w", encoding="ascii") as lines:
        lines.writelines(f"HOTP\tuser{i}\t-\t{i + 1:040x}\n" for i in range(users))
    yield "import --dry-run", ["import", "users-oath", file, "--store", store, "--dry-run"]
    for name, more in (("import", []), ("import --json", ["--json"])):
        empty = folder / f"{users}{name.replace(' ', '')}"
        empty.mkdir(mode=0o700)
        yield name, ["import", "users-oath", file, "--store", empty, *more]
    table, numbered = folder / f"{users}.csv", _numbered(users, folder)
    with open(table, "w", encoding="ascii") as lines:
        lines.write("serial,user,key,type\n")
        lines.writelines(f"SN{i},user{i},{i + 1:040x},hotp\n" for i in range(users))
    numbered.mkdir(mode=0o700)
    yield "import with serial numbers", ["import", "csv", table, "--yes", "--store", numbered]
    yield "list --serial", ["list", "--serial", f"sn-{users // 2}", "--store", numbered]
    yield "list --serial, unknown number", ["list", "--serial", "XX", "--store", numbered]
    Path(f"/etc/pam.d/{SERVICE}").write_text(f"auth required {MODULE} store={numbered} socket=none\n")
    yield "doctor with serial numbers", ["doctor", SERVICE]


def _numbered(users: int, folder: Path) -> Path:
    """Return the folder of a store whose tokens all have serial numbers."""
    return folder / f"{users}numbered"
