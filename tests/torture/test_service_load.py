"""Tests of the service under floods and across restarts: it still decides the logins of honest users."""

from __future__ import annotations

import os
import pwd
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from pam_totp.pam.listening import BACKLOG
from pam_totp.pam.login_quota import MAX_LOGINS
from pam_totp.pam.loop import MAX_IDLE
from tests.conftest import as_root
from tests.services.namespace import COPY, SOCKET, STORE, Machine
from tests.support.pamconf import Result
from tests.support.site import ME, PATIENCE, TREE, Site, codes, until
from tests.torture.many_uids import many_uids
from tests.torture.pace import LONG, report, rounds

OTHER_UIDS = tuple(pwd.getpwnam(name).pw_uid for name in ("nobody", "daemon", "bin", "games"))  # the attackers
EACH = 500  # connections


def _connect(site: Site) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(str(site.socket))  # waits while the queue of the socket is full
    client.settimeout(PATIENCE)
    return client


HELLO = b"Hversion=1\0service=demo\0user=%s\0flags=0"


def silent(site: Site) -> list[socket.socket]:
    return [_connect(site) for _ in range(EACH)]


def _say(clients: list[socket.socket], *messages: bytes) -> list[socket.socket]:
    """Send a message from each client, all of `messages` in turn. Skip rejected clients. Return `clients`."""
    for number, client in enumerate(clients):
        with suppress(OSError):
            client.send(messages[number % len(messages)])
    return clients


def half_a_message(site: Site) -> list[socket.socket]:
    return _say(silent(site), *(HELLO[:size] for size in range(1, len(HELLO))))


def never_answering(site: Site) -> list[socket.socket]:
    name = pwd.getpwuid(os.geteuid()).pw_name.encode()
    return _say(silent(site), HELLO % name)


def flood(site: Site) -> list[socket.socket]:
    for client in _say(silent(site), b"\xff" * 4096):
        client.close()
    return []


ILL = {
    "500 silent clients": silent,
    "500 clients that send half a message": half_a_message,
    "500 clients that never answer": never_answering,
    "a flood": flood,
}


@contextmanager
def besieged(site: Site, how: Callable[[Site], object]) -> Iterator[None]:
    """Run the attack `how` in a process of each account in OTHER_UIDS, until the end of the `with` block."""
    children = []
    ready_read, ready_write = os.pipe()
    go_read, go_write = os.pipe()
    for uid in OTHER_UIDS:
        child = os.fork()
        if child == 0:
            try:
                os.close(go_write)
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
                held = how(site)
                os.write(ready_write, b"x")
                while not select.select([go_read], [], [], 0.1)[0]:
                    if how is flood:
                        how(site)
                del held
            finally:
                os._exit(0)
        children.append(child)
    os.close(ready_write)
    os.close(go_read)
    try:
        with open(ready_read, "rb", buffering=0) as ready:
            for _ in children:
                assert ready.read(1) == b"x", "every attacking process has connected"
        yield
    finally:
        os.close(go_write)
        for child in children:
            os.waitpid(child, 0)


@as_root
@pytest.mark.parametrize("how", ILL)
def test_hostile_clients_do_not_block_an_honest_login(site: Site, how: str) -> None:
    process = site.start()
    site.enrol()
    site.configure("demo", way="socket")
    with besieged(site, ILL[how]):
        for counter in range(5):
            assert site.gets_in(codes(counter))
        assert sum(f"accepted user={ME}" in line for line in site.log.lines()) == 5, (
            "the service accepted all five logins, not a helper"
        )
        assert len(os.listdir(f"/proc/{process.pid}/task")) <= MAX_IDLE + 4, "a waiting login needs no thread"
        assert len(os.listdir(f"/proc/{process.pid}/fd")) <= MAX_LOGINS * len(OTHER_UIDS) + 20, (
            "the quota limits the connections of an account"
        )
    until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) < 20, "the held connections are closed")
    assert site.gets_in(codes(5))


def held_at_prompts(machine: Machine) -> list[socket.socket]:
    """Open more connections than the quota under each account except root. Return the connections that got a prompt."""
    opened: list[socket.socket] = []
    for line in machine.path("/etc/passwd").read_text().splitlines():
        name, _, uid, *_ = line.split(":")
        if int(uid) != 0:
            for _ in range(MAX_LOGINS + 12):
                client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                os.seteuid(int(uid))
                try:
                    client.connect("socket")
                finally:
                    os.seteuid(0)
                client.settimeout(PATIENCE)
                opened += _say([client], HELLO % name.encode())
    return [client for client in opened if has_prompt(client)]


def has_prompt(client: socket.socket) -> bool:
    try:
        return client.recv(4096)[:1] == b"p"
    except ConnectionError:
        return False


@as_root
@pytest.mark.timeout(900)
def test_no_number_of_uids_keeps_an_account_out_of_sudo(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All accounts together use up the total of open logins. Uids without an account connect meanwhile."""
    logins, uids = (40, 65_536) if LONG else (8, 4096)
    machine.stack("sudo", machine.module_line(way="socket"))
    service = machine.serve()
    machine.enrol("alice")
    monkeypatch.chdir(machine.path(SOCKET).parent)
    held = held_at_prompts(machine)
    assert len(held) > MAX_LOGINS
    accepted = number = 0
    with many_uids(machine.path(SOCKET).parent, uids) as crowd:
        until(lambda: crowd.connections > BACKLOG, "the queue of the socket was full")
        while number < logins or not crowd.all_took_part:
            done = machine.run("sudo", "-S", "id", "-un", user="alice", stdin=f"{codes(number)}\n")
            number += 1
            accepted += done.stdout == "root\n"
        connections = crowd.connections
    for client in held:
        client.close()
    by_service = sum(f"[{service}]" in line for line in machine.log.lines() if "accepted user=alice" in line)
    report(
        f"{accepted} of {number} sudo logins accepted ({by_service} by the service, the rest by helpers),"
        f" while {len(held)} others held prompts, and {uids} uids made {connections} connections"
    )
    assert accepted == number


# ---- restarts


class Supervisor:
    """An imitation of a socket unit of systemd. The supervisor passes its listener to each service as descriptor 3."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(site.socket))
        os.chmod(site.socket, 0o666)  # noqa: S103
        self._listener.listen(BACKLOG)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        number = self._listener.fileno()
        script = f'exec 3<&{number}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -m pam_totp.cli serve "$@"'
        self._site.config.touch(0o644)
        options: list[str | Path] = ["--store", self._site.store, "--config", self._site.config, "--log", "stderr"]
        with open(self._site.folder / "log", "ab") as log:
            return subprocess.Popen(
                ["/bin/bash", "-c", script, sys.executable, *options], cwd=TREE, pass_fds=[number], stderr=log
            )

    def restart(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(PATIENCE)
        self.process = self._start()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(PATIENCE)
        self._listener.close()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["ended", "killed"])
def test_a_restart_under_load_loses_only_the_logins_in_flight(site: Site, how: signal.Signals) -> None:
    """SIGTERM loses no login: running logins end normally, and new logins wait in the queue of the socket."""
    clients, restarts = 8, rounds(3, 100)
    supervisor = Supervisor(site)
    site.configure("demo", way="socket")
    site.enrol()
    over = threading.Event()
    results: Counter[Result] = Counter()

    def log_in() -> None:
        while not over.is_set():
            results[site.login("malformed").result] += 1

    def has_refused(count: int) -> bool:
        return results[Result.AUTH_ERR] >= count

    everybody = [threading.Thread(target=log_in) for _ in range(clients)]
    for one in everybody:
        one.start()
    try:
        for _ in range(restarts):
            before = results[Result.AUTH_ERR]
            until(partial(has_refused, before + 2 * clients), "each client receives two results")
            supervisor.restart(how)
    finally:
        over.set()
        for one in everybody:
            one.join()
        supervisor.close()
    lost = results.total() - results[Result.AUTH_ERR]
    assert results.keys() <= {Result.AUTH_ERR, Result.AUTHINFO_UNAVAIL}
    assert results.total() >= restarts * 2 * clients
    assert lost <= (restarts * clients if how is signal.SIGKILL else 0), results
    report(f"{restarts} restarts by {how.name} under load: {lost} of {results.total()} logins lost")


def test_a_code_is_used_once_across_restarts(site: Site) -> None:
    """The owner logs in with the next code repeatedly, while the service is killed and restarted."""
    supervisor = Supervisor(site)
    site.configure("demo", way="socket")
    site.enrol()
    try:
        for counter in range(rounds(6, 200)):
            killer = threading.Thread(target=supervisor.restart, args=(signal.SIGKILL,))
            killer.start()
            let_in = site.login(codes(counter)).result is Result.SUCCESS
            killer.join()
            noted = site.counter() == counter + 1
            assert noted or not let_in
            assert site.gets_in(codes(counter)) is not noted, "a code is accepted only if it was not used up"
    finally:
        supervisor.close()


# ---- the sandbox of the service's unit, without systemd

_SANDBOX = r"""
set -e
for place in / /usr; do mount -o remount,bind,ro "$place"; done
mount --bind "$1" "$1"; mount -o remount,bind,rw "$1"
mount -t tmpfs -o mode=0000 private /home; mount -t tmpfs private /tmp; mount -t tmpfs -o mode=0000 private /root
shift
export LISTEN_PID=$$ LISTEN_FDS=1
exec prlimit --core=0 --nproc=1100 setpriv --reuid=pam_totp --regid=pam_totp --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all --ambient-caps=-all --securebits=+noroot,+noroot_locked "$@"
"""


@pytest.mark.bare
def test_the_service_works_in_the_sandbox_of_its_unit(machine: Machine) -> None:
    """The store is writable in the sandbox, but / and /usr are read-only.

    The sandbox has no home folders, network, capabilities or new privileges.
    """
    machine.stop_serving()
    machine.stack("sudo", machine.module_line(way="socket"))
    machine.enrol("alice")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        path = machine.path(SOCKET)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        python = ["env", f"PYTHONPATH={COPY}", "/usr/bin/python3", "-B", "-m", "pam_totp.cli", "serve"]
        inside = ["unshare", "--mount", "--net", "--ipc", "sh", "-c", _SANDBOX, "sh", STORE, *python]
        command = machine.command("/bin/bash", "-c", f'exec 3<&{listener.fileno()}; exec "$0" "$@"', *inside)
        with subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.PIPE) as service:
            try:
                done = machine.run("sudo", "-S", "id", "-un", user="alice", stdin=f"{codes(0)}\n")
                assert (done.returncode, done.stdout) == (0, "root\n"), done
                done = machine.run("sudo", "-S", "id", "-un", user="alice", stdin=f"{codes(0)}\n")
                assert done.returncode == 1
                status = dict(
                    line.split(":\t") for line in Path(f"/proc/{service.pid}/status").read_text().splitlines()
                )
                assert (int(status["NoNewPrivs"]), int(status["CapBnd"], 16), int(status["CapEff"], 16)) == (1, 0, 0)
                assert status["Uid"].split() == ["54000"] * 4
            finally:
                service.terminate()
        assert service.returncode == 0
        path.unlink()
    assert machine.log.wait_for("pam_totp(sudo:auth): accepted user=alice by=code")
