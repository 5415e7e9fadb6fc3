"""`make bench-database`: a benchmark of a large and a small store in PostgreSQL, in the same run.

The program creates a primary with a synchronous standby on this machine, and a small and a large database. By default,
the large database has a million users. Every user has a key fob with a serial number. The program prints the results,
and writes them to bench-database.json. ARGS=--help lists the options. Root is required.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pam_totp.core.answer import Answer
from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.operations.authenticate import decide
from pam_totp.store import clock_of
from pam_totp.store.postgres import PostgresStore, initialise
from pam_totp.store.postgres_schema import SYNCHRONOUS
from tests.support.cluster import Server, replicated
from tests.support.site import KEY, MODULE, TREE
from tools.bench import bulk
from tools.bench.__main__ import Report, centiles, enter_namespace, ms, private_etc

SMALL, LARGE = "small", "large"
AT_ONCE = 100_000  # users in one transaction
THREADS = (1, 2, 4, 8, 16, 32, 64)
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "min_wal_size": "1GB",
    "wal_keep_size": "1GB",
    "wal_compression": "on",
    "autovacuum": "on",
}
POLICY = Policy()
LOCAL = "-c synchronous_commit=local"  # options of a session that waits for no standby
COMMANDS = "bulk"  # the PAM service that doctor checks


class Usage(NamedTuple):
    """The resources used by the primary: bytes and full pages of its log, processor seconds by process, table scans."""

    wal: int
    pages: int
    processor: dict[str, float]
    scans: int


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-database", description=__doc__)
    parser.add_argument("--users", type=int, default=1_000_000, help="users of the large database (%(default)s)")
    parser.add_argument("--few", type=int, default=10_000, help="users of the small database (%(default)s)")
    parser.add_argument("--more", type=int, default=100_000, help="users that are imported last (%(default)s)")
    parser.add_argument("--logins", type=int, default=2000, help="logins of each measurement (%(default)s)")
    args = parser.parse_args()
    if not enter_namespace("bench-database", "tools.bench.database"):
        return 3
    tempfile.tempdir = "/var/tmp"  # noqa: S108  the parent of temporary folders, on the disk
    report = Report()
    with replicated(SETTINGS) as (primary, _), tempfile.TemporaryDirectory() as folder, private_etc(Path(folder)):
        measure(report, primary, args, Path(folder))
    report.write(TREE / "bench-database.json")
    return 0


def measure(report: Report, primary: Server, args: argparse.Namespace, folder: Path) -> None:
    urls = {name: f"postgresql://owner@/{name}?host={primary.folder}" for name in (SMALL, LARGE)}
    for (name, url), users in zip(urls.items(), (args.few, args.users), strict=True):
        report.section(f"{name} database: {users:,} users")
        primary.sql(f"CREATE DATABASE {name}")
        initialise(url, SYNCHRONOUS)
        fill(report, url, users)
        sizes(report, primary, name, users)
    report.section(f"logins, {args.users:,} users beside {args.few:,}")
    queues = {name: Users(users) for name, users in ((SMALL, args.few), (LARGE, args.users))}
    single(report, urls, queues, args.logins)
    costs(report, primary, urls[LARGE], queues[LARGE], args.logins)
    for pool in (4, 16):
        many(report, urls[LARGE], queues[LARGE], args.logins, pool)
    report.section(f"commands, {args.users:,} users")
    commands(report, urls, args, folder)


class Users:
    """The users of a database in a random order, with the counter of the next code. Users repeat after the last."""

    def __init__(self, number: int) -> None:
        self._numbers = random.Random(0).sample(range(number), min(number, 200_000))
        self._lock = threading.Lock()
        self._next = 0

    def take(self) -> tuple[str, int]:
        """Return a pair of user and counter that no earlier call returned."""
        with self._lock:
            at, self._next = self._next, self._next + 1
        return f"user{self._numbers[at % len(self._numbers)]}", at // len(self._numbers)


def record_of(number: int) -> UserRecord:
    token = HotpToken(name="token", secret=KEY, created=0, serial=f"SN{number:08d}")
    return UserRecord(user=f"user{number}", tokens=(token,))


def fill(report: Report, url: str, users: int) -> None:
    """Enrol `users` users, AT_ONCE in each transaction."""
    store, begun = PostgresStore(url, wait=600.0), time.perf_counter()
    for first in range(0, users, AT_ONCE):
        numbers = range(first, min(first + AT_ONCE, users))
        store.update_many([(f"user{n}", lambda _, n=n: (record_of(n), None)) for n in numbers])  # type: ignore[misc]
        print(f"   ({numbers.stop:,} users …)", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - begun
    report.say("enrolled by update_many", f"{seconds:.1f} s, {users / seconds:,.0f} users a second", seconds=seconds)


def sizes(report: Report, primary: Server, name: str, users: int) -> None:
    size = int(sql(primary, name, f"SELECT pg_database_size('{name}')"))
    report.say("size of the database", f"{size / 1e6:,.0f} MB, {size / users:,.0f} bytes a user", bytes=size)
    for table in ("record", "serial"):
        size = int(sql(primary, name, f"SELECT pg_total_relation_size('pam_totp.{table}')"))
        report.say(f"table {table}, with its index", f"{size / 1e6:,.0f} MB", bytes=size)


def sql(primary: Server, name: str, statement: str) -> str:
    """Run a statement in the database `name`, and return the output of psql."""
    psql = ("psql", "-h", str(primary.folder), "-U", "owner", "-d", name, "-Atc", statement)
    done = subprocess.run(psql, check=True, capture_output=True, text=True, env=os.environ | {"PGOPTIONS": LOCAL})
    return done.stdout.strip()


def log_in(store: PostgresStore, user: str, counter: int) -> float:
    """Log in, and return the time in seconds."""
    answer = Answer.parse(hotp(KEY, counter).encode())
    begun = time.perf_counter()
    outcome = decide(store, user, answer, POLICY, clock_of(store, lambda: 0)).outcome
    took = time.perf_counter() - begun
    if outcome.value != "code":
        raise RuntimeError(f"{user}: {outcome.value}")
    return took


def single(report: Report, urls: dict[str, str], users: dict[str, Users], logins: int) -> None:
    """Measure single logins, which use both databases alternately."""
    stores = {name: PostgresStore(url, wait=60.0) for name, url in urls.items()}
    times: dict[str, list[float]] = {name: [] for name in urls}
    for name in urls:
        log_in(stores[name], *users[name].take())  # connects
    for _ in range(logins // 50):
        for name in urls:
            times[name] += [log_in(stores[name], *users[name].take()) for _ in range(50)]
    middle, last = {}, {}
    for name, values in times.items():
        middle[name], last[name] = centiles(values)
        result = f"p50 {ms(middle[name])}, p99 {ms(last[name])}"
        report.say(f"one thread, {name} database", result, p50=middle[name], p99=last[name])
    ratio = middle[LARGE] / middle[SMALL], last[LARGE] / last[SMALL]
    report.say("large / small", f"p50 {ratio[0]:.2f}, p99 {ratio[1]:.2f}", "at most 1.2", p50=ratio[0], p99=ratio[1])
    lookups = []
    for _ in range(1000):
        serial = record_of(int(users[LARGE].take()[0].removeprefix("user"))).tokens[0].serial
        begun = time.perf_counter()
        if serial is None or stores[LARGE].owner_of_serial(serial) is None:
            raise RuntimeError(f"{serial}: not found")
        lookups.append(time.perf_counter() - begun)
    p50, p99 = centiles(lookups)
    report.say("owner of a serial number", f"p50 {ms(p50)}, p99 {ms(p99)}", "at most 50 ms", p50=p50, p99=p99)


def usage(primary: Server) -> Usage:
    wal, pages = sql(primary, LARGE, "SELECT wal_bytes, wal_fpi FROM pg_stat_wal").split("|")
    scans = sql(primary, LARGE, "SELECT sum(seq_scan) FROM pg_stat_user_tables WHERE relname <> 'store'")
    return Usage(int(wal), int(pages), processor(primary), int(scans))


def processor(server: Server) -> dict[str, float]:
    """Return the processor seconds of each running process of a server."""
    seconds = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            pid, _, rest = path.read_text().partition(" (")
            fields = rest.rpartition(") ")[2].split()
            if str(server.pid) in (pid, fields[1]):
                seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def costs(report: Report, primary: Server, url: str, users: Users, logins: int) -> None:
    """Measure the costs of a login: the first login of a user after a checkpoint, and the next login."""
    store = PostgresStore(url, wait=60.0)
    chosen = [users.take() for _ in range(logins)]
    sql(primary, LARGE, "VACUUM ANALYZE")
    sql(primary, LARGE, "CHECKPOINT")
    for number, when in enumerate(("the first after a checkpoint", "the next")):
        before, own = usage(primary), time.process_time()
        for user, counter in chosen:
            log_in(store, user, counter + number)
        own = time.process_time() - own
        time.sleep(1.0)  # a session reports its statistics after a statement, at most once a second
        log_in(store, *users.take())
        after = usage(primary)
        wal, pages = (after.wal - before.wal) / logins, (after.pages - before.pages) / logins
        server = sum(now - before.processor.get(pid, 0.0) for pid, now in after.processor.items()) / logins
        result = f"{wal:,.0f} bytes, {pages:.2f} full pages"
        report.say(f"log of one login, {when}", result, wal=wal, pages=pages)
        result = f"{1e6 * own / logins:.0f} µs here, {1e6 * server:.0f} µs in the primary"
        report.say(f"processor time of one login, {when}", result, client=own / logins, server=server)
        report.say("scans of whole tables meanwhile", f"{after.scans - before.scans}", "none", scans=after.scans)


def many(report: Report, url: str, users: Users, logins: int, pool: int) -> None:
    """Measure logins by many threads of one process, as in an authority."""
    rates = {}
    for threads in THREADS:
        store = PostgresStore(url, wait=60.0, pool=pool)
        times: list[float] = []

        def work(times: list[float] = times, store: PostgresStore = store, share: int = logins // threads) -> None:
            for _ in range(share):
                times.append(log_in(store, *users.take()))

        started = [threading.Thread(target=work) for _ in range(threads)]
        begun = time.perf_counter()
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        rates[threads] = len(times) / (time.perf_counter() - begun)
        p50, p99 = centiles(times)
        what = f"{threads} thread{'s' * (threads > 1)}, {pool} connections"
        result = f"{rates[threads]:.0f}/s, p50 {ms(p50)}, p99 {ms(p99)}"
        report.say(what, result, per_second=rates[threads], p50=p50, p99=p99)


def commands(report: Report, urls: dict[str, str], args: argparse.Namespace, folder: Path) -> None:
    """Measure commands, each with both databases."""
    file = folder / "more.oath"
    with open(file, "w", encoding="ascii") as lines:
        lines.writelines(f"HOTP\tmore{i}\t-\t{i + 1:040x}\n" for i in range(args.more))
    for name, users in ((SMALL, args.few), (LARGE, args.users)):
        url = urls[name]
        Path(f"/etc/pam.d/{COMMANDS}").write_text(f"auth required {MODULE} store={url} socket=none\n")
        words: dict[str, Sequence[str | Path]] = {
            "list USER": ["list", f"user{users // 2}", "--store", url],
            "list": ["list", "--store", url],
            "doctor": ["doctor", COMMANDS],
            f"import of {args.more:,} more": ["import", "users-oath", file, "--store", url],
        }
        for what, command in words.items():
            done = bulk.run(*command)
            result = f"{done.seconds:.1f} s ({done.processor:.1f} s CPU), {done.megabytes:.0f} MB, exit {done.status}"
            report.say(f"{what}, {name} database", result, **vars(done))


if __name__ == "__main__":
    sys.exit(main())
