"""Tests of a member with the default paths: join, and logins through the real sshd with and without a service."""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.member.wire import JoinLine
from pam_totp.operations.authenticate import REFUSED as REFUSED_TEXT
from pam_totp.store.locations import NOTICE
from tests.services.namespace import ACCOUNTS, COPY, HELPER, STORE, Machine, Sshd
from tests.support.tls import ACCEPTED, REFUSED, Authority, Reply, Request, Server

CODE = "One-time code: "
TOKEN = "ab" * 16
FOLDER = "/var/lib/pam_totp/.member"
DROP_IN = "/etc/systemd/system/pam_totp.service.d/10-pam_totp-network.conf"
_CLONE_NEWNET = 0x40000000


class Centre:
    """A scripted authority on the loopback of the machine. The authority accepts the answer 755224."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._machine = machine
        self.ca = Authority()
        listener = _listener(machine)
        self.server = Server(self.ca.sign(server=True), folder, self.reply, ca=self.ca.pem, listener=listener)
        self.helpers: list[set[str]] = []  # the uids of the helpers during each question

    def reply(self, request: Request) -> Reply:
        if request.path == "/v1/ca":
            return 200, {"ca": self.ca.pem.decode()}
        if request.path == "/v1/health":
            return 200, {"time": 1, "version": "1", "member": "web1", "certificate_days": 90, "store": "ok"}
        if request.path == "/v1/join":
            certificate = self.ca.sign_request(str(request.document["csr"]).encode(), "web1").decode()
            ca, authorities = self.ca.pem.decode(), [self.server.address]
            return 200, {"name": "web1", "certificate": certificate, "ca": ca, "authorities": authorities}
        self.helpers.append(_uids_of_helpers(self._machine))
        return 200, ACCEPTED if request.document["answer"] == "755224" else REFUSED

    @property
    def line(self) -> str:
        return JoinLine(authorities=(self.server.address,), pin=self.ca.pin, token=TOKEN).to_text()


def _listener(machine: Machine) -> socket.socket:
    """Return a socket that listens in the machine's network. setns(2) affects only the calling thread."""
    made: list[socket.socket] = []

    def listen() -> None:
        namespace = os.open(machine.root.parent / "ns" / "net", os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) == 0:
            made.append(socket.create_server(("127.0.0.1", 0)))
        os.close(namespace)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    return made[0]


def _uids_of_helpers(machine: Machine) -> set[str]:
    """Return all uids of the machine's helpers: real, effective, saved and file-system uids."""
    found = set()
    for pid in machine.processes(HELPER):
        with suppress(OSError):  # the process has ended
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            found |= set(next(line for line in lines if line.startswith("Uid:")).split()[1:])
    return found


@pytest.fixture
def centre(machine: Machine, tmp_path: Path) -> Iterator[Centre]:
    """Yield the authority. The machine has joined its fleet."""
    made = Centre(machine, tmp_path)
    joined = machine.pam_totp("join", stdin=f"{made.line}\n")
    assert joined.returncode == 0, joined.stderr
    machine.log.clear()
    yield made
    made.server.close()
    machine.stop_serving()
    machine.path(DROP_IN).unlink()


def test_join_writes_the_files_of_the_account_of_the_service(machine: Machine, centre: Centre) -> None:
    folder = machine.path(FOLDER)
    found = {path.name: (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in [folder, *folder.iterdir()]}
    owner = ACCOUNTS["pam_totp"]
    files = dict.fromkeys(("key.pem", "certificate.pem", "ca.pem"), (0o600, owner))
    assert found == {".member": (0o700, owner), **files}
    assert machine.path("/etc/pam_totp.toml").stat().st_uid == 0
    assert "PrivateNetwork=no" in machine.path(DROP_IN).read_text()


def test_join_replaces_a_store_whose_records_were_copied(machine: Machine, tmp_path: Path) -> None:
    """A copy of all records to a database leaves a file at the store's path. An empty store is unsafe with `nullok`."""
    centre, store, aside = Centre(machine, tmp_path), machine.path(STORE), machine.path(f"{STORE}.aside")
    store.rename(aside)
    machine.write(STORE, f"{NOTICE}postgresql://authority@db1/otp\n")
    try:
        trace = ("strace", "-f", "-y", "-o", "/run/trace", "-e", "trace=rename,unlink,mkdir,mkdirat,unlinkat,renameat")
        command = ["env", f"PYTHONPATH={COPY}", "/usr/bin/python3", "-m", "pam_totp.cli", "join"]
        joined = machine.run(*trace, *command, stdin=f"{centre.line}\n")
        assert joined.returncode == 0, joined.stderr
        assert machine.path(f"{FOLDER}/key.pem").stat().st_uid == ACCOUNTS["pam_totp"]
        assert (stat.S_IMODE(store.stat().st_mode), store.stat().st_uid) == (0o700, ACCOUNTS["pam_totp"])
        assert len(list(machine.path(f"{STORE}/.decoy").iterdir())) == 64, "the decoys must be complete"
        calls = machine.path("/run/trace").read_text().splitlines()
        settings = next(i for i, line in enumerate(calls) if '"/etc/pam_totp.toml")' in line)
        removed = next(i for i, line in enumerate(calls) if f'unlink("{STORE}")' in line)
        assert settings < removed, "logins must ask the authorities before an empty store exists"
    finally:
        centre.server.close()
        shutil.rmtree(store)
        aside.rename(store)
        machine.path(DROP_IN).unlink(missing_ok=True)


def test_sshd_asks_the_authority(machine: Machine, sshd: Sshd, centre: Centre, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    talk = sshd.ssh(source="192.0.2.7").asks(CODE).says("000000").asks(NEXT_PROMPT)
    assert REFUSED_TEXT in talk.before, "the same as without a fleet"
    status, shown = talk.says("755224").ends()
    assert (status, "in as alice" in shown) == (0, True), shown
    line = machine.log.wait_for("pam_totp(sshd:auth): accepted user=alice")
    assert f"by=code authority={centre.server.address} rhost=192.0.2.7" in line
    asked = [request.document for request in centre.server.requests if request.path == "/v1/answer"]
    assert [(d["user"], d["service"], d["rhost"], d["first"]) for d in asked] == [
        ("alice", "sshd", "192.0.2.7", None),
        ("alice", "sshd", "192.0.2.7", "000000"),
    ]
    owner = {str(ACCOUNTS["pam_totp"])}
    assert centre.helpers == [owner if way_there == "spawn" else set()] * 2, "a helper has only the uid of pam_totp"


@pytest.mark.bare
def test_a_helper_reads_the_credentials_after_it_dropped_root(machine: Machine, centre: Centre) -> None:
    machine.stack("demo", machine.module_line())
    strace = ("strace", "-f", "-o", "/run/trace", "-e", "trace=openat,setresuid,connect")
    done = machine.run(*strace, "pamtester", "demo", "alice", "authenticate", stdin="755224\n")
    assert done.returncode == 0, done.stderr
    owner = ACCOUNTS["pam_totp"]
    calls = machine.path("/run/trace").read_text().splitlines()
    drop = next(i for i, line in enumerate(calls) if f"setresuid({owner}, {owner}, {owner})" in line)
    touched = [i for i, line in enumerate(calls) if "key.pem" in line or "AF_INET" in line]
    assert touched
    assert min(touched) > drop
    loaded = [i for i, line in enumerate(calls) if "/pam_totp/member/" in line and ".pyc" in line]
    assert loaded
    assert max(loaded) < drop, "load before the drop: the account may lack permission to read the package"
    site = next(i for i, line in enumerate(calls) if "/etc/pam_totp.toml" in line)
    assert f"setresuid(-1, {owner}, -1)" in "".join(calls[:site]), "the helper reads the site file as the account"


def test_without_the_authority_sshd_refuses(machine: Machine, sshd: Sshd, centre: Centre, way_there: str) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    site = machine.path("/etc/pam_totp.toml")
    site.write_text(f"{site.read_text()}answer = 0.5\n")
    centre.server.close()
    status, shown = sshd.ssh("alice", "NumberOfPasswordPrompts=1").asks(CODE).says("755224").ends()
    assert (status, "Permission denied" in shown) == (255, True), shown
    line = machine.log.wait_for("pam_totp(sshd:auth): error user=alice")
    assert f"no authority answered: {centre.server.address}: connection refused" in line


def test_a_helper_of_another_account_cannot_read_the_key(machine: Machine, centre: Centre) -> None:
    """A user's program, such as a screen locker, can ask the authorities only through the service."""
    machine.stack("locker", machine.module_line())
    status, _ = (
        machine.talk("pamtester", "locker", "alice", "authenticate", user="alice").asks(CODE).says("755224").ends()
    )
    assert status != 0
    assert not [request for request in centre.server.requests if request.path == "/v1/answer"]
