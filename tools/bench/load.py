"""Many clients of a service, all in one process. Each client logs in repeatedly, for its own user."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pam_totp.core.oath import hotp
from tests.support.site import KEY, Site, fob

LOOK_AHEAD = 10


@dataclass
class Client:
    """A client: the state of its dialogue, and the times of its logins."""

    user: str
    counter: int = 0
    began: float = 0.0
    seconds: list[float] = field(default_factory=list)

    def hello(self) -> bytes:
        return b"H" + "\0".join(["version=1", "service=bench", f"user={self.user}", "flags=0"]).encode()

    def code(self) -> bytes:
        self.counter += 1
        return b"A" + hotp(KEY, self.counter - 1).encode()


def names(users: int) -> list[str]:
    return [f"load{i}" for i in range(users)]


def clients(site: Site, users: int) -> list[Client]:
    """Enrol `users` users, and return a client for each."""
    for name in names(users):
        site.enrol(fob(), user=name)
    return [Client(name) for name in names(users)]


def hammer(path: Path, clients: list[Client], logins: int) -> float:
    """Make `logins` logins in total, at most one per client at a time. Return the total time in seconds."""
    with selectors.DefaultSelector() as waiting:
        left = logins

        def begin(client: Client) -> None:
            nonlocal left
            left -= 1
            client.began = time.perf_counter()
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            channel.connect(str(path))
            channel.send(client.hello())
            waiting.register(channel, selectors.EVENT_READ, client)

        begun = time.perf_counter()
        for client in clients:
            begin(client)
        while waiting.get_map():
            for key, _ in waiting.select():
                channel, client = key.fileobj, key.data
                assert isinstance(channel, socket.socket)
                packet = channel.recv(4096)
                if packet[:1] == b"p":
                    channel.send(client.code())
                elif packet[:1] != b"i":
                    if packet != b"r0":
                        raise RuntimeError(f"the login of {client.user} was refused: {packet!r}")
                    client.seconds.append(time.perf_counter() - client.began)
                    waiting.unregister(channel)
                    channel.close()
                    if left > 0:
                        begin(client)
        return time.perf_counter() - begun


@contextmanager
def deciding_nothing(path: Path) -> Iterator[None]:
    """Run a service at `path` that accepts every answer without a decision, to measure the dialogue alone."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()

    def answer_all() -> None:
        while True:
            with listener.accept()[0] as client:
                for reply in (b"pOne-time code: ", b"r0"):
                    client.recv(4097)
                    client.send(reply)

    with listener, beside(answer_all):
        yield


@contextmanager
def making_the_same_calls(program: Path, path: Path, store: Path) -> Iterator[None]:
    """Run the service of `floor.c` at `path`, with the record `floor.record` in `store`."""
    (store / "floor.record").write_bytes(b" " * 8192)
    (store / "floor.record").chmod(0o600)
    with subprocess.Popen([program, path, store]) as service:
        try:
            while not path.exists():
                if service.poll() is not None:
                    raise RuntimeError(f"{program.name} exited with {service.returncode}")
                time.sleep(0.01)
            yield
        finally:
            service.kill()
            path.unlink(missing_ok=True)


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[None]:
    """Run `work`, which never returns, in another process until the end of the block."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def durable(folder: Path, name: str) -> None:
    """Replace a file durably, by a temporary file and a flush of the folder."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    file = os.open(f"{name}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=opened)
    os.write(file, b"x" * 600)
    os.fsync(file)
    os.close(file)
    os.rename(f"{name}.tmp", name, src_dir_fd=opened, dst_dir_fd=opened)
    os.fsync(opened)
    os.close(opened)


def durable_at_once(folder: Path, processes: int, times: int) -> float:
    """Make `times` durable writes in total by `processes` parallel processes. Return the writes a second."""
    begun = time.perf_counter()
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            failed = 1
            try:
                for _ in range(times // processes):
                    durable(folder, f"floor{number}")
                failed = 0
            finally:
                os._exit(failed)
        children.append(child)
    ends = [os.waitpid(child, 0)[1] for child in children]
    if any(ends):
        raise OSError(f"{folder}: a child process failed to write its files")
    return times // processes * processes / (time.perf_counter() - begun)


def resident(pid: int) -> float:
    """Return the resident memory of the process `pid` in MB of 2^20 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def processor_seconds(pid: int) -> float:
    """Return the processor time of the process `pid` in user and system mode, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_to_answer(site: Site) -> Iterator[float]:
    """Start a service repeatedly. Yield the seconds from each start to the end of the first login."""
    counter = 0
    while True:
        site.enrol(fob(counter), user="first")
        begun = time.perf_counter()
        site.start()
        hammer(site.socket, [Client("first", counter)], 1)
        took = time.perf_counter() - begun
        counter += 1
        site.stop()
        yield took


def flood(path: Path, user: str, connections: int) -> None:
    """Send wrong codes for one user over many connections, until this process is killed."""
    with selectors.DefaultSelector() as waiting:

        def begin() -> None:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            channel.connect(str(path))
            channel.send(Client(user).hello())
            waiting.register(channel, selectors.EVENT_READ)

        for _ in range(connections):
            begin()
        while True:
            for key, _ in waiting.select():
                channel = key.fileobj
                assert isinstance(channel, socket.socket)
                packet = channel.recv(4096)
                if packet[:1] == b"p":
                    channel.send(b"A000000")
                elif packet[:1] not in (b"i", b"e"):
                    waiting.unregister(channel)
                    channel.close()
                    begin()
