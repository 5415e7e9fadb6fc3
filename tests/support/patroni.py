"""Three servers with Patroni and PostgreSQL, and three of etcd, for the tests of a failover.

Rules:
- The configuration is examples/patroni.yml, with other names, addresses and folders (`_configuration`). The settings of
  etcd and the statements that create the database are those of docs/fleet.md (`_code_block`).
- Each server has its own network namespace and its own processes. All namespaces are on one bridge. The tests, as the
  client, are in the namespace of the bridge (`Cluster.enter`), or use the servers' Unix sockets.
- `kill` simulates a power cut of a server. `cut_off` disconnects a server from etcd and from the other servers, but not
  from clients.
- All processes end with the tests, even if the tests are killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psycopg
import pytest

from tests.support.cluster import PROGRAMS
from tests.support.isolation import MAY_MOUNT
from tests.support.site import TREE, UNPRIVILEGED_UID, until

_TOOLS = ("patroni", "etcd", "etcdctl", "ip", "nsenter", "openssl", "unshare")
_ABSENT = [tool for tool in _TOOLS if shutil.which(tool, path="/usr/sbin:/usr/bin:/sbin:/bin") is None]
with_patroni = pytest.mark.skipif(
    bool(_ABSENT) or PROGRAMS is None or not MAY_MOUNT,
    reason="needs root, and the packages patroni, etcd-server, etcd-client, iproute2, openssl and postgresql",
)
EXAMPLE, DOCUMENT = TREE / "examples" / "patroni.yml", TREE / "docs" / "fleet.md"
NAMES = ("db1", "db2", "db3")
ETCD = ("etcd1", "etcd2", "etcd3")
ADDRESSES = {name: f"10.77.0.{number}" for number, name in enumerate((*NAMES, *ETCD), 1)}
_CLIENT = "10.77.0.254"
OWNER, AUTHORITY, DATABASE = "otp_owner", "authority", "otp"
SLOW = 120.0  # seconds: the limit of a wait for Patroni
_LOG_END = 6000  # characters of each log in the report of a failed test
_CLONE_NEWNET = 0x4000_0000  # linux/sched.h
_NOWHERE = "02:00:00:00:00:99"  # a hardware address that no interface has
_ENDS_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL")
_ACCOUNT = (*_ENDS_WITH_PARENT, f"--reuid={UNPRIVILEGED_UID}", f"--regid={UNPRIVILEGED_UID}", "--clear-groups")


class _Namespace:
    """A network namespace, which exists until its sleeping process ends."""

    def __init__(self) -> None:
        self._keeper = subprocess.Popen([*_ENDS_WITH_PARENT, "unshare", "--net", "sleep", "infinity"])
        own = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{self._keeper.pid}/ns/net") != own, "the namespace exists")
        self.path = f"/proc/{self._keeper.pid}/ns/net"
        self.pid = self._keeper.pid
        self.ip("link", "set", "lo", "up")

    def command(self, *words: str) -> list[str]:
        return ["nsenter", f"--net={self.path}", *words]

    def ip(self, *words: str) -> None:
        subprocess.run(self.command("ip", *words), check=True, capture_output=True)

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()


class Node:
    """One server of the cluster, with Patroni and PostgreSQL in `folder`."""

    def __init__(self, name: str, folder: Path, namespace: _Namespace) -> None:
        self.name, self.folder, self.namespace = name, folder, namespace
        self.log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start Patroni as the first process of a new PID namespace, which ends with that process."""
        command = self.namespace.command("unshare", "--pid", "--fork", "--mount-proc", *_ACCOUNT)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_ENDS_WITH_PARENT, *command, "patroni", str(self.folder / "patroni.yml")],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.folder)},
            )

    def kill(self) -> None:
        """Kill all processes of the server with SIGKILL."""
        if self._process is not None:
            for first in _children(self._process.pid):  # the kernel kills all other processes of its namespace
                os.kill(first, signal.SIGKILL)
            self._process.wait()  # until unshare has reaped the first process
            self._process = None

    def _patroni(self) -> list[int]:
        """Return the ids of the processes that run the program patroni."""
        assert self._process is not None
        return [pid for pid in _descendants(self._process.pid) if "/usr/bin/patroni" in _command_line(pid)]

    def freeze(self, *, with_database: bool = False) -> None:
        """Stop Patroni with SIGSTOP. Also stop PostgreSQL if `with_database` is true."""
        assert self._process is not None
        for pid in _descendants(self._process.pid) if with_database else self._patroni():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        for pid in _descendants(self._process.pid):
            os.kill(pid, signal.SIGCONT)

    def kill_database(self) -> None:
        """Kill PostgreSQL alone with SIGKILL. Patroni continues."""
        assert self._process is not None
        for pid in _descendants(self._process.pid):
            if "postgres" in _command_line(pid).partition(" ")[0]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement as the superuser, and return its rows. The statement does not wait for a standby."""
        url = f"postgresql://postgres@/postgres?host={self.folder}&connect_timeout=2"
        with psycopg.connect(url, autocommit=True, options="-c synchronous_commit=local") as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def is_primary(self) -> bool:
        with suppress(psycopg.Error):
            return self.sql("SELECT pg_is_in_recovery()") == [(False,)]
        return False

    def synchronous(self) -> set[str]:
        """Return the names of the synchronous standbys of this server, or no names if the server does not answer."""
        with suppress(psycopg.Error):
            return {
                str(n) for (n,) in self.sql("SELECT application_name FROM pg_stat_replication WHERE sync_state='sync'")
            }
        return set()


class Cluster:
    """The three servers, etcd, and the network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._bridge = _Namespace()
        self._bridge.ip("link", "add", "bridge", "type", "bridge")
        self._bridge.ip("addr", "add", f"{_CLIENT}/24", "dev", "bridge")
        self._bridge.ip("link", "set", "bridge", "up")
        self._namespaces = {name: self._namespace(number, name) for number, name in enumerate(ADDRESSES)}
        self.nodes = {name: Node(name, folder / name, self._namespaces[name]) for name in NAMES}
        self._etcd: list[subprocess.Popen[bytes]] = []

    def _namespace(self, number: int, name: str) -> _Namespace:
        made = _Namespace()
        self._bridge.ip("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", str(made.pid))
        self._bridge.ip("link", "set", f"port{number}", "master", "bridge", "up")
        made.ip("addr", "add", f"{ADDRESSES[name]}/24", "dev", "eth0")
        made.ip("link", "set", "eth0", "up")
        return made

    def start(self, *, strict: bool = True) -> None:
        """Start etcd and all servers. `strict` is the setting synchronous_mode_strict."""
        self.start_etcd()
        _certificates(self.folder)
        for node in self.nodes.values():
            _prepare(node, strict=strict)
            node.start()
        until(lambda: self.primary() is not None, "the cluster has a primary", SLOW)
        until(self.has_standbys, "two standbys follow the primary, one of them synchronous", SLOW)

    def start_etcd(self) -> None:
        for name in ETCD:
            folder = self.folder / name
            folder.mkdir()
            settings = _with_addresses(_code_block("ini").replace("ETCD_NAME=etcd1", f"ETCD_NAME={name}"), name)
            environment = os.environ | dict(line.split("=", 1) for line in settings.split())
            command = [*_ENDS_WITH_PARENT, *self._namespaces[name].command("etcd", "--data-dir", str(folder / "data"))]
            with (folder / "log").open("ab") as log:
                self._etcd.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment))
        urls = ",".join(f"http://{ADDRESSES[name]}:2379" for name in ETCD)
        health = self._bridge.command("etcdctl", "--endpoints", urls, "endpoint", "health")
        environment = os.environ | {"ETCDCTL_API": "3"}
        until(lambda: subprocess.run(health, env=environment, capture_output=True, check=False).returncode == 0, "etcd")

    def primary(self) -> Node | None:
        """Return the primary if exactly one server is a primary, else None."""
        found = [node for node in self.nodes.values() if node.is_primary()]
        return found[0] if len(found) == 1 else None

    def has_standbys(self, *, synchronous: bool = True) -> bool:
        """Return True if two standbys follow the primary.

        With `synchronous`, the primary must replicate synchronously, and Patroni must list a synchronous standby.
        Otherwise, at least one of the two must be missing.
        """
        primary = self.primary()
        if primary is None:
            return False
        with suppress(psycopg.Error):
            if primary.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == [(2,)]:
                return bool(primary.synchronous() and self.synchronous_members()) == synchronous
        return False

    def others(self, node: Node) -> list[Node]:
        return [other for other in self.nodes.values() if other is not node]

    def synchronous_members(self) -> list[str]:
        """Return the names of the standbys that Patroni may promote."""
        for name in NAMES:
            with suppress(OSError, ValueError, subprocess.CalledProcessError):
                url = f"http://{ADDRESSES[name]}:8008/cluster"
                done = subprocess.run(
                    self._bridge.command("/usr/bin/python3", "-c", _GET, url),
                    capture_output=True,
                    check=True,
                    timeout=5,
                )
                return [m["name"] for m in json.loads(done.stdout)["members"] if m["role"] == "sync_standby"]
        return []

    def change(self, **settings: object) -> None:
        """Change settings of the section `bootstrap: dcs` in the running cluster."""
        primary = self.primary()
        assert primary is not None
        url, body = f"http://{ADDRESSES[primary.name]}:8008/config", json.dumps(settings)
        subprocess.run(
            self._bridge.command("/usr/bin/python3", "-c", _PATCH, url, body), check=True, capture_output=True
        )

    def patronictl(self, *words: str) -> str:
        """Run patronictl with the configuration of the primary, and return the output."""
        primary = self.primary()
        assert primary is not None
        command = self._bridge.command("patronictl", "-c", str(primary.folder / "patroni.yml"), *words)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def cut_off(self, node: Node) -> None:
        """Drop all packets between `node` and the other servers, including etcd, without a reply to the sender."""
        self._connect(node, reached=False)

    def reconnect(self, node: Node) -> None:
        self._connect(node, reached=True)

    def _connect(self, node: Node, *, reached: bool) -> None:
        for other in ADDRESSES.keys() - {node.name}:
            for here, there in ((node.name, other), (other, node.name)):
                neighbour = ("neigh", "replace", ADDRESSES[there], "dev", "eth0")
                state = ("nud", "stale") if reached else ("nud", "permanent")
                address = self._hardware_address(there) if reached else _NOWHERE
                self._namespaces[here].ip(*neighbour, "lladdr", address, *state)

    def _hardware_address(self, name: str) -> str:
        command = self._namespaces[name].command("ip", "-json", "link", "show", "eth0")
        done = subprocess.run(command, check=True, capture_output=True)
        return str(json.loads(done.stdout)[0]["address"])

    def enter(self) -> None:
        """Move the calling thread, and the threads that it starts later, to the cluster's network namespace."""
        with open(self._bridge.path, "rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def url(self, role: str = AUTHORITY, order: Sequence[str] = NAMES) -> str:
        """Return the URL over TCP and TLS, with the certificate of `role`. libpq tries the servers in `order`."""
        hosts = ",".join(ADDRESSES[name] for name in order)
        keys = self.folder / "keys"
        tls = f"sslmode=verify-full&sslrootcert={keys}/ca.crt&sslcert={keys}/{role}.crt&sslkey={keys}/{role}.key"
        return f"postgresql://{role}@{hosts}/{DATABASE}?{tls}&target_session_attrs=read-write"

    def local_url(self, nodes: Sequence[Node] = ()) -> str:
        """Return the URL over the Unix sockets of `nodes`, by default of all servers, for the superuser."""
        folders = [str(node.folder) for node in nodes or self.nodes.values()]
        return f"postgresql://postgres@/{DATABASE}?host={','.join(folders)}"

    def print_logs(self) -> None:
        """Print the last part of each server's log, for the report of a failed test."""
        for node in self.nodes.values():
            if node.log.exists():
                print(f"---- {node.name}\n{node.log.read_text(errors='replace')[-_LOG_END:]}")

    def stop(self) -> None:
        for node in self.nodes.values():
            node.kill()
        for etcd in self._etcd:
            etcd.kill()
            etcd.wait()
        for namespace in (*self._namespaces.values(), self._bridge):
            namespace.close()


@contextmanager
def cluster(*, strict: bool = True) -> Iterator[Cluster]:
    """Yield a running cluster with the database and the roles of the documentation."""
    folder = Path(tempfile.mkdtemp(prefix="pam_totp-patroni-"))
    folder.chmod(0o755)
    made = Cluster(folder)
    try:
        made.start(strict=strict)
        primary = made.primary()
        assert primary is not None
        for statement in _code_block("sql").split(";")[:-1]:
            primary.sql(statement)
        yield made
    except BaseException:
        made.print_logs()
        raise
    finally:
        made.stop()
        shutil.rmtree(folder)


def _code_block(kind: str) -> str:
    """Return the only code block with the label `kind` in docs/fleet.md."""
    (block,) = re.findall(rf"^ *```{kind}\n(.*?)^ *```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return str(block)


def _with_addresses(settings: str, own: str) -> str:
    """Return the settings of the server `own`: `settings` of etcd1, with addresses in place of the servers' names."""
    settings = re.sub(r"(URLS=http://)etcd1", rf"\1{own}", settings)
    return re.sub(r"//(etcd\d)", lambda name: f"//{ADDRESSES[name[1]]}", settings)


_GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=2).read().decode())"
_PATCH = """import sys, urllib.request
urllib.request.urlopen(urllib.request.Request(sys.argv[1], sys.argv[2].encode(), method="PATCH"), timeout=5)"""


def _configuration(node: Node, *, strict: bool) -> str:
    """Return the example with the values of `node`. `trust` replaces `peer`, because the account has no name here."""
    text = EXAMPLE.read_text()
    assert PROGRAMS is not None
    replacements = {
        "name: db1": f"name: {node.name}",
        "connect_address: db1": f"connect_address: {ADDRESSES[node.name]}",
        **{f"{name}:2379": f"{ADDRESSES[name]}:2379" for name in ETCD},
        "data_dir: /var/lib/postgresql/15/otp": f"data_dir: {node.folder}/data",
        "bin_dir: /usr/lib/postgresql/15/bin": f"bin_dir: {PROGRAMS}",
        "pgpass: /var/lib/postgresql": f"pgpass: {node.folder}",
        "unix_socket_directories: /var/run/postgresql": f"unix_socket_directories: {node.folder}",
        "/etc/patroni/": f"{node.folder}/",
        "local   all          postgres             peer": "local   all          postgres             trust",
    }
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    if not strict:
        text = text.replace("synchronous_mode_strict: true", "synchronous_mode_strict: false")
    return text


def _prepare(node: Node, *, strict: bool) -> None:
    """Write the configuration and the certificates of a server to its folder, which the servers' account owns."""
    node.folder.mkdir()
    (node.folder / "patroni.yml").write_text(_configuration(node, strict=strict))
    keys = node.folder.parent / "keys"
    for source, name in (("ca.crt", "ca.crt"), (f"{node.name}.crt", "server.crt"), (f"{node.name}.key", "server.key")):
        shutil.copy(keys / source, node.folder / name)
        os.chmod(node.folder / name, 0o600)
    for path in (node.folder, *node.folder.iterdir()):
        os.chown(path, UNPRIVILEGED_UID, UNPRIVILEGED_UID)


def _certificates(folder: Path) -> None:
    """Create the certificate authority, and the certificates of the servers and of both roles."""
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    run = partial(subprocess.run, cwd=keys, check=True, capture_output=True)
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    run([*new, "-x509", "-days", "30", "-subj", "/CN=test", "-keyout", "ca.key", "-out", "ca.crt"])
    for name in (*NAMES, OWNER, AUTHORITY):
        run([*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr"])
        also = f"subjectAltName=IP:{ADDRESSES[name]}" if name in NAMES else "extendedKeyUsage=clientAuth"
        (keys / "extensions").write_text(also)
        sign = ["openssl", "x509", "-req", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30"]
        run([*sign, "-extfile", "extensions", "-in", f"{name}.csr", "-out", f"{name}.crt"])


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in _children(pid):
        found += [child, *_descendants(child)]
    return found


def _command_line(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""
