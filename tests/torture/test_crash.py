"""Tests of logins with a fault at any system call between answer and result.

Rules:
- The store contains the old or the new record after the fault.
- An accepted code is never accepted again. A code that was not used up is accepted at the next login.
- The next login succeeds with a right code. A login creates no file except a missing lock file.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.site import ME, Site, until
from tests.torture.crash import (
    KINDS,
    Call,
    Ended,
    Kind,
    by_helper,
    by_service,
    by_service_thread,
    can_attach,
    enrol_for_a_crash,
    injections,
    judge,
)
from tests.torture.pace import LONG, report
from tests.torture.sites import site_on

pytestmark = [
    pytest.mark.bare,
    pytest.mark.skipif(not can_attach(), reason="requires strace, and permission to attach it to a running process"),
]
AT_ONCE = 2 * (os.cpu_count() or 1)  # concurrent logins: more logins than processors, because logins mostly wait


def calls_of(kind: Kind, log_in: Callable[..., Ended] = by_helper) -> list[Call]:
    """Return the system calls of a login without a fault."""
    with site_on("tmpfs") as site:
        enrol_for_a_crash(site)
        ended = log_in(site, kind.answer())
        assert ended.accepted is kind.right
        judge(site, kind, ended, "no fault was injected")
    names = {call.name for call in ended.calls}
    assert {"openat", "fcntl", "pread64", "pwritev2", "sendmsg"} <= names, names
    return ended.calls


def try_all(kind: Kind, points: Sequence[tuple[Call, str]], log_in: Callable[..., Ended] = by_helper) -> Counter[str]:
    """Log in once with each fault, with a new store for each login. Return the number of logins by result."""

    def try_one(point: tuple[Call, str]) -> str:
        call, injected = point
        with site_on("tmpfs") as site:
            enrol_for_a_crash(site)
            ended = log_in(site, kind.answer(), injected)
            judge(site, kind, ended, f"{kind.name}: {injected} injected at {call.line}")
            if "signal=KILL" in injected:
                assert ended.status == -9, f"{kind.name}: {injected} kills the process"
            return "killed" if ended.status == -9 else "accepted" if ended.accepted else "refused"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        counted = Counter(pool.map(try_one, points))
    assert counted.total() == len(points)
    process = {by_helper: "helper", by_service: "service", by_service_thread: "service's thread"}[log_in]
    results = ", ".join(f"{n} {what}" for what, n in counted.items())
    report(f"faults in the {process}, {kind.name}: {len(points)} injected, {results}")
    return counted


def some(kind: str, points: Sequence[tuple[Call, str]]) -> list[tuple[Call, str]]:
    """Return the faults of the short form, which `make test` runs.

    For the kind `hotp`: a kill at every call, EIO at every call that can fail, and a short result at the calls of
    `SHORT`. For other kinds: kills at pread64, pwritev2, fsync and sendmsg.
    """
    if kind == "hotp":
        return [p for p in points if "KILL" in p[1] or "EIO" in p[1] or "retval" in p[1]]
    return [p for p in points if "KILL" in p[1] and p[0].name in ("pread64", "pwritev2", "fsync", "sendmsg")]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_the_helper_leaves_the_old_or_the_new_record(kind: str) -> None:
    points = injections(calls_of(KINDS[kind]))
    counted = try_all(KINDS[kind], points if LONG else some(kind, points))
    assert counted["killed"] >= 5
    if LONG or kind == "hotp":
        assert counted["killed"] >= 30
        assert counted["refused"] >= 20, "at least 20 failed calls lead to a refusal"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("log_in", [by_service, by_service_thread], ids=["loop", "thread"])
@pytest.mark.parametrize("kind", KINDS if LONG else ["recovery"])
def test_a_fault_in_the_service_leaves_the_old_or_the_new_record(kind: str, log_in: Callable[..., Ended]) -> None:
    points = injections(calls_of(KINDS[kind], log_in))
    counted = try_all(KINDS[kind], points if LONG else some(kind, points), log_in)
    assert counted["killed"] >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_login_creates_only_a_missing_lock_file(kind: str) -> None:
    """A login overwrites the secret file in place, so no temporary file contains a secret."""
    made = [call.line for call in calls_of(KINDS[kind]) if re.search(r"O_CREAT|O_TMPFILE|memfd|mkdir|mknod", call.line)]
    names = [re.search(r'openat\(4, "([^"]+)", .*, 0600\)', shown) for shown in made]
    assert all(names), made
    assert {name[1] for name in names if name is not None} == {".lock"}


@pytest.mark.parametrize("error", ["ENOLCK", "EIO", "EOPNOTSUPP", "EINVAL"])
def test_a_file_system_without_locks_is_refused_with_a_reason(site: Site, error: str) -> None:
    """NFS without its lock daemon returns ENOLCK. A file system without locks returns EOPNOTSUPP or EINVAL."""
    enrol_for_a_crash(site)
    before = site.path().read_bytes()
    ended = by_service(site, KINDS["hotp"].answer(), f"fcntl:error={error}")
    assert ended.messages == [b"r9"]
    assert site.path().read_bytes() == before
    reason = {"ENOLCK": "No locks available", "EIO": "Input/output error", "EINVAL": "Invalid argument"}
    until(lambda: site.log.has("error", f"user={ME}", reason.get(error, "not supported")), "the reason is logged")
