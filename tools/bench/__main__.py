"""`make bench`: a benchmark of logins with pam_totp and with other modules. It prints a table, and writes bench.json.

The results are medians and ratios, because times vary between runs and between machines. Tests do not depend on these
results. The benchmark runs as root in a private mount namespace, with its own /etc/pam.d.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pyotp

from pam_totp.core.oath import find, hotp
from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import serialize
from pam_totp.store.keyring import Keyring
from pam_totp.store.seal import Sealer
from tests.support.site import KEY, TREE, Site, fob
from tools.bench import bulk, load, logins

INSIDE = "PAM_TOTP_BENCH_INSIDE"
SEARCHED = 1_000_000
CROWD = 100_000
HOTP = "pam_totp, HOTP, socket"
IMAGES = ("ext4", "xfs")  # file system types of hosts
IMAGE_SIZE = 1 << 30  # bytes
ACCOUNTS = ["totp", "spawned", "hammered", "first", *load.names(64)]


def enter_namespace(target: str, module: str) -> bool:
    """Run `module` again with its arguments in a private mount namespace. Return True there, False without root."""
    if os.geteuid() != 0:
        print(f"make {target}: root is required for a private /etc/pam.d (use sudo)", file=sys.stderr)
        return False
    if INSIDE not in os.environ:
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", module, *sys.argv[1:]]
        os.chdir(TREE)
        # Replace this process. A parent process would kill its child on Ctrl-C while the child cleans up.
        os.execvpe(command[0], command, os.environ | {INSIDE: "1"})  # noqa: S606
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="logins with each module (%(default)s)")
    parser.add_argument("--crowd", type=int, default=CROWD, help="enrolled users in the large store (%(default)s)")
    parser.add_argument("--logins", type=int, default=10_000, help="logins before the memory measurement (%(default)s)")
    parser.add_argument("--no-log", action="store_true", help="run without a log daemon: see docs/speed.md")
    args = parser.parse_args()
    if not enter_namespace("bench", "tools.bench"):
        return 3
    report = Report()
    report.section("search of a resynchronisation")
    search(report)
    report.section("the seal")
    the_seal(report)
    with tempfile.TemporaryDirectory(prefix="pam_totp-bench-", dir="/var/tmp") as programs:
        compile_programs(Path(programs))
        for medium, parent in (("tmpfs", "/dev/shm"), ("disk", "/var/tmp")):  # noqa: S108  parents of temporary folders
            with tempfile.TemporaryDirectory(prefix="pam_totp-bench-", dir=parent) as folder:
                Path(folder).chmod(0o755)
                on(Path(folder), medium, args, report, Path(programs))
        for system in IMAGES:
            with image(system, Path(programs)) as folder:
                on(folder, system, args, report, Path(programs), crowd=False)
    report.write(TREE / "bench.json")
    return 0


class Report:
    """The results of a run. `say` prints each result immediately, and `write` writes all results to bench.json."""

    def __init__(self) -> None:
        self.results: list[dict[str, Any]] = []
        self._section = ""

    def section(self, title: str) -> None:
        self._section = title
        print(f"\n{title}", flush=True)

    def say(self, what: str, result: str, target: str = "", **data: Any) -> None:
        print(f"   {what:<46} {result:<34} {target}".rstrip(), flush=True)
        self.results.append({"section": self._section, "what": what, "result": result, "target": target} | data)

    def write(self, path: Path) -> None:
        machine = {"system": platform.platform(), "processors": os.cpu_count(), "python": platform.python_version()}
        path.write_text(json.dumps({"machine": machine, "results": self.results}, indent=1) + "\n")
        print(f"\nwritten to {path.name}")


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f} ms"


def us(seconds: float) -> str:
    return f"{1e6 * seconds:.0f} µs"


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """Return the three quartiles of `seconds`."""
    low, middle, high = statistics.quantiles(seconds, n=4)
    return low, middle, high


def search(report: Report) -> None:
    wrong = ("000000", "000001")  # codes in a row that match no counter of the search
    otp = pyotp.HOTP("GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ")
    rounds: dict[str, list[float]] = {"pam_totp": [], "pam_totp, far from 0": [], "oathtool": [], "pyotp": []}
    oathtool = ["oathtool", "-w", str(SEARCHED), KEY.hex(), "99999999", "--digits=8"]
    once = ["oathtool", "00"]
    idle = statistics.median(timed(lambda: subprocess.run(once, capture_output=True, check=False)) for _ in range(9))
    far = range(100 * SEARCHED, 100 * SEARCHED + SEARCHED // 10)
    for _ in range(7):
        rounds["pam_totp"].append(timed(lambda: find(KEY, wrong, range(SEARCHED))))
        rounds["pam_totp, far from 0"].append(10 * timed(lambda: find(KEY, wrong, far)))
        rounds["oathtool"].append(timed(lambda: subprocess.run(oathtool, capture_output=True, check=False)) - idle)
        rounds["pyotp"].append(50 * timed(lambda: [otp.at(c) for c in range(SEARCHED // 50)]))
    middle = {name: statistics.median(values) for name, values in rounds.items()}
    for name, seconds in middle.items():
        report.say(f"{name}: {SEARCHED:,} counters", f"{seconds:.2f} s", seconds=seconds)
    ratios = {peer: middle["pam_totp"] / middle[peer] for peer in ("oathtool", "pyotp")}
    report.say("pam_totp / oathtool -w", f"{ratios['oathtool']:.2f}", "at most 2.5", ratio=ratios["oathtool"])
    report.say("pam_totp / pyotp", f"{ratios['pyotp']:.2f}", "at most 0.2", ratio=ratios["pyotp"])


def the_seal(report: Report) -> None:
    """Measure the cost of a sealed key for a login, which opens and seals one key. Helpers also load cryptography."""
    sealer, document = Sealer(Keyring(current=bytes(32))), serialize(UserRecord(user="alice", tokens=(fob(),)))
    sealed = sealer.seal(document, "alice")
    rounds = [timed(lambda: sealer.seal(sealer.open(sealed, "alice", ""), "alice")) for _ in range(2000)]
    middle = statistics.median(rounds)
    python = ["/usr/bin/python3", "-I", "-S", "-c"]
    path = f"import sys; sys.path += [{str(TREE)!r}, '/usr/lib/python3/dist-packages']; import pam_totp.pam.helper_main"

    def start(script: str) -> float:
        return statistics.median(timed(lambda: subprocess.run([*python, script], check=True)) for _ in range(15))

    loading = start(f"{path}, pam_totp.store.seal") - start(path)
    result = f"{us(middle)}, and {ms(loading)} in a helper"
    report.say("open and seal one key", result, seconds=middle, helper=loading)


def compile_programs(folder: Path) -> None:
    """Compile `client.c` and `floor.c`."""
    for name, libraries in (("client", ["-lpam"]), ("floor", [])):
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run(["cc", "-O2", "-o", folder / name, source, *libraries], check=True)


@contextmanager
def image(system: str, parent: Path) -> Iterator[Path]:
    """Create and mount a file system of the type `system`, in an image file below `parent`. Yield its mount point."""
    file, folder = parent / f"{system}.image", parent / system
    with open(file, "wb") as opened:
        opened.truncate(IMAGE_SIZE)
    subprocess.run([f"mkfs.{system}", "-q", file], check=True)
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop", file, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)
        file.unlink()


def on(
    folder: Path, medium: str, args: argparse.Namespace, report: Report, programs: Path, *, crowd: bool = True
) -> None:
    """Run the measurements that depend on the file system of the store. `folder` is on that file system.

    Measure a store with many users only if `crowd` is true.
    """
    with (
        private_etc(folder),
        private_dev(folder),
        nullcontext() if args.no_log else read_log(),
        site_in(folder / "one") as site,
        site_in(folder / "crowd") as many,
    ):
        report.section(f"lower bounds of every program, on {medium}")
        floor(report, folder)
        if crowd:
            progress(f"enrolling {args.crowd:,} users")
            for i in range(args.crowd):
                many.enrol(fob(), user=f"user{i}")
            many.start("--log", "syslog")
        site.start("--log", "syslog")
        with (
            load.deciding_nothing(folder / logins.NOTHING),
            load.making_the_same_calls(programs / "floor", folder / logins.FLOOR, site.store),
        ):
            chosen = list(logins.cases(folder, site, many if crowd else None))
            for pause_ms in (0, 100):
                report.section(f"a login after {pause_ms} ms of typing, minus the time of pam_permit, on {medium}")
                one_login(report, logins.race(programs / "client", chosen, args.rounds, pause_ms), medium, pause_ms)
            report.section(f"many clients of a service that makes no decision, on {medium}")
            clients_of(report, folder / logins.NOTHING, load.clients(site, 64))
        for workers in sorted({1, os.cpu_count() or 1}):
            report.section(f"many clients of a service with {workers} worker{'s' * (workers > 1)}, on {medium}")
            with site_in(folder / f"workers{workers}") as busy:
                busy.start("--workers", str(workers))
                many_clients(report, busy)
        if medium == "tmpfs":
            report.section("the service")
            the_service(report, folder, args.logins)
        if crowd:
            report.section(f"{args.crowd:,} users, on {medium}")
            bulk.commands(report, many.store, args.crowd, folder)


@contextmanager
def private_etc(folder: Path) -> Iterator[None]:
    """Set up a private /etc/pam.d and a private /etc/passwd with the accounts of the benchmark.

    Without these accounts, each login would also search all other name services, unlike a login of a real user.
    """
    (folder / "pam.d").mkdir()
    passwd = Path("/etc/passwd").read_text()
    (folder / "passwd").write_text(passwd + "".join(f"{name}:x:65534:65534::/:/bin/false\n" for name in ACCOUNTS))
    for name in ("pam.d", "passwd"):
        subprocess.run(["mount", "--bind", folder / name, f"/etc/{name}"], check=True)
    try:
        yield
    finally:
        for name in ("pam.d", "passwd"):
            subprocess.run(["umount", f"/etc/{name}"], check=True)


@contextmanager
def private_dev(folder: Path) -> Iterator[None]:
    """Set up a private /dev without a log socket."""
    nodes = ("null", "zero", "full", "random", "urandom", "tty", "console")
    dev = folder / "dev"
    dev.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "private", dev], check=True)
    (dev / "shm").mkdir()
    for name in nodes:
        (dev / name).touch()
    for name in (*nodes, "shm"):
        subprocess.run(["mount", "--bind", f"/dev/{name}", dev / name], check=True)
    subprocess.run(["mount", "--move", dev, "/dev"], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", "/dev"], check=True)


@contextmanager
def read_log() -> Iterator[None]:
    """Run a log daemon, which reads /dev/log and discards all lines.

    Without a log daemon, other modules write to the console, which takes a millisecond.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind("/dev/log")

        def read() -> None:
            while True:
                log.recv(65536)

        with load.beside(read):
            yield


@contextmanager
def site_in(folder: Path) -> Iterator[Site]:
    folder.mkdir()
    site = Site(folder)
    try:
        yield site
    finally:
        site.stop()


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"   ({text} …)", file=sys.stderr, flush=True)


def floor(report: Report, folder: Path) -> None:
    """Measure the lower bounds of every program: a sync of the disk, and the start of an interpreter."""
    synced = [timed(lambda: load.durable(folder, "floor")) for _ in range(100)]
    report.say("fsync of a file and of its folder", ms(statistics.median(synced)), seconds=statistics.median(synced))
    rate = load.durable_at_once(folder, 64, 2000)
    report.say("durable writes by 64 processes", f"{rate:.0f}/s", per_second=rate)
    empty = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
    starts = [timed(lambda: subprocess.run(empty, env={}, check=True)) for _ in range(30)]
    report.say("start of an interpreter", ms(statistics.median(starts)), seconds=statistics.median(starts))


def one_login(report: Report, times: dict[str, list[logins.Times]], medium: str, pause_ms: int) -> None:
    own = statistics.median(t.whole for t in times["pam_permit"])
    whole: dict[str, float] = {}
    decision: dict[str, float] = {}
    for name, values in times.items():
        low, middle, high = spread([t.whole for t in values])
        whole[name], decision[name] = middle - own, statistics.median(t.decision for t in values)
        if name == "pam_permit":
            report.say(name, us(own), seconds=own)
            continue
        result = f"{us(whole[name])} ({1e6 * (low - own):.0f} … {1e6 * (high - own):.0f}), {us(decision[name])}"
        report.say(name, result, seconds=whole[name], decision=decision[name], samples=values)
    for kind, module, peer, target in ratios(medium, pause_ms):
        seconds = {"login": whole, "answer to result": decision}[kind]
        if peer in seconds and module in seconds:
            ratio = seconds[module] / seconds[peer]
            report.say(f"{kind}: {module} / {peer}", f"{ratio:.2f}", f"at most {target}", ratio=ratio)


def ratios(medium: str, pause_ms: int) -> Iterator[tuple[str, str, str, float]]:
    """Yield the ratios to report: the kind of time, the module, the other module and the target."""
    in_memory = medium == "tmpfs"
    for peer in ("google_authenticator, HOTP", "pam_oath, 1 user"):
        if in_memory:
            yield "login", HOTP, peer, 2.5
        else:
            yield "login", HOTP, peer, 1.1 if pause_ms else 1.0
    yield "login", "pam_totp, TOTP, socket", "google_authenticator, TOTP", 2.5 if in_memory else 1.1
    if pause_ms:
        yield "answer to result", HOTP, "google_authenticator, HOTP", 1.5 if in_memory else 1.0
    yield "login", HOTP, logins.SAME_CALLS, 2.5 if in_memory else 1.5
    yield "login", "pam_totp, 100,000 users", HOTP, 1.05
    yield "login", "pam_totp, 100,000 users", "pam_oath, 100,000 users", 0.03
    yield "login", "pam_totp, HOTP, spawn", "pam_python, empty module", 0.5


def clients_of(report: Report, path: Path, clients: list[load.Client]) -> None:
    """Measure 1, 8 and 64 clients of the service at `path`."""
    rates: dict[int, float] = {}
    for count in (1, 8, 64):
        for client in clients:
            client.seconds.clear()
        rates[count] = rate = 2000 / load.hammer(path, clients[:count], 2000)
        middle, last = centiles([s for c in clients for s in c.seconds])
        result = f"{rate:.0f}/s, p50 {ms(middle)}, p99 {ms(last)}"
        report.say(f"{count} client{'s' * (count > 1)}", result, per_second=rate, p50=middle, p99=last)
    report.say("8 clients / 1 client, logins a second", f"{rates[8] / rates[1]:.2f}", "at least 1.7")
    fair = 64 / rates[64]  # seconds: the time of a login if the service treats 64 clients equally
    report.say("64 clients: p99 / (64 / logins a second)", f"{last / fair:.2f}", "at most 1.3", ratio=last / fair)


def many_clients(report: Report, site: Site) -> None:
    clients = load.clients(site, 64)
    clients_of(report, site.socket, clients)
    quiet, beside = [], []
    for _ in range(9):
        quiet.append(quiet_clients(site, clients[:8], None))
        beside.append(quiet_clients(site, clients[:8], load.Client("hammered")))
    alone, pressed = statistics.median(quiet), statistics.median(beside)
    result = f"p99 {ms(alone)} alone, {ms(pressed)} under load: {pressed / alone:.1f} ×"
    report.say("8 clients, while 64 others send wrong codes", result, "at most 1.5 ×", ratio=pressed / alone)


def centiles(seconds: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile of `seconds`."""
    ordered = sorted(seconds)
    return ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]


def quiet_clients(site: Site, clients: list[load.Client], other: load.Client | None) -> float:
    """Return the 99th percentile of the login times of `clients`.

    Meanwhile, 64 connections of another process send wrong codes for the user of `other`, unless `other` is None.
    """
    for client in clients:
        client.seconds.clear()
    site.enrol(fob(), user="hammered")
    with nullcontext() if other is None else load.beside(lambda: load.flood(site.socket, other.user, 64)):
        load.hammer(site.socket, clients, 1000)
    return centiles([s for c in clients for s in c.seconds])[1]


def the_service(report: Report, folder: Path, count: int) -> None:
    with site_in(folder / "service") as site:
        starts = load.start_to_answer(site)
        middle = statistics.median(next(starts) for _ in range(9))
        report.say("from the start to the first answer", ms(middle), "at most 150 ms", seconds=middle)
        process = site.start()
        clients = load.clients(site, 8)
        load.hammer(site.socket, clients, count)
        before = load.resident(process.pid)
        processor = load.processor_seconds(process.pid)
        report.say(f"resident memory after {count:,} logins", f"{before:.1f} MB", "at most 25 MB", megabytes=before)
        load.hammer(site.socket, clients, 10 * count)
        after = load.resident(process.pid)
        report.say(f"resident memory after {10 * count:,} more", f"{after:.1f} MB", "no growth", megabytes=after)
        each = (load.processor_seconds(process.pid) - processor) / (10 * count)
        report.say("processor time of one login", f"{1e6 * each:.0f} µs", seconds=each)


if __name__ == "__main__":
    assert hotp(KEY, 0) == "755224"
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("bench.json was not written: interrupted")
