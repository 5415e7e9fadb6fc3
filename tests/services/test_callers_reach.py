"""Tests of the helper of a real su: the caller of su cannot stop or slow the helper, or make the kernel kill it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from tests.services.namespace import ACCOUNTS, Machine
from tests.support.site import codes, until

# Change all attributes of this process that an ordinary account can change, and execute the arguments.
_PREPARE = """
import os, resource, sys
for path, value in (("/proc/self/oom_score_adj", "1000"), ("/proc/self/timerslack_ns", "1000000000")):
    with open(path, "w") as file:
        file.write(value)
for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (hard if limit == resource.RLIMIT_CORE else 64, hard))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.nice(19)
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
os.execv("/usr/bin/ionice", ["ionice", "-c", "idle", *sys.argv[1:]])
"""
# Enter the cgroup $1, become alice, and execute the other arguments.
_ENTER = """
echo 0 >"/sys/fs/cgroup/$1/cgroup.procs"
shift
exec setpriv --reuid 54001 --regid 54001 --clear-groups "$@"
"""
SU = ("/usr/bin/su", "bob", "-c", "/usr/bin/id -un")


class Caller:
    """A running su that waits at the prompt for the code."""

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self.su = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, env=Machine.environment("alice"), cwd="/"
        )
        assert self.su.stdout is not None
        self._shown = b""
        while not self._shown.endswith(b": "):
            more = os.read(self.su.stdout.fileno(), 4096)
            assert more, self._shown
            self._shown += more

    def answers(self, answer: str) -> Caller:
        assert self.su.stdin is not None
        self.su.stdin.write(f"{answer}\n".encode())
        self.su.stdin.flush()
        return self

    def helper(self) -> int:
        """Return the pid of the helper."""
        (pid,) = Path(f"/proc/{self.su.pid}/task/{self.su.pid}/children").read_text().split()
        return int(pid)

    def ends(self) -> str:
        """Close the input. Return the output."""
        return self.su.communicate(timeout=40)[0].decode()


@pytest.fixture
def cgroups(machine: Machine) -> Iterator[Path]:
    """Mount a cgroup without processes at /sys/fs/cgroup, with a child that is delegated to alice. Yield the path."""
    name = f"pam_totp-test-{os.getpid()}"
    made = machine.run(
        *("sh", "-ec"),
        f"mkdir -p /run/cgroup2 && mount -t cgroup2 test /run/cgroup2 && mkdir -p /run/cgroup2/{name}/alice"
        f" && mount --bind /run/cgroup2/{name} /sys/fs/cgroup",
    )
    if made.returncode != 0:
        machine.run("umount", "/run/cgroup2")
        pytest.skip(f"requires a writable cgroup2: {made.stderr.strip()}")
    root = machine.path("/run/cgroup2") / name
    for file in ("cgroup.procs", "cgroup.freeze"):  # delegate the cgroup, as systemd does
        os.chown(root / "alice" / file, ACCOUNTS["alice"], ACCOUNTS["alice"])
    yield root
    (root / "alice" / "cgroup.kill").write_text("1")
    until(lambda: "populated 0" in (root / "cgroup.events").read_text(), "every process has ended")
    for folder in (*filter(Path.is_dir, root.iterdir()), root):
        folder.rmdir()
    machine.run("umount", "/sys/fs/cgroup", "/run/cgroup2")


def is_frozen(cgroup: Path) -> bool:
    return "frozen 1" in (cgroup / "cgroup.events").read_text()


def test_a_frozen_caller_does_not_block_the_logins_of_its_victim(machine: Machine, cgroups: Path) -> None:
    """Alice gives wrong answers to fifteen `su bob` in parallel, and freezes her cgroup while the helpers decide."""
    machine.stack("su", machine.module_line())
    machine.enrol("bob")
    command = machine.command("sh", "-ec", _ENTER, "sh", "alice", *SU)
    callers = [Caller(command) for _ in range(15)]
    try:
        helpers = {caller.helper() for caller in callers}
        assert set(map(int, (cgroups / "pam_totp.helpers" / "cgroup.procs").read_text().split())) == helpers
        assert not helpers & set(map(int, (cgroups / "alice" / "cgroup.procs").read_text().split()))
        for caller in callers:
            caller.answers("000000")
        machine.log.wait_for("refused user=bob reason=wrong")
        freeze = machine.run("sh", "-c", "echo 1 >/sys/fs/cgroup/alice/cgroup.freeze", user="alice")
        assert freeze.returncode == 0, freeze
        until(partial(is_frozen, cgroups / "alice"), "alice's processes are frozen")
        done = machine.run(*SU, user="alice", stdin=f"{codes(0, 3)}\n")
        assert done.stdout.splitlines()[-1:] == ["bob"], done
        unlocked = machine.pam_totp("unlock", "bob")
        assert unlocked.returncode == 0, unlocked
        assert is_frozen(cgroups / "alice")
    finally:
        (cgroups / "alice" / "cgroup.freeze").write_text("0")
        for caller in callers:
            caller.su.kill()
            caller.ends()


def test_a_helpers_cgroup_belongs_to_root_and_has_the_usual_weight(machine: Machine, cgroups: Path) -> None:
    machine.stack("su", machine.module_line())
    machine.enrol("bob")
    caller = Caller(machine.command("sh", "-ec", _ENTER, "sh", "alice", *SU))
    helpers = cgroups / "pam_totp.helpers"
    assert (helpers.stat().st_uid, helpers.stat().st_mode & 0o022) == (0, 0)
    assert not (helpers / "cpu.weight").exists() or (helpers / "cpu.weight").read_text() == "100\n"
    moved = machine.run("sh", "-c", f"echo {caller.helper()} >/sys/fs/cgroup/alice/cgroup.procs", user="alice")
    assert moved.returncode != 0, "alice cannot move the helper back into her cgroup"
    assert "bob" in caller.answers(codes(0)).ends()


def test_no_descriptor_limit_keeps_a_helper_in_its_callers_cgroup(machine: Machine, cgroups: Path) -> None:
    machine.stack("su", machine.module_line("debug no_second_prompt"))
    machine.enrol("bob")
    with ThreadPoolExecutor() as threads:  # su pauses for a second after a refusal
        for most in range(4, 16):
            limited = ("prlimit", f"--nofile={most}", *SU)
            threads.submit(machine.run, *limited, user="alice", stdin="malformed\n")
    assert len([line for line in machine.log.lines() if "refused user=bob" in line]) > 5
    assert not [line for line in machine.log.lines() if "callers_cgroup" in line]


def test_without_cgroups_a_helper_works_and_writes_a_debug_line(machine: Machine) -> None:
    machine.stack("su", machine.module_line("debug"))
    machine.enrol("bob")
    done = machine.run(*SU, user="alice", stdin=f"{codes(0)}\n")
    assert done.stdout == "bob\n", done
    assert machine.log.wait_for("debug user=bob callers_cgroup=")


def test_a_helper_resets_the_attributes_that_its_caller_may_set(machine: Machine) -> None:
    machine.stack("su", machine.module_line())
    machine.enrol("bob")
    prepared = ("/usr/bin/python3", "-I", "-c", _PREPARE, *SU)
    caller = Caller(machine.command(*prepared, user="alice"))
    su, helper = caller.su.pid, caller.helper()
    assert scheduling(su) == (19, os.SCHED_IDLE, "idle", 1, 1000, 1_000_000_000), "the preparation works"
    assert scheduling(helper) == (0, os.SCHED_OTHER, "none: prio 0", len(os.sched_getaffinity(1)), 0, 50_000)
    limits = dict(
        re.findall(r"^(Max [a-z ]*?[a-z]) {2,}(\S+)", Path(f"/proc/{helper}/limits").read_text(), re.MULTILINE)
    )
    assert (limits["Max core file size"], limits["Max open files"]) == ("0", "1024")
    assert (limits["Max cpu time"], limits["Max file size"]) == ("unlimited", "unlimited")
    assert "bob" in caller.answers(codes(0)).ends()


def scheduling(pid: int) -> tuple[int, int, str, int, int, int]:
    """Return nice value, scheduling policy, I/O priority, processor count, oom_score_adj and timer slack of `pid`."""
    ioprio = subprocess.run(["ionice", "-p", str(pid)], capture_output=True, text=True, check=True).stdout.strip()
    oom, slack = (int(Path(f"/proc/{pid}/{file}").read_text()) for file in ("oom_score_adj", "timerslack_ns"))
    nice, policy = os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid)
    return nice, policy, ioprio, len(os.sched_getaffinity(pid)), oom, slack
