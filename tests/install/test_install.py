"""Tests of `make install` and `make uninstall`: files, permissions, units, extras, and a login by a simulated token."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pam_totp.cli import parser
from pam_totp.core.secretfile import parse
from pam_totp.core.slots import decode
from pam_totp.formats.otpauth import typed_secret
from pam_totp.formats.registry import EXPORT_FORMATS, FORMATS
from tests.install.machine import COMMAND, LATE, Fresh
from tests.services.namespace import STORE
from tests.support.etc import PASSWORD, STACKS
from tests.support.package_index import Index
from tests.support.site import PATIENCE, TREE, Site, codes, fob, phone, until

DATA = TREE / "pam_totp/system/data"
LIB = "/usr/local/lib/pam_totp"
UNITS = "/usr/local/lib/systemd/system"
INSTALLED = (
    "/usr/local/bin/pam-totp",
    "/usr/local/bin/token-sim",
    f"{LIB}/pam_totp/pam/helper.py",
    f"{LIB}/pam_totp/system/radiusd.conf",
    f"{LIB}/token_sim/cli/__init__.py",
    f"{UNITS}/pam_totp.socket",
    f"{UNITS}/pam_totp.service",
    f"{UNITS}/pam_totp-takeback.service",
    f"{UNITS}/pam_totp-portal.service",
    f"{UNITS}/pam_totp-authority.service",
    f"{UNITS}/pam_totp-metrics.service",
    f"{UNITS}/pam_totp-metrics.timer",
    "/etc/pam.d/pam_totp-portal",
    "/etc/fail2ban/filter.d/pam_totp.conf",
    "/etc/fail2ban/jail.d/pam_totp.conf",
    "/usr/local/share/man/man8/pam_totp.8",
    "/usr/local/share/man/man5/pam_totp.toml.5",
    "/usr/local/share/man/man1/pam-totp.1",
    "/usr/local/share/man/man1/token-sim.1",
    "/usr/local/share/bash-completion/completions/pam-totp",
)


class SimulatedToken:
    """A token from the simulated factory, in a process of token-sim with a pseudo-serial port."""

    def __init__(self, folder: Path) -> None:
        box = folder / "box"  # a short name: the path of a socket in this folder must have at most 107 bytes
        self._sim("factory", "--count", "1", "--out", box)
        seeds = (box / "seeds.csv").read_text().splitlines()
        self.seed = f"hex:{seeds[-1].split(',')[1]}"
        self._port = folder / "port"
        file = next(box.glob("*.token"))
        self._process = subprocess.Popen([*self._command, "run", file, "--link", self._port], stdout=subprocess.DEVNULL)
        until(
            lambda: self._port.exists() or self._process.poll() is not None,
            "the simulator creates its port, or exits",
        )
        assert self._port.exists()

    @property
    def _command(self) -> list[str]:
        return [sys.executable, "-m", "token_sim.cli"]

    def _sim(self, *words: str | Path) -> str:
        return subprocess.run([*self._command, *words], cwd=TREE, check=True, text=True, capture_output=True).stdout

    def press(self) -> str:
        return self._sim("press", "--port", self._port).strip()

    def unplug(self) -> None:
        self._process.terminate()
        self._process.wait()


def test_from_install_to_uninstall_with_a_simulated_token(machine: Fresh, tmp_path: Path) -> None:
    token = SimulatedToken(tmp_path)
    try:
        machine.path(f"{STORE}/alice.record").unlink()
        assert machine.make("uninstall").returncode == 0
        assert not any(machine.path(p).exists() for p in INSTALLED)
        assert machine.make("install").returncode == 0
        enrolled = machine.installed("enroll", "alice", "--type", "hotp", "--secret-stdin", "--yes", stdin=token.seed)
        assert enrolled.returncode == 0, enrolled.stderr

        first = machine.enable("sudo", LATE, code=token.press())
        second = machine.sudo(COMMAND, "enable", "sudo", "--keep")
        second.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(token.press())
        assert (second.ends()[0], first.ends()[0]) == (0, 0)

        code = token.press()
        login = machine.sudo("id", "-un")
        login.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(code)
        assert login.ends() == (0, "\r\nroot\r\n")
        again = machine.sudo("id", "-un")
        again.asks("alice: ").says(PASSWORD).asks("One-time code: ").fails(code)
        again.asks("Sorry, try again.").asks("alice: ")
        assert again.interrupts()[0] == 1
        assert machine.installed("doctor").returncode == 0

        refused = machine.make("uninstall")
        assert (refused.returncode != 0, "/etc/pam.d/sudo" in refused.stderr) == (True, True)
        assert all(machine.path(p).exists() for p in INSTALLED), "a refused uninstall removes nothing"

        assert machine.installed("disable", "sudo").returncode == 0
        secret = machine.path(f"{STORE}/alice.record").read_bytes()
        removed = machine.make("uninstall")
        assert removed.returncode == 0, removed.stderr
        assert machine.path(f"{STORE}/alice.record").read_bytes() == secret, "uninstall keeps the secrets"
        assert machine.run("getent", "passwd", "pam_totp").returncode == 0, (
            "uninstall keeps the account that owns the secrets"
        )
        assert not any(machine.path(p).exists() for p in INSTALLED)
        assert not machine.path(f"{machine.modules}/pam_totp.so").exists()
        assert {s: machine.pam_d()[s] for s in STACKS} == STACKS
        login = machine.sudo("id", "-un")
        login.asks("alice: ").says(PASSWORD)
        assert login.ends() == (0, "\r\nroot\r\n")

        machine.shell(f"rm -rf {STORE}/*; mkdir -p {STORE}/.serial")
        machine.make("uninstall")
        assert machine.run("getent", "passwd", "pam_totp").returncode != 0, (
            "without secrets, uninstall removes the account"
        )
    finally:
        token.unplug()
        assert machine.make("install").returncode == 0
    assert parse(decode(secret).document).tokens[0].secret == typed_secret(token.seed)


@pytest.mark.parametrize(
    "line", ["auth required pam_totp.so\n", "auth required /x/pam_totp.so nullok\n", "auth required \\\n pam_totp\n"]
)
def test_uninstall_refuses_while_any_service_names_the_module(machine: Fresh, line: str) -> None:
    machine.write("/etc/pam.d/vlock", line)
    try:
        done = machine.make("uninstall")
        assert (done.returncode != 0, "/etc/pam.d/vlock" in done.stderr) == (True, True)
        assert machine.path(LIB).exists()
    finally:
        machine.path("/etc/pam.d/vlock").unlink()


def test_installing_again_keeps_secrets_and_replaces_the_whole_folder(machine: Fresh) -> None:
    inode = machine.path(LIB).stat().st_ino
    secret = machine.path(f"{STORE}/alice.record").read_bytes()
    assert machine.make("install").returncode == 0
    assert machine.path(LIB).stat().st_ino != inode, "a new folder replaces the old folder"
    assert machine.path(f"{STORE}/alice.record").read_bytes() == secret
    assert not [p.name for p in machine.path(LIB).parent.iterdir() if p.name.startswith("pam_totp.")]


def test_root_owns_the_installed_files_and_the_account_the_store(machine: Fresh) -> None:
    installed = f"{LIB} {machine.modules}/pam_totp.so /usr/local/bin/pam-totp"
    loose = machine.shell(rf"find {installed} ! -type l \( ! -user root -o -perm /022 \)")
    assert loose == ""
    assert machine.shell(f"stat -c '%a %U %G' {STORE}") == "700 pam_totp pam_totp"
    assert machine.shell("getent passwd pam_totp | cut -d: -f6,7") == "/nonexistent:/usr/sbin/nologin"


def test_the_command_needs_only_the_distributions_interpreter(machine: Fresh) -> None:
    """The command ignores site packages and the environment. `make install` compiles the modules to byte code."""
    assert machine.path(COMMAND).read_text().startswith("#!/usr/bin/python3 -IS\n")
    done = machine.run("env", "PYTHONPATH=/nonsense", "PYTHONHOME=/nonsense", COMMAND, "--version")
    assert (done.returncode, done.stdout[:9]) == (0, "pam-totp ")
    assert machine.run("/usr/local/bin/token-sim", "--version").returncode == 0
    compiled = machine.shell(
        f"find {LIB}/pam_totp -name '*.py' | wc -l; find {LIB}/pam_totp -name '*.pyc' | wc -l"
    ).split()
    assert compiled[0] == compiled[1]


def test_the_relay_contains_the_path_of_the_installed_helper(machine: Fresh) -> None:
    assert f"{LIB}/pam_totp/pam/helper.py".encode() in machine.path(f"{machine.modules}/pam_totp.so").read_bytes()
    assert str(TREE).encode() not in machine.path(f"{machine.modules}/pam_totp.so").read_bytes()


def test_the_units_are_valid_and_the_service_is_hardened(machine: Fresh) -> None:
    if not machine.path("/usr/bin/systemd-analyze").exists():
        pytest.skip("requires systemd")
    units = [
        f"{UNITS}/{u}"
        for u in (
            "pam_totp.socket",
            "pam_totp.service",
            "pam_totp-takeback.service",
            "pam_totp-portal.service",
            "pam_totp-authority.service",
            "pam_totp-metrics.service",
            "pam_totp-metrics.timer",
        )
    ]
    verified = machine.run("systemd-analyze", "verify", "--man=no", *units)
    printed = [line for line in verified.stderr.splitlines() if "pam_totp" in line]
    assert (verified.returncode, printed) == (0, [])
    for unit, most in (
        ("pam_totp.service", 15),
        ("pam_totp-takeback.service", 35),
        ("pam_totp-portal.service", 30),
        ("pam_totp-authority.service", 15),
        ("pam_totp-metrics.service", 30),
    ):  # the threshold, in tenths of systemd's exposure level
        done = machine.run("systemd-analyze", "security", "--offline=true", f"--threshold={most}", f"{UNITS}/{unit}")
        assert done.returncode == 0, done.stdout[-300:]


def test_an_upgrade_restarts_the_service_before_it_repairs_the_store(machine: Fresh) -> None:
    """The running service might be an older version, and might be writing the files that a repair deletes."""
    programs = "/usr/local/stub"
    machine.shell(f"rm -rf {STORE}/.lock {STORE}/.decoy; mkdir -p /run/systemd/system {programs}")
    log = f'echo "$1 $([ -e {STORE}/.lock ] && echo repaired)" >>/run/systemd/calls'
    machine.write(f"{programs}/systemctl", f"#!/bin/sh\n{log}\n", 0o755)
    try:
        path = f"PATH={programs}:{machine.environment()['PATH']}"
        assert machine.run("env", path, "make", "-C", str(TREE), "install").returncode == 0
        calls = machine.path("/run/systemd/calls").read_text().splitlines()
        assert calls == ["daemon-reload ", "enable ", "enable ", "try-restart "]
        assert machine.path(f"{STORE}/.lock").exists()
    finally:
        machine.shell(f"rm -rf {programs} /run/systemd/system /run/systemd/calls")


def test_the_service_uses_the_socket_that_systemd_passes_on(machine: Fresh) -> None:
    if not machine.path("/usr/bin/systemd-socket-activate").exists():
        pytest.skip("requires systemd")
    unit = machine.path(f"{UNITS}/pam_totp.service").read_text()
    command = next(line.removeprefix("ExecStart=") for line in unit.splitlines() if line.startswith("ExecStart="))
    machine.shell("mkdir -p /run/pam_totp")
    # The unit names this account in User=.
    as_account = ["setpriv", "--reuid=pam_totp", "--regid=pam_totp", "--clear-groups"]
    listening = machine.start(
        "systemd-socket-activate", "--seqpacket", "--listen=/run/pam_totp/socket", *as_account, *command.split()
    )
    until(machine.path("/run/pam_totp/socket").exists, "systemd-socket-activate creates the socket")
    try:
        findings = machine.installed("doctor", "--json").stdout
        assert '"check": "socket"' not in findings
    finally:
        listening.terminate()
        listening.wait()


@pytest.mark.bare
def test_the_service_makes_no_system_call_that_its_unit_forbids(machine: Fresh) -> None:
    """The unit's filter makes a forbidden call fail. The trace covers the whole run of the service, with a login."""
    if not machine.path("/usr/bin/systemd-analyze").exists():
        pytest.skip("requires systemd")
    unit = machine.path(f"{UNITS}/pam_totp.service").read_text()
    allowed: set[str] = set()
    for filters in re.findall(r"^SystemCallFilter=(.*)$", unit, re.M):
        named = {call for group in filters.lstrip("~").split() for call in syscalls(machine, group)}
        allowed = allowed - named if filters.startswith("~") else allowed | named
    machine.shell("mkdir -p /run/pam_totp/service; chown pam_totp: /run/pam_totp /run/pam_totp/service")
    options = ["--metrics", "/run/pam_totp/service/metrics", "--socket", "/run/pam_totp/socket"]
    assert " ".join(["serve", *options[:2]]) in unit
    program = ["setpriv", "--reuid=pam_totp", "--regid=pam_totp", "--clear-groups", "--no-new-privs", COMMAND, "serve"]
    traced = machine.start("strace", "-f", "-qq", "-o", "/run/trace", *program, *options)
    until(machine.path("/run/pam_totp/socket").exists, "the service creates its socket")
    try:
        machine.write("/root/one", "auth required pam_totp.so nodelay\naccount required pam_permit.so\n")
        done = machine.installed("rehearse", "one", "alice", "--stack", "/root/one", stdin=f"{codes(0)}\n")
        assert done.returncode == 0, done.stderr
        assert machine.installed("stats", "--textfile", "/run/metrics.prom").returncode == 0
        metrics = machine.path("/run/metrics.prom").read_text()
        assert 'pam_totp_answers_total{role="service",service="one",outcome="accepted",reason="code"} 1' in metrics
        assert "pam_totp_store_up 1" in metrics
    finally:
        os.kill(machine.pid("/usr/bin/python3", "-IS", COMMAND, "serve", *options), signal.SIGTERM)
        traced.wait(PATIENCE)
    trace = machine.path("/run/trace").read_text()
    assert "AF_UNIX" in trace and "fsync" in trace, "the service listened and recorded the login"
    begun = trace[trace.index(f'execve("{COMMAND}"') :]  # after the calls of setpriv
    assert set(re.findall(r"^\d+ +(\w+)\(", begun, re.M)) - allowed == set()


def syscalls(machine: Fresh, group: str) -> set[str]:
    """Return the system calls in `group` and in its subgroups."""
    if not group.startswith("@"):
        return {group}
    printed = machine.shell(f"systemd-analyze syscall-filter {group}")
    printed = re.sub(r"\x1b\[\d*m", "", printed)  # systemd 255 resets colours even without a terminal
    words = [line.split("#")[0].strip() for line in printed.splitlines()]
    return {call for word in words[1:] if word for call in syscalls(machine, word)}


# ---- DESTDIR=, EXTRAS=, the manual, and completion in bash


def test_destdir_is_honoured_and_needs_no_root(tmp_path: Path) -> None:
    place = tmp_path / "package"
    make = ["make", "--no-print-directory", f"DESTDIR={place}", "PREFIX=/usr"]
    subprocess.run([*make, "install"], cwd=TREE, check=True, capture_output=True)
    files = {str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()}
    assert {
        "usr/bin/pam-totp",
        "usr/lib/pam_totp/pam_totp/pam/helper.py",
        "usr/lib/systemd/system/pam_totp.socket",
    } <= files
    filled_in = [f for f in files if f.endswith((".service", ".socket", "bin/pam-totp"))]
    assert not any(re.search("@[A-Z]+@", (place / f).read_text()) for f in filled_in)
    module = next(place.glob("usr/lib*/**/security/pam_totp.so"))
    assert b"/usr/lib/pam_totp/pam_totp/pam/helper.py\0" in module.read_bytes()
    compiled = next((place / "usr/lib/pam_totp/pam_totp/pam/__pycache__").glob("helper.*.pyc")).read_bytes()
    assert b"/usr/lib/pam_totp/pam_totp/pam/helper.py" in compiled
    assert str(place).encode() not in compiled
    drop_in = place / "etc/systemd/system/pam_totp.service.d/10-pam_totp-network.conf"  # of a member
    ca_key = place / "etc/pam_totp/authority/ca.key"
    for file in (drop_in, ca_key):
        file.parent.mkdir(parents=True)
        file.touch()
    done = subprocess.run([*make, "uninstall"], cwd=TREE, check=True, capture_output=True, text=True)
    assert [p for p in place.rglob("*") if p.is_file()] == [ca_key]
    assert f"the keys and certificates in {ca_key.parent} are kept" in done.stdout
    assert not drop_in.parent.exists()


def test_a_private_clone_installs_files_that_all_users_can_read(tmp_path: Path) -> None:
    tree, place = cloned(tmp_path / "clone"), tmp_path / "place"
    subprocess.run(["chmod", "-R", "go=", tree], check=True)
    make = ["make", "--no-print-directory", f"DESTDIR={place}", "install"]
    subprocess.run(make, cwd=tree, check=True, capture_output=True)
    closed = [str(p.relative_to(place)) for p in place.rglob("*") if not p.stat().st_mode & 0o004]
    assert closed == ["var/lib/pam_totp"]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    """Return a package index for pip. The index contains only segno, in a version that setup.cfg accepts."""
    made = Index(tmp_path / "index")
    made.stub("segno", "1.6.6")
    return made


def cloned(folder: Path) -> Path:
    """Copy the files that `make install` reads, as in a clone. Return the folder of the copy."""
    shutil.copytree(TREE, folder, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "tests"))
    shutil.copytree(TREE / ".ci", folder / ".ci")
    return folder


def install_below(place: Path, tree: Path, extras: str, index: Index) -> subprocess.CompletedProcess[str]:
    make = ["make", "--no-print-directory", f"DESTDIR={place}", f"EXTRAS={extras}", "install"]
    return subprocess.run(make, cwd=tree, env=index.environment, text=True, capture_output=True, check=False)


def test_extras_leave_the_source_tree_unchanged(tmp_path: Path, index: Index) -> None:
    tree, place = cloned(tmp_path / "clone"), tmp_path / "place"
    before = {p.relative_to(tree) for p in tree.rglob("*")}
    done = install_below(place, tree, "qr", index)
    assert {p.relative_to(tree) for p in tree.rglob("*")} == before
    assert done.returncode == 0, done.stderr
    extras = place / "usr/local/lib/pam_totp-extras"
    library = next(extras.glob("lib/python*/site-packages"))
    assert (library / "segno-1.6.6.dist-info").is_dir()
    assert not any(extras.rglob("pam_totp*")), "pam_totp itself is in another folder"
    (library / "kept.py").touch()
    assert install_below(place, tree, "qr", index).returncode == 0
    assert (library / "kept.py").exists(), "files of an earlier installation of extras are kept"


@pytest.mark.parametrize(
    ("extras", "reason"),
    [
        ("qr,tui", "No matching distribution found for textual"),
        ("qr,sirial", "make install: unknown extra 'sirial' (choose from qr, serial, tui"),
    ],
)
def test_with_an_unavailable_extra_nothing_is_installed(tmp_path: Path, index: Index, extras: str, reason: str) -> None:
    place = tmp_path / "place"
    done = install_below(place, TREE, extras, index)
    assert (done.returncode != 0, reason in done.stderr) == (True, True), done.stderr
    assert [str(p) for p in place.rglob("*") if not p.is_dir() or p.name.startswith("pam_totp")] == []


def test_files_installed_under_a_strict_umask_can_be_read_by_all(tmp_path: Path) -> None:
    """Other accounts read the files: the service has its own account, and every account can run `pam-totp`."""
    tree, place = cloned(tmp_path / "clone"), tmp_path / "place"
    subprocess.run(["chmod", "-R", "go=", tree], check=True)
    done = subprocess.run(
        ["make", "--no-print-directory", f"DESTDIR={place}", "install"],
        cwd=tree,
        text=True,
        capture_output=True,
        check=False,
        umask=0o077,
    )
    assert done.returncode == 0, done.stderr
    installed = [p for p in place.rglob("*") if not p.is_symlink()]
    wanted = {True: 0o055, False: 0o044}
    hidden = [p for p in installed if p.stat().st_mode & wanted[p.is_dir()] != wanted[p.is_dir()]]
    assert [str(p.relative_to(place)) for p in hidden] == ["var/lib/pam_totp"], "only the store is private to its owner"


@pytest.mark.parametrize(("extras", "needed"), [("", False), ("qr,serial", True)])
def test_the_packages_of_extras_are_required_before_the_installation(extras: str, needed: bool) -> None:
    make = ["make", "-n", f"EXTRAS={extras}", "need-install"]
    printed = subprocess.run(make, cwd=TREE, text=True, capture_output=True, check=True).stdout
    assert ("gcc" in printed, "python3-venv" in printed, "ca-certificates" in printed) == (True, needed, needed)


def test_make_help_has_a_line_for_every_public_target() -> None:
    make = ["make", "--no-print-directory", "help"]
    printed = subprocess.run(make, cwd=TREE, text=True, capture_output=True, check=True).stdout.splitlines()
    listed = re.findall(r"^\.PHONY: (.*)$", (TREE / "Makefile").read_text(), re.M)
    targets = {word for line in listed for word in line.split() if not word.startswith(("need-", "want-", "$("))}
    assert {line.split()[1] for line in printed} == targets
    assert all(len(line.split()) > 2 for line in printed)


@pytest.mark.skipif(os.geteuid() == 0, reason="must not run as root")
def test_an_installation_without_root_fails_and_names_the_reason() -> None:
    done = subprocess.run(["make", "install"], cwd=TREE, text=True, capture_output=True, check=False)
    assert (done.returncode != 0, "root is required" in done.stderr) == (True, True)


def commands() -> dict[str, list[str]]:
    """Return the long options of each command of pam-totp, by the name of the command."""
    sub = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {n: [o for a in p._actions for o in a.option_strings if o.startswith("--")] for n, p in sub.choices.items()}


def test_the_manual_has_all_commands_and_options_of_system_commands() -> None:
    manual = (DATA / "pam-totp.1").read_text()
    words = manual.replace(",", " ").split()
    for name, options in commands().items():
        assert name in words, f"{name} is not in the manual"
        if name in ("enable", "disable", "rehearse", "doctor"):
            for option in set(options) - {"--help"}:
                assert option[1:] in words, f"{name} {option} is not in the manual"


def complete(*words: str) -> list[str]:
    """Return bash's completions of the last of `words`."""
    found = in_completion(
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _pam_totp; printf "%s\\n" "${COMPREPLY[@]}"', *words
    )
    return [word for word in found if word]


def in_completion(script: str, *words: str | Path) -> list[str]:
    """Return the lines that `script` prints with the functions of the completion."""
    script = f'PATH={TREE}/.venv/bin:$PATH; . "$1"; shift; {script}'
    command: list[str | Path] = ["bash", "-c", script, "bash", DATA / "pam-totp.bash", *words]
    return subprocess.run(command, check=True, text=True, capture_output=True).stdout.split("\n")[:-1]


def test_bash_completes_commands_options_and_services() -> None:
    assert complete("pam-totp", "en") == [name for name in commands() if name.startswith("en")]
    assert set(complete("pam-totp", "enable", "--")) == set(commands()["enable"])
    assert complete("pam-totp", "enable", "sudo", "--first-factor", "") == ["password", "key", "key-or-password"]
    assert complete("pam-totp", "enable", "sudo", "--nullok-group", "roo") == ["root"]
    assert set(complete("pam-totp", "doctor", "other")) == {"other"}
    assert "factory" in complete("token-sim", "fa")


def test_bash_completes_the_formats_of_an_import_and_files() -> None:
    assert set(FORMATS) <= set(complete("pam-totp", "import", ""))
    assert complete("pam-totp", "import", "google-a") == ["google-authenticator"]
    assert complete("pam-totp", "import", f"{TREE}/setup.c") == [f"{TREE}/setup.cfg"]
    assert complete("pam-totp", "import", "csv", f"{TREE}/setup.c") == [f"{TREE}/setup.cfg"]
    assert complete("pam-totp", "import", "f", "--map", f"{TREE}/setup.c") == [f"{TREE}/setup.cfg"]


def test_bash_completes_formats_choices_and_devices(tmp_path: Path) -> None:
    assert set(FORMATS) <= set(complete("pam-totp", "import", ""))
    assert set(complete("pam-totp", "export", "alice", "--format", "")) == set(EXPORT_FORMATS)
    assert complete("pam-totp", "list", "--state", "") == ["active", "disabled", "unconfirmed"]
    assert complete("pam-totp", "enroll", "--algorithm", "SHA2") == ["SHA256"]
    assert complete("pam-totp", "qr", "--qr", "") == ["terminal", "ascii", "png=", "svg=", "none"]
    assert complete("pam-totp", "resync", "--port", f"{DATA}/pam-totp.b") == [f"{DATA}/pam-totp.bash"]
    devices = [tmp_path / name for name in ("ttyUSB0", "ttyACM1")]
    for device in (*devices, tmp_path / "tty0"):
        device.touch()
    assert in_completion('_pam_totp_devices "$1"', tmp_path) == list(map(str, devices))


def test_bash_completes_the_serial_numbers_of_the_stock(site: Site) -> None:
    store = ("--store", str(site.store))
    assert site.command("stock", "import", "csv", "-", stdin=f"T-1,{'ab' * 20}\nT-2,{'cd' * 20}\n").returncode == 0
    assert site.command("assign", "T-1", "bob").returncode == 0
    assert complete("pam-totp", "stock", "") == ["import", "list", "remove"]
    assert "google-authenticator" in complete("pam-totp", "stock", "import", "goo")
    assert complete("pam-totp", "stock", *store, "remove", "") == ["T-2"]
    assert complete("pam-totp", "assign", *store, "T") == ["T-2"]
    assert complete("pam-totp", "assign", *store, "T-2", "roo") == ["root"]
    assert complete("pam-totp", "unassign", *store, "") == complete("pam-totp", "return", *store, "") == ["T-1"]


def test_bash_offers_only_possible_arguments(site: Site) -> None:
    hostile = f"$(touch {site.folder}/evaluated)"
    site.enrol(fob(), phone(name="old phone"), fob(name=hostile, secret=b"x" * 20), user="alice")
    site.enrol(user="bob")
    store = ("--store", str(site.store))
    assert complete("pam-totp", "verify", *store, "") == ["alice", "bob"], "the users with a record are offered"
    assert complete("pam-totp", "remove", *store, "bob", "") == ["fob"], "the tokens of this user are offered"
    assert complete("pam-totp", "remove", *store, "alice", "old") == ["old\\ phone"]
    assert len(complete("pam-totp", "remove", *store, "alice", "")) == 3
    assert not (site.folder / "evaluated").exists(), "the shell never evaluates a name"
    assert complete("pam-totp", "unlock", *store, "bob", "") == [], "no completion after the last argument"
    assert "--store" not in complete("pam-totp", "list", *store, "--"), "each option is offered once"
