"""Tests that a refusal makes the same system calls to the disk and to locks for every user.

tests/torture/test_crowd.py measures times, in `make torture`.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.operations.tickets import issue_ticket
from tests.conftest import as_root
from tests.logins.test_memory import host
from tests.support.pamconf import Result, service
from tests.support.site import MODULE, Site, codes, fob

__all__ = ["host"]

CALL = re.compile(r"^\d+ +(\w+)\((?:AT_FDCWD|\d+)<([^>]*)>(.*)")
WORK = ("fcntl", "pread64", "pwrite64", "pwritev2", "write", "fsync", "fdatasync", "flock", "renameat", "linkat")
# A filter in the kernel lets all other calls pass without a stop. strace ignores unknown names with ?.
TRACING = ("-f", "--seccomp-bpf", "-y", "-s", "0", "-e", "trace=" + ",".join(f"?{name}" for name in (*WORK, "close")))


def work(site: Site, host: Path, user: str, answer: str) -> list[str]:
    """Log `user` in once, with a helper. Return the helper's calls in the store under a lock, without file names."""
    trace = site.folder / "trace"
    command: list[str | Path] = ["strace", *TRACING, "-o", trace, host, site.confdir, "demo", user]
    done = subprocess.run(command, input=answer, text=True, capture_output=True, check=False)
    assert Result(int(done.stdout)) is Result.AUTH_ERR
    found, is_locked = [], False
    for line in trace.read_text().splitlines():
        call = CALL.match(line)
        if call is None or not call[2].startswith(str(site.store)):
            continue
        name, path, rest = call.groups()
        is_lock = path.endswith("/.lock")
        if name in WORK and (is_locked or is_lock):
            found.append(f"{name} {'RWF_DSYNC ' * ('RWF_DSYNC' in rest)}".rstrip())
        is_locked = (is_locked or (is_lock and name == "fcntl")) and not (is_lock and name == "close")
    return found


@as_root
def test_a_refused_ticket_makes_the_same_system_calls_for_every_user(site: Site, host: Path) -> None:
    """The system calls must be the same for enrolled, invited and unknown users, with `enroll=ticket`."""
    line = f"auth required {MODULE} store={site.store} socket=none nodelay no_second_prompt enroll=ticket"
    service(site.confdir, "demo", line)
    ends = int(time.time()) + 3600
    site.enrol(fob(50), user="daemon")
    site.enrol(fob(confirmed=False), user="bin")
    for user, tokens in (("games", ()), ("mail", (fob(50, name="old", secret=b"9" * 20),))):
        record = issue_ticket(UserRecord(user=user, tokens=tokens), fob(confirmed=False), ends)[0]
        site.enrol(*record.tokens, user=user, ticket=record.ticket)
    users = ("daemon", "bin", "games", "mail")
    for user in users:
        work(site, host, user, "YYYY-YYYY-YYYY-YYYY")  # the first write fills the second slot
    done = {user: work(site, host, user, "ZZZZ-ZZZZ-ZZZZ-ZZZZ") for user in (*users, "nobody", "no-such-account")}
    for calls in done.values():
        if calls.count("pread64") == 2:  # the record is unchanged, so a decoy is also read
            calls.remove("pread64")
    assert all(calls == ["fcntl", "pread64", "pwritev2 RWF_DSYNC"] for calls in done.values()), done


@as_root
@pytest.mark.parametrize("answer", ["000000", "0000000", codes(0, 2), "000000 111111", "ZZZZ-ZZZZ-ZZZZ-ZZZZ", "x"])
def test_a_refusal_makes_the_same_system_calls_for_every_user(site: Site, host: Path, answer: str) -> None:
    line = f"auth required {MODULE} store={site.store} socket=none nodelay no_second_prompt resync_window=0"
    service(site.confdir, "demo", line)
    site.enrol(fob(50), user="daemon")
    site.enrol(fob(enabled=False), user="games")
    site.enrol(fob(confirmed=False), user="bin")
    for user in ("daemon", "games", "bin"):
        work(site, host, user, "YYYY-YYYY-YYYY-YYYY")  # the first write fills the second slot
    done = {user: work(site, host, user, answer) for user in ("daemon", "games", "bin", "nobody", "no-such-account")}
    if answer == "x":
        assert not any(done.values())
        return
    for calls in done.values():
        if calls.count("pread64") == 2:  # the record is unchanged, so a decoy is also read
            calls.remove("pread64")
    assert all(calls == ["fcntl", "pread64", "pwritev2 RWF_DSYNC"] for calls in done.values()), done
