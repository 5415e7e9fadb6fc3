"""Tests of logins through a real cluster of Patroni, with the settings of examples/patroni.yml.

Rules:
- Only the long form of the torture tests runs these tests: Patroni needs up to a minute after each loss of a server.
- Four processes offer the same codes: two of them try the primary first, and two another server.
- Each code was accepted at most once after any loss of the primary, counters only increased, and used codes are
  refused.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from pam_totp.store import StoreError
from pam_totp.store.postgres import PostgresStore, initialise
from pam_totp.store.postgres_schema import NONE, SYNCHRONOUS
from pam_totp.system.doctor.checks_machine import store
from pam_totp.system.doctor.context import Context
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.findings import Code
from tests.support.patroni import AUTHORITY, OWNER, SLOW, Cluster, Node, cluster, with_patroni
from tests.support.site import KEY, PATIENCE, until
from tests.torture.failover import USERS, Crowd, check, enrol, log_in
from tests.torture.pace import LONG, report, rounds

pytestmark = [
    with_patroni,
    pytest.mark.skipif(not LONG, reason="a cluster of Patroni (make torture)"),
    pytest.mark.timeout(3600),
]
Lose = Callable[[Cluster, Node], Callable[[], None]]  # lose the primary, and return the function that repairs it
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
FEW = USERS[:3]
NO_ANSWER = "gave no answer in time (is a standby connected?)"


def prepared(running: Cluster, replication: str = SYNCHRONOUS) -> Cluster:
    """Create the tables as their owner, and grant them to the role of the authorities. Return the cluster."""
    in_network(running, lambda: initialise(running.url(OWNER), replication, AUTHORITY))
    return running


def in_network(running: Cluster, work: Callable[[], object]) -> None:
    """Run `work` in a child process, in the network of the cluster."""
    child = os.fork()
    if child == 0:
        try:
            running.enter()
            work()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture(scope="module")
def strict() -> Iterator[Cluster]:
    """Yield a cluster that always waits for a standby."""
    with cluster() as running:
        yield prepared(running)


def store_of(running: Cluster) -> PostgresStore:
    return PostgresStore(running.local_url(), wait=PATIENCE)


def the_primary(running: Cluster, *, synchronous: bool = True) -> Node:
    """Wait until the cluster has a primary and two standbys, and return the primary."""
    until(lambda: running.has_standbys(synchronous=synchronous), "a primary and two standbys run", SLOW)
    primary = running.primary()
    assert primary is not None
    return primary


def urls(running: Cluster, primary: Node) -> list[str]:
    """Return the URLs of four processes: two of them try the primary first, and two try it last."""
    others = [node.name for node in running.others(primary)]
    return [running.url(order=order) for order in ([primary.name, *others], [*others, primary.name])] * 2


def power_cut(running: Cluster, primary: Node) -> Callable[[], None]:
    primary.kill()
    return primary.start


def killed_database(running: Cluster, primary: Node) -> Callable[[], None]:
    primary.kill_database()
    return lambda: None


def frozen_server(running: Cluster, primary: Node) -> Callable[[], None]:
    primary.freeze(with_database=True)
    return primary.thaw


def cut_off(running: Cluster, primary: Node) -> Callable[[], None]:
    """Disconnect the primary from the other servers only. Return a function that connects it again."""
    running.cut_off(primary)
    return lambda: running.reconnect(primary)


def two_primaries(running: Cluster, primary: Node) -> Callable[[], None]:
    """Freeze only Patroni on the old primary, so that two primaries accept writes. Return its function `thaw`."""
    primary.freeze()
    until(lambda: any(other.is_primary() for other in running.others(primary)), "another server is promoted", SLOW)
    until(lambda: primary.sql(WAITING) != [(0,)], "a login waits for a standby of the old primary")
    assert primary.is_primary()
    return primary.thaw


@pytest.mark.parametrize("lose", [power_cut, killed_database, frozen_server, cut_off, two_primaries])
def test_a_lost_primary_accepts_no_code_twice(strict: Cluster, lose: Lose) -> None:
    for number in range(rounds(1, 3)):
        primary = the_primary(strict)
        for user in USERS:
            enrol(store_of(strict), user)
        crowd = Crowd(urls(strict, primary), strict.enter, wait=2.0)
        try:
            lose_and_repair(strict, primary, crowd, lose)
            crowd.stop()
            accepted, refused, gap = crowd.accepted(), crowd.refused(), crowd.gap()
        finally:
            crowd.remove()
        check(store_of(strict), accepted)
        name = lose.__name__.replace("_", " ")
        report(f"{name} {number + 1}: {len(accepted)} accepted, {refused} refused, gap {gap:.1f} s, none again")


def lose_and_repair(running: Cluster, primary: Node, crowd: Crowd, lose: Lose) -> None:
    """Lose the primary while the crowd logs in. Wait until the old primary is a standby of another server."""

    def more(number: int, what: str) -> None:
        known = len(crowd.accepted())
        until(lambda: len(crowd.accepted()) >= known + number, what, SLOW)

    more(200, "the crowd logs in")
    repair = lose(running, primary)
    if lose is not killed_database:  # Patroni can start PostgreSQL again
        until(lambda: any(other.is_primary() for other in running.others(primary)), "a standby is promoted", SLOW)
    more(100, "logins succeed again")
    repair()
    until(running.has_standbys, "the old primary is a standby", SLOW)
    more(100, "logins still succeed")


def offered_to_both(running: Cluster, old: Node) -> list[tuple[str, str]]:
    """Freeze Patroni on the old primary, and offer a code of each user to both primaries.

    Return the outcomes of each user: at the old and at the new primary.
    """
    for user in FEW:
        enrol(store_of(running), user)
    old.freeze()
    until(lambda: any(node.is_primary() for node in running.others(old)), "a standby is promoted", SLOW)
    (new,) = [node for node in running.others(old) if node.is_primary()]
    assert old.is_primary()
    follows = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
    until(lambda: new.sql(follows) == [(1,)], "a standby follows the new primary", SLOW)
    stores = [PostgresStore(running.local_url([node]), wait=5.0) for node in (old, new)]
    return [(log_in(stores[0], hotp(KEY, 0), user), log_in(stores[1], hotp(KEY, 0), user)) for user in FEW]


def test_of_two_primaries_only_the_new_primary_accepts(strict: Cluster) -> None:
    old = the_primary(strict)
    try:
        words = offered_to_both(strict, old)
    finally:
        old.thaw()
    assert words == [("unavailable", "code")] * len(FEW)
    until(strict.has_standbys, "the old primary is a standby", SLOW)


def test_both_primaries_of_an_asynchronous_cluster_accept() -> None:
    """A code is accepted twice if no standby is required, so the check of the test above can fail."""
    with cluster(strict=False) as running:
        running.change(synchronous_mode=False)
        prepared(running, NONE)
        words = offered_to_both(running, the_primary(running, synchronous=False))
    assert words == [("code", "code")] * len(FEW)


def test_doctor_asks_patroni_and_patronictl_lists_the_servers(strict: Cluster, tmp_path: Path) -> None:
    primary = the_primary(strict)
    folder = tmp_path / "etc" / "patroni"
    folder.mkdir(parents=True)
    site = tmp_path / "etc" / "pam_totp.toml"
    site.write_text(f'[store]\nurl = "{strict.local_url()}"\nwait = 60\n')
    site.chmod(0o644)
    context = Context(Machine(str(tmp_path)), [])

    def check_findings(*expected: Code) -> None:
        assert [finding.code for finding in store(context)] == [*expected]

    check_findings(Code.PATRONI_NOT_CHECKED)
    shutil.copy(primary.folder / "patroni.yml", folder / "config.yml")
    in_network(strict, check_findings)
    strict.change(synchronous_mode_strict=False)
    in_network(strict, lambda: check_findings(Code.PATRONI_NOT_STRICT))
    strict.change(synchronous_mode_strict=True)
    listed = strict.patronictl("list")
    assert [listed.count(role) for role in ("Leader", "Sync Standby", "Replica")] == [1, 1, 1], listed


def reason(running: Cluster, counter: int) -> str:
    """Log in, and return the outcome or the reason why the database could not be used."""
    impatient = PostgresStore(running.local_url(), wait=3.0)
    try:
        impatient.update("alice", lambda record: (record.refused_uncounted(), None))
    except StoreError as e:
        return str(e)
    return log_in(impatient, hotp(KEY, counter))


def test_without_a_standby_every_answer_is_refused(strict: Cluster) -> None:
    primary = the_primary(strict)
    enrol(store_of(strict))
    assert reason(strict, 0) == "code"
    for standby in strict.others(primary):
        standby.kill()
    for _ in range(20):
        assert NO_ANSWER in reason(strict, 1)
    assert primary.sql("SHOW synchronous_standby_names") != [("",)]
    for standby in strict.others(primary):
        standby.start()
    until(strict.has_standbys, "the standbys are back", SLOW)
    assert reason(strict, 2) == "code"


def test_without_strict_mode_the_guard_refuses_every_answer() -> None:
    with cluster(strict=False) as running:
        prepared(running)
        primary = the_primary(running)
        enrol(store_of(running))
        assert reason(running, 0) == "code"
        for standby in running.others(primary):
            standby.kill()
        until(lambda: primary.sql("SHOW synchronous_standby_names") == [("",)], "Patroni stops waiting", SLOW)
        for _ in range(20):
            assert "synchronous_standby_names is empty" in reason(running, 1)
        for standby in running.others(primary):
            standby.start()
        until(running.has_standbys, "the standbys are back", SLOW)
        assert reason(running, 1) == "code"
