"""The hosts of the demo of a fleet: a laptop, two members, two authorities, and a database with a standby.

- `Fleet.begin` installs pam_totp from this tree into a temporary folder, which all hosts overlay on /usr.
- Other methods set up the parts outside pam_totp: accounts, sshd, and PostgreSQL with its certificates.
  `demo.fleet` runs the commands of docs/fleet.md.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from demo.hosts import Host, Network, Process, start_all
from demo.scene import TREE, wait_until

USER = "alice"
DOMAIN = "example.org"
ADDRESSES = {
    **{"laptop": "192.0.2.10", "web1": "192.0.2.11", "web2": "192.0.2.12"},
    **{"otp1": "192.0.2.21", "otp2": "192.0.2.22", "db1": "192.0.2.31", "db2": "192.0.2.32"},
}
MEMBERS, AUTHORITIES, DATABASES = ("web1", "web2"), ("otp1", "otp2"), ("db1", "db2")
PROGRAMS = ("ip", "ssh", "ssh-keygen", "openssl", "/usr/sbin/sshd", "unshare", "nsenter")
PACKAGES = ("aiohttp", "psycopg")  # of Debian's Python
OWNER, ROLE, REPLICATOR = "otp_owner", "authority", "replicator"  # the roles of the database
SERVICE_ID, POSTGRES_ID, USER_ID = 900, 901, 1000  # uid and gid of pam_totp, postgres and the user
ACCOUNTS = {"root": 0, "pam_totp": SERVICE_ID, "postgres": POSTGRES_ID, "sshd": 902, USER: USER_ID}
ETC = "/etc/pam_totp"
DATA = "/var/lib/postgresql/data"
SOCKET = "/run/pam_totp/socket"
SERVE = ("runuser", "-u", "pam_totp", "--", "pam-totp", "serve", "--socket", SOCKET)
STACK = """\
auth [success=done ignore=ignore default=die] pam_totp.so
account required pam_unix.so
session required pam_permit.so
"""
RUNUSER = "auth sufficient pam_rootok.so\naccount required pam_permit.so\nsession required pam_permit.so\n"
SSHD = """\
HostKey /etc/ssh/host_key
PidFile none
UsePAM yes
PasswordAuthentication no
KbdInteractiveAuthentication yes
AuthenticationMethods publickey,keyboard-interactive
PrintMotd no
PrintLastLog no
"""
POSTGRESQL = f"""
listen_addresses = '*'
unix_socket_directories = '/run/postgresql'
shared_buffers = 16MB
ssl = on
ssl_ca_file = '{ETC}/ca.crt'
ssl_cert_file = '/var/lib/postgresql/server.crt'
ssl_key_file = '/var/lib/postgresql/server.key'
synchronous_standby_names = '*'
wal_retrieve_retry_interval = 200ms
"""
HBA = f"""\
local all postgres peer
hostssl otp {OWNER},{ROLE} 0.0.0.0/0 cert
hostssl replication {REPLICATOR} 0.0.0.0/0 cert
"""
ROLES = f"""\
CREATE ROLE {OWNER} LOGIN;
CREATE ROLE {ROLE} LOGIN;
CREATE ROLE {REPLICATOR} LOGIN REPLICATION;
CREATE DATABASE otp OWNER {OWNER} ENCODING 'UTF8' TEMPLATE template0;
"""


@dataclass(frozen=True)
class Attempt:
    """A login. `texts` lists prompts and messages."""

    accepted: bool
    texts: tuple[str, ...]
    seconds: float
    error: str = ""


class Fleet:
    """The hosts, by name. Call `close` at the end."""

    def __init__(self, folder: Path) -> None:
        self.hosts: dict[str, Host] = {}
        self._folder, self._installed, self._mount = folder, folder / "installed", folder / "mount"
        self._certificates = folder / "certificates"
        self._network = Network()
        self._all: list[Host] = []

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def begin(self) -> None:
        """Install pam_totp, and start the hosts."""
        self._mount.mkdir()
        words = ["make", "--silent", "--no-print-directory", "install", f"DESTDIR={self._installed}"]
        made = subprocess.run(words, cwd=TREE, text=True, capture_output=True, check=False, start_new_session=True)
        if made.returncode != 0:
            raise SystemExit(f"demo failed: make install: {(made.stderr or made.stdout).strip()[-500:]}")
        self.add(*ADDRESSES)
        key = self._must("laptop", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519")
        assert not key
        for name in MEMBERS:
            self._furnish_member(self[name])

    def add(self, *names: str) -> None:
        """Start hosts with these names. A new host replaces an old host of the same name."""
        made: list[Host] = []
        new = [partial(Host, name, ADDRESSES[name], self._mount, self._installed) for name in names]
        try:
            start_all(list(new), self._network, made)
        finally:
            self._all += made
        for host in made:
            self.hosts[host.name] = host
            _furnish(host)

    def close(self) -> None:
        """End all hosts."""
        for host in self._all:
            host.end()
        self._network.end()

    def start(self, name: str, *words: str, ready: str) -> Process:
        """Start a command on a host, wait for `ready` in the log, and return the process.

        Exit with a message if the command exits.
        """
        host = self[name]
        count = len(host.log(ready))
        process = host.start(*words)
        wait_until(lambda: len(host.log(ready)) > count or process.has_ended, f"the start of {words[0]} on {name}")
        if process.has_ended:
            raise SystemExit(f"demo failed: {name}: {' '.join(words)}: {' '.join(host.log()[-3:])}")
        return process

    def cut(self, name: str, *others: str) -> None:
        self._network.cut(self[name], *(self[other] for other in others))

    def heal(self) -> None:
        self._network.heal()

    # ---- logins

    def rehearse(self, name: str, *answers: str) -> Attempt:
        """Log in on a host by `pam-totp rehearse`, with one of `answers` at each prompt. Return the attempt."""
        typed = "".join(f"{answer}\n" for answer in answers)
        begun = time.monotonic()
        done = self[name].run("pam-totp", "rehearse", "sshd", USER, "--json", stdin=typed)
        seconds = time.monotonic() - begun
        try:
            found = json.loads(done.stdout)
        except ValueError:
            return Attempt(accepted=False, texts=(), seconds=seconds, error=done.stderr.strip())
        texts = tuple(message["text"] for message in found["shown"])
        return Attempt(accepted=done.returncode == 0, texts=texts, seconds=seconds)

    def ssh(self, name: str, code: str) -> Attempt:
        """Log in from the laptop to a host with ssh, a key, and `code`. Return the attempt."""
        given = {"SSH_ASKPASS": "/usr/local/bin/type-code", "SSH_ASKPASS_REQUIRE": "force", "CODE": code}
        options = ("StrictHostKeyChecking=no", "NumberOfPasswordPrompts=1", "LogLevel=ERROR")
        words = [word for option in options for word in ("-o", option)]
        begun = time.monotonic()
        done = self["laptop"].run("ssh", *words, f"{USER}@{name}.{DOMAIN}", "echo in as $USER", environment=given)
        accepted = done.stdout == f"in as {USER}\n"
        return Attempt(accepted, (), time.monotonic() - begun, done.stderr.strip())

    def _furnish_member(self, host: Host) -> None:
        host.write("/etc/pam.d/sshd", STACK)
        host.write("/etc/ssh/sshd_config", SSHD)
        host.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/host_key")
        key = self["laptop"].path("/root/.ssh/id_ed25519.pub").read_text()
        host.write(f"/home/{USER}/.ssh/authorized_keys", key, owner=USER_ID)
        self.start(host.name, "/usr/sbin/sshd", "-D", ready="Server listening")

    # ---- database

    def make_database(self) -> None:
        """Create a primary on db1, its standby on db2, and the certificates of all roles."""
        self._certificates.mkdir(mode=0o700)
        for name in ("ca", *DATABASES, OWNER, ROLE, REPLICATOR):
            self._sign(name)
        for name in DATABASES:
            self._give_database(name)
        self._postgres("db1", "initdb", "-D", DATA, "-A", "peer", "-E", "UTF8", "--locale=C", "--no-sync")
        primary = self["db1"]
        primary.write(f"{DATA}/pg_hba.conf", HBA, 0o600, POSTGRES_ID)
        with primary.path(f"{DATA}/postgresql.conf").open("a") as settings:
            settings.write(POSTGRESQL)
        self._start_database("db1")
        psql = _as_postgres("psql", "-v", "ON_ERROR_STOP=1", "-q")
        # These changes must not wait for a standby, because the next call creates the standby.
        self._must("db1", *psql, stdin=f"SET synchronous_commit = local;\n{ROLES}")
        self.make_standby("db2", "db1")
        for name in AUTHORITIES:
            self._give(name, ROLE, f"{ETC}/client", SERVICE_ID)
        self._give(AUTHORITIES[0], OWNER, f"{ETC}/{OWNER}", SERVICE_ID)

    def make_standby(self, name: str, primary: str) -> None:
        """Copy the running database of `primary` to the host `name`, and start it as a synchronous standby."""
        tls = f"sslmode=verify-full sslrootcert={ETC}/ca.crt"
        own = f"sslcert=/var/lib/postgresql/{REPLICATOR}.crt sslkey=/var/lib/postgresql/{REPLICATOR}.key"
        source = f"host={primary} user={REPLICATOR} application_name={name} {tls} {own}"
        self._postgres(name, "pg_basebackup", "-D", DATA, "-d", source, "-R", "-X", "stream", "-c", "fast", "-N")
        self._start_database(name)
        query = _as_postgres("psql", "-Atc", "SELECT count(*) FROM pg_stat_replication WHERE sync_state <> 'async'")
        wait_until(lambda: self._must(primary, *query) == "1", f"the standby {name}")

    def return_database(self, name: str) -> None:
        """Start a killed host of the database again, without the data."""
        self.add(name)
        self._give_database(name)

    def promote(self, name: str) -> None:
        self._postgres(name, "pg_ctl", "promote", "-D", DATA)

    def _start_database(self, name: str) -> None:
        self.start(name, *_as_postgres("postgres", "-D", DATA), ready="database system is ready to accept")

    def _postgres(self, name: str, program: str, *arguments: str) -> None:
        self._must(name, *_as_postgres(program, *arguments))

    def _give_database(self, name: str) -> None:
        host = self[name]
        for folder in ("/var/lib/postgresql", "/run/postgresql"):
            host.path(folder).mkdir(exist_ok=True)
            os.chown(host.path(folder), POSTGRES_ID, POSTGRES_ID)
        self._give(name, name, "/var/lib/postgresql/server", POSTGRES_ID)
        self._give(name, REPLICATOR, f"/var/lib/postgresql/{REPLICATOR}", POSTGRES_ID)

    def _give(self, name: str, certificate: str, path: str, owner: int) -> None:
        """Copy a certificate with its key and its CA to a host."""
        files = self._certificates
        self[name].write(f"{path}.crt", (files / f"{certificate}.crt").read_text())
        self[name].write(f"{path}.key", (files / f"{certificate}.key").read_text(), 0o600, owner)
        self[name].write(f"{ETC}/ca.crt", (files / "ca.crt").read_text())

    def _sign(self, name: str) -> None:
        """Generate a key, and a certificate signed by the database's CA."""
        issuer = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", f"subjectAltName=DNS:{name}"] if name != "ca" else []
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
        files = ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}"]
        subprocess.run([*new, *issuer, *files], cwd=self._certificates, capture_output=True, check=True)

    def _must(self, name: str, *words: str, stdin: str = "") -> str:
        """Run a command as root on a host, and return its output. Exit with a message if the command fails."""
        done = self[name].run(*words, stdin=stdin)
        if done.returncode != 0:
            raise SystemExit(f"demo failed: {name}: {' '.join(words[-3:])}: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()


def postgresql() -> Path | None:
    """Return the folder with the programs of this machine's newest PostgreSQL, or None without PostgreSQL."""
    found = {int(path.parent.name): path for path in Path("/usr/lib/postgresql").glob("[0-9]*/bin")}
    return found[max(found)] if found else None


def missing() -> str | None:
    """Return a message that names the missing requirements of the demo, or None if no requirement is missing."""
    if os.geteuid() != 0:
        return "root is required, because the demo creates namespaces (run 'sudo make fleet-demo')"
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    absent += [package for package in PACKAGES if find_spec(package) is None]
    if postgresql() is None:
        absent.append("PostgreSQL")
    return f"not found: {', '.join(absent)} ('make fleet-demo' installs the packages)" if absent else None


def _as_postgres(program: str, *arguments: str) -> Sequence[str]:
    return ("runuser", "-u", "postgres", "--", f"{postgresql()}/{program}", *arguments)


def _furnish(host: Host) -> None:
    """Write the accounts, names and PAM services of a host, and the folders of pam_totp."""
    lines = [
        f"{name}:x:{number}:{number}::{'/root' if number == 0 else f'/home/{name}'}:/bin/sh"
        for name, number in ACCOUNTS.items()
    ]
    host.write("/etc/passwd", "\n".join(lines) + "\n")
    host.write("/etc/group", "".join(f"{name}:x:{number}:\n" for name, number in ACCOUNTS.items()))
    host.write("/etc/shadow", "".join(f"{name}:*:20000:0:99999:7:::\n" for name in ACCOUNTS), 0o640)
    host.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
    names = "".join(f"{address} {name}.{DOMAIN} {name}\n" for name, address in ADDRESSES.items())
    host.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")
    host.write("/etc/pam.d/runuser", RUNUSER)
    host.write("/usr/local/bin/type-code", '#!/bin/sh\necho "$CODE"\n', 0o755)
    for folder, owner in (("/var/lib/pam_totp", SERVICE_ID), ("/run/pam_totp", SERVICE_ID), (f"/home/{USER}", USER_ID)):
        host.path(folder).mkdir(mode=0o700)
        host.path(folder).chmod(0o755 if folder == "/run/pam_totp" else 0o700)
        os.chown(host.path(folder), owner, owner)
    for folder in ("/etc/ssh", "/etc/security", "/run/sshd", "/root/.ssh", f"/home/{USER}/.ssh"):
        host.path(folder).mkdir(exist_ok=True)
    os.chown(host.path(f"/home/{USER}/.ssh"), USER_ID, USER_ID)
