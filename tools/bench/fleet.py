"""`make bench-fleet`: a benchmark of logins at a member of a fleet, and of one authority.

The program creates a primary with a synchronous standby, an authority and members on this machine. In each round, every
kind of login runs once, in a random order: by pam_permit, by the store of the host, and by the authority. A proxy
simulates a distant authority. Then, many connections ask the authority in parallel. The program prints the results, and
writes them to bench-fleet.json. ARGS=--help lists the options. Root is required.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from pam_totp.authority.connections import OF_ONE_MEMBER
from pam_totp.core.oath import hotp
from pam_totp.core.record import UserRecord
from pam_totp.core.settings import DEFAULT_STORE, SITE_FILE
from pam_totp.member import wire
from pam_totp.store.postgres import initialise
from pam_totp.store.postgres_schema import SYNCHRONOUS
from tests.support.cluster import Server, replicated
from tests.support.fleet import HOST, Client, Fleet, Member, free_ports
from tests.support.site import KEY, MODULE, TREE, Site, fob
from tools.bench import load, logins
from tools.bench.__main__ import (
    Report,
    centiles,
    compile_programs,
    enter_namespace,
    ms,
    private_dev,
    private_etc,
    read_log,
    spread,
    us,
)
from tools.bench.database import SETTINGS, processor, sql
from tools.bench.logins import Case

AWAY = 0.2  # seconds: the round trip to a distant authority
PERMIT, LOCAL = "pam_permit", "store of the host, by the service"
KEPT, NEW = "authority, kept connection", "authority, new connection"
HELPER = "authority, by a helper started for the login"
FAR, FAR_NEW = "authority 200 ms away, kept connection", "authority 200 ms away, new connection"
THREADS = (1, 2, 4, 8, 16, 32)
NEW_AT_ONCE = 4  # connections at once in the measurement of new connections; an element of THREADS
IDLE = 1000  # connections
HALF = AWAY / 2


class Costs(NamedTuple):
    """Processor seconds of the authority, the primary and the standby, and the bytes of the primary's log."""

    authority: float
    primary: float
    standby: float
    log: int

    def since(self, before: Costs, logins: int) -> Costs:
        """Return the costs of one login, after `logins` logins since `before`."""
        each = [(now - then) / logins for now, then in zip(self, before, strict=True)]
        return Costs(each[0], each[1], each[2], round(each[3]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-fleet", description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="logins of each kind (%(default)s)")
    parser.add_argument("--logins", type=int, default=4000, help="logins of each measurement of load (%(default)s)")
    args = parser.parse_args()
    if not enter_namespace("bench-fleet", "tools.bench.fleet"):
        return 3
    tempfile.tempdir = "/var/tmp"  # noqa: S108  the parent of temporary folders, on the disk
    report = Report()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pam_totp-bench-")))
        folder.chmod(0o755)
        compile_programs(folder)
        primary, standby = stack.enter_context(replicated(SETTINGS))
        fleet = Fleet(primary, folder)
        initialise(fleet.url, SYNCHRONOUS)
        stack.callback(fleet.stop)
        authority = fleet.authorities[0]
        authority.start()
        for private in (private_host(folder), private_etc(folder), private_dev(folder), read_log()):
            stack.enter_context(private)
        measured = Measured(fleet, primary, standby)
        for pause_ms in (0, 100):
            report.section(f"a login after {pause_ms} ms of typing, minus the time of pam_permit")
            one_login(report, fleet, folder, args.rounds, pause_ms)
        report.section("the service of a host, for 8 clients")
        services(report, fleet, folder, args.logins // 2)
        report.section("one authority, which shares this machine with its clients and its database")
        under_load(report, measured, args.logins)
        report.section("connections to one authority")
        connections(report, measured)
    report.write(TREE / "bench-fleet.json")
    return 0


@contextmanager
def private_host(folder: Path) -> Iterator[None]:
    """Set up a private /etc and /var/lib: a helper reads the site file and the owner of the store of the host."""
    places = ("/etc", "/var/lib")
    layers = folder / "layers"
    layers.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "private", layers], check=True)
    for place in places:
        upper, work = (layers / f"{kind}{place.replace('/', '-')}" for kind in ("upper", "work"))
        for made in (upper, work):
            made.mkdir()
        options = f"lowerdir={place},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "private", place], check=True)
    Path(DEFAULT_STORE).mkdir(0o700, exist_ok=True)
    try:
        yield
    finally:
        for place in (*places, str(layers)):
            subprocess.run(["umount", "--lazy", place], check=True)


# ---- one login


def one_login(report: Report, fleet: Fleet, folder: Path, rounds: int, pause_ms: int) -> None:
    """Measure logins through libpam, each by a new process."""
    [port] = free_ports(1)
    with ExitStack() as stack:
        stack.enter_context(load.beside(lambda: proxy(port, fleet.authorities[0].port)))
        place = folder / f"sites{pause_ms}"
        place.mkdir()
        chosen = list(cases(stack, fleet, place, f"{HOST}:{port}"))
        times = logins.race(folder / "client", chosen, rounds, pause_ms)
    own = statistics.median(t.whole for t in times[PERMIT])
    whole = {}
    for name, values in times.items():
        low, whole[name], high = spread([t.whole for t in values])
        if name == PERMIT:
            report.say(name, us(own), seconds=own)
            continue
        result = f"{ms(whole[name] - own)} ({1e3 * (low - own):.2f} … {1e3 * (high - own):.2f})"
        report.say(name, result, seconds=whole[name] - own, samples=values)
    for name in (KEPT, NEW, HELPER, FAR, FAR_NEW):
        ratio = (whole[name] - own) / (whole[LOCAL] - own)
        report.say(f"{name} / {LOCAL}", f"{ratio:.2f}", ratio=ratio)


def cases(stack: ExitStack, fleet: Fleet, folder: Path, far: str) -> Iterator[Case]:
    """Yield the kinds of logins. `far` is the address of the proxy."""
    yield Case(PERMIT, "pam_permit.so", lambda: "")
    local, _ = site_in(stack, folder / "local", "")
    local.enrol(fob(), user="root")
    yield Case(LOCAL, f"{MODULE} store={local.store} socket={local.socket} nodelay", logins.counting())
    near = fleet.addresses[0]
    ways = {KEPT: (near, False), NEW: (near, True), FAR: (far, False), FAR_NEW: (far, True)}
    for number, (name, (address, is_new)) in enumerate(ways.items()):
        member = member_of(fleet)
        site, _ = site_in(stack, folder / f"member{number}", site_of(member, address))
        user = f"load{number}"
        line = f"{MODULE} socket={site.socket} nodelay user={user}"
        answer = enrolled(fleet, user)
        yield Case(name, line, with_new_connection(member, answer) if is_new else answer)
    # A helper reads the settings of the host, which are private to this process.
    member = member_of(fleet)
    site_file = Path(SITE_FILE)
    site_file.write_text(site_of(member, near))
    stack.callback(site_file.unlink)
    yield Case(HELPER, f"{MODULE} socket=none nodelay user=load9", enrolled(fleet, "load9"))


def site_in(stack: ExitStack, folder: Path, text: str) -> tuple[Site, int]:
    """Start a service with its own site file. Return the installation and the pid of the service."""
    folder.mkdir()
    site = Site(folder)
    site.config.write_text(text)
    stack.callback(site.stop)
    return site, site.start("--log", "syslog").pid


def member_of(fleet: Fleet) -> Member:
    member = fleet.member()
    member.folder.chmod(0o700)
    for file in (member.key, member.certificate, member.ca):
        file.chmod(0o600)
    return member


def site_of(member: Member, address: str) -> str:
    files = f"certificate = '{member.certificate}'\nkey = '{member.key}'\nca = '{member.ca}'\n"
    return f"[member]\nauthorities = ['{address}']\n{files}"


def enrolled(fleet: Fleet, user: str) -> Callable[[], str]:
    """Enrol a user with a key fob at the authority, and return a function that returns the next code."""
    record = UserRecord(user=user, tokens=(fob(),))
    fleet.store.update(user, lambda _: (record, None), create=True)
    return logins.counting()


def with_new_connection(member: Member, answer: Callable[[], str]) -> Callable[[], str]:
    """Return a function that touches the certificate, so that the member reconnects, and then calls `answer`."""

    def following() -> str:
        os.utime(member.certificate)
        return answer()

    return following


# ---- a distant authority


def proxy(port: int, target: int) -> None:
    """Forward the data of connections from `port` to `target`, with a delay of AWAY / 2, until this process is killed.

    The kernel accepts a connection without delay. The client's first data is therefore delayed by one more round trip,
    as by a TCP handshake.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(HOST, target)
        await asyncio.gather(pass_on(reader, inner_writer, AWAY), pass_on(inner_reader, writer, 0.0))

    async def run() -> None:
        async with await asyncio.start_server(serve, HOST, port) as server:
            await server.serve_forever()

    asyncio.run(run())


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: float) -> None:
    """Copy from `reader` to `writer`, with a delay of AWAY / 2. Hold back all data for `first` seconds."""
    loop = asyncio.get_running_loop()
    ready = loop.time() + first
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def write() -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                writer.close()
                return
            writer.write(data)

    writing = asyncio.create_task(write())
    data = b"-"
    while data:
        try:
            data = await reader.read(65_536)
        except ConnectionError:
            data = b""
        queue.put_nowait((max(loop.time(), ready) + HALF, data))
    await writing


# ---- many logins


def services(report: Report, fleet: Fleet, folder: Path, count: int) -> None:
    """Measure the cost of a login for the service of a host with a store, and for that of a member."""
    names, each = load.names(8), {}
    for name in names:
        enrolled(fleet, name)
    texts = {LOCAL: "", KEPT: site_of(member_of(fleet), fleet.addresses[0])}
    for number, (name, text) in enumerate(texts.items()):
        with ExitStack() as stack:
            site, pid = site_in(stack, folder / f"service{number}", text)
            clients = load.clients(site, 8) if name == LOCAL else [load.Client(user) for user in names]
            load.hammer(site.socket, clients, 80)
            before = load.processor_seconds(pid)
            rate = count / load.hammer(site.socket, clients, count)
            each[name] = (load.processor_seconds(pid) - before) / count
        result = f"{rate:.0f}/s, {us(each[name])} of the processor for each login"
        report.say(name, result, per_second=rate, seconds=each[name])
    report.say("processor of a member / of a host with a store", f"{each[KEPT] / each[LOCAL]:.2f}")


class Measured:
    """The fleet and the servers that a login uses."""

    def __init__(self, fleet: Fleet, primary: Server, standby: Server) -> None:
        self.fleet, self.primary, self.standby = fleet, primary, standby
        self.member = fleet.member()

    def costs(self) -> Costs:
        lsn = "SELECT (pg_current_wal_insert_lsn() - '0/0')::text"
        return Costs(
            load.processor_seconds(self.fleet.authorities[0].pid),
            sum(processor(self.primary).values()),
            sum(processor(self.standby).values()),
            int(float(self.primary.sql(lsn))),
        )


class Asker:
    """A connection of a member, with its own user: an authority serialises the questions for one user."""

    def __init__(self, measured: Measured, number: int) -> None:
        self._measured, self._user, self._counter = measured, f"asker{number}", 0
        record = UserRecord(user=self._user, tokens=(fob(),))
        measured.fleet.store.update(self._user, lambda _: (record, None), create=True)
        self._client: Client | None = None
        self.seconds: list[float] = []

    def ask(self, *, is_new: bool = False) -> None:
        """Log in once, and append the time to `seconds`."""
        question = wire.Question(
            id=secrets.token_hex(16),
            user=self._user,
            service="sshd",
            rhost="192.0.2.7",
            tty="ssh",
            answer=hotp(KEY, self._counter),
        )
        self._counter += 1
        begun = time.perf_counter()
        if is_new and self._client is not None:
            self._client.close()
            self._client = None
        if self._client is None:
            self._client = self._measured.member.client()
        verdict = self._client.ask(question)
        self.seconds.append(time.perf_counter() - begun)
        if not verdict.accepted:
            raise RuntimeError(f"{self._user}: refused")


def under_load(report: Report, measured: Measured, count: int) -> None:
    """Measure logins a second over kept and new connections, the costs of a login at each server, and the size of a
    record in the database.
    """
    askers = [Asker(measured, number) for number in range(max(THREADS))]
    for asker in askers:
        asker.ask()  # connects
    for threads in THREADS:
        rate, costs = hammer(measured, askers[:threads], count)
        p50, p99 = centiles([s for asker in askers[:threads] for s in asker.seconds])
        result = f"{rate:.0f}/s, p50 {ms(p50)}, p99 {ms(p99)}; {described(costs)}"
        what = f"{threads} connection{'s' * (threads > 1)}"
        report.say(what, result, per_second=rate, p50=p50, p99=p99, costs=costs._asdict())
        if threads == NEW_AT_ONCE:
            kept = costs
    rate, costs = hammer(measured, askers[:NEW_AT_ONCE], count // 4, is_new=True)
    what = f"{NEW_AT_ONCE} connections, a new one for each login"
    report.say(what, f"{rate:.0f}/s; {described(costs)}", costs=costs._asdict())
    extra = costs.authority - kept.authority
    report.say("processor time of a new connection, at the authority", us(extra), seconds=extra)
    report.say("logins a second of one core of an authority", f"{1 / kept.authority:.0f}", value=1 / kept.authority)
    size = "SELECT round(avg(pg_column_size(r.*))) FROM pam_totp.record AS r WHERE name LIKE 'asker%'"
    row = int(sql(measured.primary, measured.fleet.url.split("/")[3].partition("?")[0], size))
    report.say("row of a user in the database, with its last eight questions", f"{row} bytes", bytes=row)


def described(costs: Costs) -> str:
    processors = zip(("authority", "primary", "standby"), costs, strict=False)
    return ", ".join(f"{name} {us(seconds)}" for name, seconds in processors) + f", log {costs.log} bytes"


def hammer(measured: Measured, askers: list[Asker], count: int, *, is_new: bool = False) -> tuple[float, Costs]:
    """Make `count` logins, with a thread for each asker. Return the logins a second, and the costs of a login."""
    share, failures = count // len(askers), []

    def work(asker: Asker) -> None:
        asker.seconds.clear()
        try:
            for _ in range(share):
                asker.ask(is_new=is_new)
        except Exception as e:
            failures.append(e)

    threads = [threading.Thread(target=work, args=(asker,)) for asker in askers]
    before, begun = measured.costs(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    if failures:
        raise failures[0]
    return share * len(askers) / seconds, measured.costs().since(before, share * len(askers))


def connections(report: Report, measured: Measured) -> None:
    """Measure the memory of idle connections."""
    pid = measured.fleet.authorities[0].pid
    before = load.resident(pid)
    report.say("resident memory of the authority", f"{before:.1f} MB", megabytes=before)
    with kept(measured, IDLE):
        each = 1024 * (load.resident(pid) - before) / IDLE
        report.say(f"memory of an idle connection, of {IDLE}", f"{each:.0f} KiB", kib=each)


@contextmanager
def kept(measured: Measured, count: int) -> Iterator[None]:
    """Hold `count` connections open, each after one request. A member has at most OF_ONE_MEMBER connections."""
    contexts = [measured.fleet.member().context() for _ in range(0, count, OF_ONE_MEMBER)]
    clients = []
    try:
        for number in range(count):
            clients.append(Client(measured.fleet.authorities[0].port, contexts[number % len(contexts)]))
            status, content = clients[-1].send("GET", wire.HEALTH_PATH)
            if status != 200:
                raise RuntimeError(json.dumps(content))
        yield
    finally:
        for client in clients:
            client.close()


if __name__ == "__main__":
    sys.exit(main())
