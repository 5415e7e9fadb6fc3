"""Tests of the service: the users that a caller can log in, and faults of the service and of its clients."""

from __future__ import annotations

import errno
import os
import pwd
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pam_totp.core import verify
from pam_totp.core.answer import Answer
from pam_totp.core.oath import Ahead
from pam_totp.core.record import UserRecord
from pam_totp.core.verify import Decision
from pam_totp.operations import verifier as login_verifier
from pam_totp.pam import log_quota, login_quota, login_session, lookups, loop, protocol, service
from pam_totp.pam.admission import peer_uid
from pam_totp.pam.listening import ServiceError
from pam_totp.pam.listening import listening as listening_at
from pam_totp.pam.protocol import PAM_AUTH_ERR, PAM_SUCCESS
from pam_totp.store import file, secret_file
from pam_totp.store.file import LOCK_WAIT
from tests.conftest import as_root
from tests.core.stores import holding
from tests.support.pamconf import Result, Shown
from tests.support.site import ME, OTHER_UID, PATIENCE, TREE, UNPRIVILEGED_UID, Site, codes, fob, until


def connected(site: Site) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(PATIENCE)
    client.connect(str(site.socket))
    return client


def connected_as(uid: int, site: Site) -> socket.socket:
    """Connect from the account `uid`, in a process of root. Return the connection."""
    os.seteuid(uid)
    try:
        return connected(site)
    finally:
        os.seteuid(0)


def listening(site: Site) -> socket.socket:
    """Return a listener at the site's socket."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(site.socket))
    site.socket.chmod(0o666)
    listener.listen()
    return listener


@contextmanager
def serving_here(site: Site, log: Callable[[int, str], None] = lambda *_: None) -> Iterator[None]:
    """Run the service in a thread of this process, until the end of the `with` block."""
    serving = service.Service(listening(site), str(site.store), str(site.config), log)
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        yield
    finally:
        serving.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def hello(user: str, service: str = "demo", version: str = "1", *arguments: str) -> bytes:
    fields = [f"version={version}", f"service={service}", f"user={user}", "flags=0", *(f"arg={a}" for a in arguments)]
    return b"H" + "\0".join(fields).encode()


def dialogue(site: Site, first: bytes, answer: str) -> list[str]:
    """Send `first`, answer every prompt, and return all messages of the service."""
    said = []
    with connected(site) as client:
        client.send(first)
        while packet := client.recv(4097):
            said.append(packet.decode())
            if packet[:1] in (b"p", b"P"):
                client.send(b"A" + answer.encode())
            elif packet[:1] == b"r":
                break
    return said


def as_nobody(site: Site, first: bytes, answer: str) -> list[str]:
    """Run `dialogue` in a process that runs as `nobody`, and return the messages that the service sends."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(UNPRIVILEGED_UID, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
            os.setresuid(UNPRIVILEGED_UID, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
            os.write(write, "\n".join(dialogue(site, first, answer)).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        said = pipe.read().split("\n")
    os.waitpid(child, 0)
    return said


@as_root
def test_an_account_may_log_in_only_as_itself(site: Site) -> None:
    site.start()
    site.enrol(user="nobody")
    site.enrol(user="root")
    assert as_nobody(site, hello("nobody"), codes(0))[-1] == f"r{PAM_SUCCESS}"
    assert as_nobody(site, hello("root"), codes(0)) == [f"r{PAM_AUTH_ERR}"], "another user is refused without a prompt"
    assert as_nobody(site, hello("no-such-account"), codes(0)) == [f"r{PAM_AUTH_ERR}"]
    assert site.log.has("reason=not-yours-to-ask", "user=root", f"uid={UNPRIVILEGED_UID}")
    assert site.counter("root") == 0


@as_root
def test_a_missing_first_pass_is_logged(site: Site) -> None:
    site.start()
    site.enrol()
    site.configure("demo", "use_first_pass", way="socket")
    assert site.login().result is Result.AUTH_ERR
    assert site.log.lines() == [f"pam_totp(demo:auth): refused user={ME} reason=no-answer"]


@as_root
def test_only_a_listed_client_may_give_the_remote_address(site: Site) -> None:
    """Programs such as fail2ban ban addresses in the log, so an ordinary account must not be able to choose them."""
    site.config.write_text('[clients]\nnobody = "web"\n')
    site.start()
    site.enrol(user="nobody")
    for name in ("sshd", "web"):
        as_nobody(site, hello("nobody", name) + b"\0rhost=192.0.2.66", "000000")
    said = [line for line in site.log.lines() if "refused user=nobody" in line]
    assert ["rhost=" in line for line in said] == [False, True]


def test_only_lines_of_the_flooding_account_are_dropped_from_the_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flooded log daemon could drop any line, even lines about guesses through sshd."""
    monkeypatch.setattr(log_quota, "MAX_LINES", 5)
    monkeypatch.setattr(log_quota, "MAX_TOTAL_LINES", 8)
    lines: list[str] = []
    log = log_quota.LogQuota(lambda _, line: lines.append(line))
    for _ in range(50):
        log.of(7)(3, "seven")
    log.of(8)(3, "eight")
    said = 'pam_totp(serve:auth): error problem="further log lines of uid 7 dropped: limit for this minute reached"'
    assert lines == ["seven"] * 5 + [said, "eight"]
    a_minute_on = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: a_minute_on)
    del lines[:]
    for uid in range(20):
        log.of(uid)(3, "one")
    assert lines[:8] == ["one"] * 8
    problem = "further log lines of all accounts that ask about themselves dropped: limit for this minute reached"
    assert lines[8:] == [f'pam_totp(serve:auth): error problem="{problem}"']


@as_root
def test_a_flood_of_refused_logins_never_silences_root_or_listed_clients(site: Site) -> None:
    site.config.write_text('[clients]\ndaemon = "web"\n')
    site.start()
    site.enrol()
    site.enrol(user="nobody")
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(UNPRIVILEGED_UID, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
            for _ in range(2 * log_quota.MAX_LINES):
                with connected(site) as client:
                    client.send(b"nonsense")
                    client.recv(1)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    until(lambda: site.log.has("log lines", f"uid {UNPRIVILEGED_UID}"), "the log reports that the limit is reached")
    assert sum("must be a hello" in line for line in site.log.lines()) == log_quota.MAX_LINES
    as_nobody(site, hello("root"), codes(0))
    assert not site.log.has("not-yours-to-ask"), "the lines of the flooding account are still dropped"
    site.configure("demo", way="socket")
    assert site.gets_in(codes(0))
    assert site.log.has("accepted", f"user={ME}")


@as_root
def test_the_highest_uid_is_logged_correctly() -> None:
    highest = (1 << 32) - 3
    try:
        os.seteuid(highest)
    except OSError:
        pytest.skip("requires a user namespace with all uids")
    try:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    finally:
        os.seteuid(0)
    assert peer_uid(one) == highest
    one.close()
    other.close()


@as_root
def test_an_account_may_set_only_prompt_and_echo(site: Site, tmp_path: Path) -> None:
    site.start()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    mine = ("echo", "prompt=Mine: ", "nullok", f"store={elsewhere}", "look_ahead=100", "user=root", "nonsense")
    assert as_nobody(site, hello("nobody", "demo", "1", *mine), codes(0))[0] == "PMine: "
    site.enrol(user="nobody")
    assert as_nobody(site, hello("nobody", "demo", "1", *mine), codes(11))[-1] == f"r{PAM_AUTH_ERR}"
    assert as_nobody(site, hello("nobody", "demo", "1", *mine), codes(10))[-1] == f"r{PAM_SUCCESS}"


@as_root
def test_an_account_gets_a_second_prompt_only_on_request(site: Site) -> None:
    """Programs that do not run as root, such as screen lockers, expect one prompt."""
    site.config.write_text('[clients]\nnobody = "web"\n')
    site.start()
    site.enrol(user="nobody")
    for name in ("demo", "web"):
        said = [as_nobody(site, hello("nobody", name, "1", *words), "000000") for words in ((), ("second_prompt",))]
        assert [sum(message[0] == "p" for message in messages) for messages in said] == [1, 2]


@as_root
def test_a_listed_client_may_name_any_user_under_its_own_service(site: Site) -> None:
    site.config.write_text('[clients]\nnobody = "web"\n[service.web]\nlook_ahead = 2\n')
    site.start()
    site.enrol(user="alice")
    assert as_nobody(site, hello("alice", "sshd"), codes(0)) == [f"r{PAM_AUTH_ERR}"]
    assert as_nobody(site, hello("alice", "web", "1", "look_ahead=50"), codes(3))[-1] == f"r{PAM_AUTH_ERR}"
    assert as_nobody(site, hello("alice", "web"), codes(2))[-1] == f"r{PAM_SUCCESS}"


@as_root
def test_a_site_file_that_others_can_write_denies(site: Site) -> None:
    site.start()
    site.enrol()
    site.configure("demo", way="socket")
    site.config.write_text("[policy]\nlook_ahead = 100\n")
    site.config.chmod(0o666)
    assert site.login(codes(50)).result is Result.SERVICE_ERR
    site.config.chmod(0o644)
    assert site.login(codes(50)).result is Result.SUCCESS


@pytest.mark.parametrize("version", ["", "0", "2", "1 ", "01"])
def test_an_unknown_protocol_version_gets_an_error(site: Site, version: str) -> None:
    site.start()
    assert dialogue(site, hello(ME, "demo", version), codes(0)) == ["r3"]


@pytest.mark.parametrize(
    "first",
    [
        *(b"H", b"X", b"A123456", b"Hversion=1", b"\xff" * 100, b"H" + b"x" * 4096),
        *(hello(ME) + b"\0", hello(ME) + b"\0user=root", hello(ME) + b"\0shell=sh", hello(ME) + b"\0arg"),
        hello(ME).replace(b"flags=0", b"flags=x"),
    ],
)
def test_a_malformed_hello_gets_no_result(site: Site, first: bytes) -> None:
    site.start()
    assert dialogue(site, first, codes(0)) == []
    until(lambda: site.log.has("error", "problem="), "the error is logged")


@pytest.mark.parametrize("answer", [b"", b"X", b"A" + b"1" * 513, b"A12\x0034", b"Nx", b"H", b"A" + b"1" * 5000])
def test_a_malformed_answer_gets_no_result_and_no_trace(site: Site, answer: bytes) -> None:
    site.start()
    site.enrol()
    before = site.path().read_bytes()
    with connected(site) as client:
        client.send(hello(ME))
        assert client.recv(4097)[:1] == b"p"
        client.send(answer)
        if answer:
            assert client.recv(4097) == b""
    assert site.path().read_bytes() == before


def test_a_silent_client_is_disconnected_after_the_hello_limit(site: Site) -> None:
    site.start()
    begun = time.monotonic()
    with connected(site) as client:
        assert client.recv(1) == b""
    assert time.monotonic() - begun >= protocol.HELLO_WAIT * 0.9
    assert (protocol.HELLO_WAIT, protocol.TURN_WAIT, protocol.PERSON_WAIT) == (2.0, 10.0, 300.0), "seconds"


def test_a_kill_after_the_prompt_refuses_and_the_next_login_works(site: Site) -> None:
    site.start()
    site.enrol()
    site.configure("demo", way="socket")

    def kill_then_answer(_: Shown) -> str:
        site.kill()
        return codes(0)

    assert site.login(kill_then_answer).result is Result.AUTHINFO_UNAVAIL
    assert site.counter() == 0
    assert site.socket.exists(), "a killed service leaves a stale socket"
    assert site.gets_in(codes(0)), "the relay starts a helper instead"
    site.start()
    assert site.gets_in(codes(1)), "a new service replaces the stale socket"


def test_a_second_service_does_not_replace_the_socket(site: Site) -> None:
    site.start()
    done = site.command("serve", "--socket", site.socket)
    assert (done.returncode, done.stderr) == (
        3,
        f"pam-totp: {site.socket}: another service is listening at this path\n",
    )
    site.enrol()
    site.configure("demo", way="socket")
    assert site.gets_in(codes(0))


def test_a_service_with_a_full_queue_counts_as_listening(site: Site) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as busy, ExitStack() as queue:
        busy.bind(str(site.socket))
        busy.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = queue.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                waiting.setblocking(False)
                waiting.connect(str(site.socket))
        done = site.command("serve", "--socket", site.socket)
    assert (done.returncode, done.stderr) == (
        3,
        f"pam-totp: {site.socket}: another service is listening at this path\n",
    )


def test_a_file_of_another_type_at_the_socket_path_is_named(site: Site) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(site.socket))
        other.listen()
        done = site.command("serve", "--socket", site.socket)
    assert done.returncode == 3
    assert done.stderr.startswith(f"pam-totp: {site.socket}: protocol wrong type for socket")
    assert site.socket.exists()


def test_of_two_services_that_start_together_one_has_the_socket(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    chmod = os.chmod
    said: list[str] = []

    def another_starts(path: str, mode: int) -> None:
        monkeypatch.setattr(os, "chmod", chmod)
        with pytest.raises(ServiceError) as refused, listening_at(str(site.socket)):
            pass
        said.append(str(refused.value))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", another_starts)
    with listening_at(str(site.socket)) as listener, connected(site):
        listener.accept()[0].close()
    assert said == [f"{site.socket}: another service is starting at this path"]


def test_a_service_that_ends_does_not_unlink_a_successors_socket(site: Site) -> None:
    """A service stops listening before its last logins end. A successor might start meanwhile, and reuse the inode."""
    with ExitStack() as other:
        with listening_at(str(site.socket)) as first:
            first.close()
            listener = other.enter_context(listening_at(str(site.socket)))
        with connected(site):
            listener.accept()[0].close()
    assert not site.socket.exists()


@as_root
def test_a_service_that_cannot_read_the_store_does_not_start(site: Site) -> None:
    """The service would refuse every login if it started."""
    site.give_to(UNPRIVILEGED_UID)
    done = site.command("serve", "--socket", site.socket)
    remedy = "runuser -u nobody -- pam-totp serve ..."
    said = f"{site.store} belongs to nobody: that account must run the service ({remedy})"
    assert (done.returncode, done.stderr) == (3, f"pam-totp: {said}\n")
    assert not site.socket.exists()


def test_on_sigterm_the_service_finishes_logins_and_unlinks_its_socket(site: Site) -> None:
    process = site.start()
    site.enrol()
    site.configure("demo", way="socket")

    def terminate_then_answer(_: Shown) -> str:
        process.send_signal(signal.SIGTERM)
        until(lambda: not _takes(site), "the service accepts no more logins")
        return codes(0)

    assert site.login(terminate_then_answer).result is Result.SUCCESS
    assert process.wait(PATIENCE) == 0
    assert not site.socket.exists()


def _takes(site: Site) -> bool:
    try:
        connected(site).close()
    except OSError:
        return False
    return True


def test_a_held_lock_is_awaited_until_a_limit_then_unavailable(site: Site, way: str) -> None:
    site.enrol()
    lock = holding(site.store, f"{ME}.record")
    try:
        assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL
    finally:
        os.close(lock)
    assert site.gets_in(codes(0))


def first_message(site: Site, hello: bytes) -> tuple[socket.socket, bytes]:
    """Begin a login with `hello`. Return the connection and the first message of the service."""
    client = connected(site)
    client.send(hello)
    return client, client.recv(4097)


def test_a_lock_held_for_5_seconds_delays_no_other_user(site: Site) -> None:
    """The logins that wait for the lock outnumber the idle threads of the service."""
    site.start()
    site.enrol()
    site.enrol(user="other")
    site.configure("demo", way="socket")
    if os.geteuid() != 0:
        pytest.skip("requires root: two users take part")
    lock = holding(site.store, f"{ME}.record")
    try:
        waiting = [first_message(site, hello(ME))[0] for _ in range(2 * loop.MAX_IDLE)]
        begun = time.monotonic()
        for client in waiting:
            client.send(b"A000000")
        for counter in range(10):
            assert site.gets_in(codes(counter), user="other")
        took = time.monotonic() - begun
        assert all(not select.select([client], [], [], 0)[0] for client in waiting), "logins of this user still wait"
        assert took < LOCK_WAIT, "the logins of the other user do not wait"
        for client in waiting:
            assert client.recv(4097) == b"r9"
            client.close()
        assert time.monotonic() - begun >= LOCK_WAIT
    finally:
        os.close(lock)
    assert site.gets_in(codes(0))


@as_root
def test_a_name_service_that_blocks_delays_no_other_login(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = threading.Event(), threading.Semaphore(0)

    def getpwnam(name: str) -> pwd.struct_passwd:
        if name == "blocked":
            asked.release()
            assert answers.wait(PATIENCE)
        return lookup(name)

    lookup = pwd.getpwnam
    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    site.enrol()
    site.configure("demo", way="socket")
    with serving_here(site):
        waiting = [connected(site) for _ in range(3)]
        for client in waiting:
            client.send(hello("blocked"))
            assert asked.acquire(timeout=PATIENCE)
        for counter in range(10):
            assert site.gets_in(codes(counter))
        assert all(not select.select([client], [], [], 0)[0] for client in waiting)
        answers.set()
        for client in waiting:
            assert client.recv(4097) == b"pOne-time code: "
            client.close()


def test_a_name_service_that_blocks_does_not_delay_a_stop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = threading.Event(), threading.Event()

    def getpwnam(name: str) -> pwd.struct_passwd:
        asked.set()
        assert answers.wait(PATIENCE)
        raise KeyError(name)

    monkeypatch.setattr(service, "STOP_WAIT", 0.1)
    with serving_here(site):
        monkeypatch.setattr(pwd, "getpwnam", getpwnam)
        client = connected(site)
        client.send(hello("no-such-account"))
        assert asked.wait(PATIENCE)
    assert not answers.is_set(), "the service has stopped, while the lookup still blocks"
    answers.set()
    client.close()


@as_root
def test_a_long_search_delays_no_other_login(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service searches far ahead for codes in a row, in one answer or in two."""
    over, searching = threading.Event(), threading.Semaphore(0)

    def verify_slowly(record: UserRecord, answer: Answer, *arguments: Any, **named: Any) -> Decision:
        if record.user == "slow" and (len(answer.digits) > 8 or named["earlier"].answers):
            searching.release()
            assert over.wait(PATIENCE)
        return verify.verify(record, answer, *arguments, **named)

    monkeypatch.setattr(service, "verify", verify_slowly)
    site.enrol()
    site.enrol(user="slow")
    site.configure("demo", way="socket")
    with serving_here(site):
        two, one = (first_message(site, hello("slow"))[0] for _ in range(2))
        one.send(b"A111111")
        assert one.recv(4097)[:1] == b"p"
        one.send(b"A222222")
        assert searching.acquire(timeout=PATIENCE)
        two.send(b"A111111 222222")
        for counter in range(10):
            assert site.gets_in(codes(counter))
        assert not searching.acquire(blocking=False), "searches for one record must not run at the same time"
        assert not select.select([one, two], [], [], 0)[0]
        over.set()
        assert one.recv(4097)[:1] == b"e"
        assert two.recv(4097)[:1] == b"p"
        one.close()
        two.close()


def test_answers_for_one_user_are_decided_in_their_order(site: Site) -> None:
    """An answer that waits for a lock precedes later answers."""
    site.start()
    site.enrol()
    lock = holding(site.store, f"{ME}.record")
    clients = [first_message(site, hello(ME, "demo", "1", "no_second_prompt"))[0] for _ in range(8)]
    try:
        for client in clients[:4]:
            client.send(b"A" + codes(0).encode())
            assert first_message(site, hello(ME))[1][:1] == b"p", "the service has the answer"
    finally:
        os.close(lock)
    for client in clients[4:]:
        client.send(b"A" + codes(0).encode())
    results = []
    for client in clients:
        while (packet := client.recv(4097))[:1] != b"r":
            assert packet
        results.append(packet)
        client.close()
    assert results == [b"r0"] + [b"r7"] * 7


@as_root
def test_quotas_apply_while_a_name_service_blocks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service closes connections above the quota of a uid before it looks up the uid's passwd entry."""
    answers, asked = threading.Event(), threading.Semaphore(0)

    def getpwuid(uid: int) -> pwd.struct_passwd:
        asked.release()
        assert answers.wait(PATIENCE)
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(login_quota, "MAX_LOGINS", 4)
    monkeypatch.setattr(login_quota, "MAX_WITHOUT_ENTRY", 1)
    monkeypatch.setattr(lookups, "MAX_FOR_OTHERS", 2)
    site.enrol()
    with serving_here(site):
        held = [connected_as(OTHER_UID, site) for _ in range(6)]

        def closed() -> int:
            return len(select.select(held, [], [], 0)[0])

        until(lambda: closed() == 2, "the connections above the quota of the uid are closed")
        assert asked.acquire(timeout=PATIENCE)
        assert first_message(site, hello("no-such-account"))[1][:1] == b"p", "root's lookups have other threads"
        answers.set()
        until(lambda: closed() == 5, "a uid without an entry has the smaller quota")
        for client in held:
            client.close()


def test_totals_are_at_most_a_quarter_of_the_descriptors() -> None:
    quota = login_quota.LoginQuota(1, 12)
    assert [quota.acquire(uid) for uid in (1, 1, 2, 3)] == [True, True, True, False]
    for _ in range(3):
        assert quota.acquire(login_quota.ROOT)
    assert not quota.is_full
    assert quota.acquire(login_quota.ROOT)
    assert quota.is_full


@pytest.mark.parametrize(("workers", "expected"), [(1, 128), (2, 128), (4, 128), (16, 32), (64, 8)])
def test_an_account_may_use_half_of_a_workers_share(workers: int, expected: int) -> None:
    """The kernel can pass all connections of an account to one worker."""
    quota = login_quota.LoginQuota(workers, 1 << 20)
    assert sum(quota.acquire(7) for _ in range(200)) == expected


@as_root
def test_uids_before_their_lookup_do_not_block_a_local_account(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user can have thousands of uids, and a name service can be slow."""
    answers = threading.Event()

    def getpwuid(uid: int) -> pwd.struct_passwd:
        assert answers.wait(PATIENCE)
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", getpwuid)
    monkeypatch.setattr(login_quota, "MAX_TOTAL_LOGINS", 3)
    with serving_here(site):
        held = [connected_as(uid, site) for uid in range(OTHER_UID, OTHER_UID + 5)]
        until(lambda: len(select.select(held, [], [], 0)[0]) == 2, "the uids have reached their total quota")
        assert as_nobody(site, hello("nobody"), "000000")[0][:1] == "p"
        answers.set()
        for client in held:
            client.close()


@as_root
def test_names_that_root_looks_up_do_not_delay_a_local_user(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, asked = threading.Event(), threading.Semaphore(0)
    getpwnam = pwd.getpwnam

    def blocking(name: str) -> pwd.struct_passwd:
        if name.startswith("remote"):
            asked.release()
            assert answers.wait(PATIENCE)
        return getpwnam(name)

    monkeypatch.setattr(pwd, "getpwnam", blocking)
    monkeypatch.setattr(lookups, "MAX_FOR_ROOT", 2)
    monkeypatch.setattr(service, "MAX_STORE_USES", 2)
    site.enrol(user="root")
    site.configure("demo", way="socket")
    with serving_here(site):
        held = [connected(site) for _ in range(4)]
        for number, client in enumerate(held):
            client.send(hello(f"remote{number}"))
        for _ in range(2):
            assert asked.acquire(timeout=PATIENCE)
        lock = holding(site.store, "root.record")
        threading.Timer(0.2, os.close, [lock]).start()
        assert site.gets_in(codes(0), user="root"), "the login waits for the lock in a thread"
        answers.set()
        for client in held:
            client.close()


@as_root
def test_a_slow_disk_does_not_delay_searches_for_other_users(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    released, writing = threading.Event(), threading.Semaphore(0)
    write = secret_file.write

    def slow(folder: int, name: str, *rest: Any) -> None:
        if not name.startswith("root"):
            writing.release()
            assert released.wait(PATIENCE)
        write(folder, name, *rest)

    monkeypatch.setattr(file, "write", slow)
    for user in ("root", "daemon", "bin", "sys"):
        site.enrol(user=user)
    with serving_here(site):
        held = [connected(site) for _ in range(3)]
        for user, client in zip(("daemon", "bin", "sys"), held, strict=True):
            client.send(hello(user))
            assert client.recv(4097)[:1] == b"p"
            client.send(b"A" + codes(0, 2).encode())
        for _ in held:
            assert writing.acquire(timeout=PATIENCE)
        assert dialogue(site, hello("root"), codes(0, 2))[-1] == "r0"
        released.set()
        for client in held:
            assert client.recv(4097) == b"r0"
            client.close()


@as_root
def test_an_early_error_is_logged_with_the_address_that_root_gives(site: Site) -> None:
    site.start()
    site.config.write_text("[policy]\nlook_ahead = 101\n")
    for caller in (dialogue, as_nobody):
        assert caller(site, hello("nobody") + b"\0rhost=192.0.2.66", "000000") == ["r3"]
    assert ["rhost=192.0.2.66" in line for line in site.log.lines() if " error " in line] == [True, False]


def test_silent_clients_of_one_account_do_not_block_others(site: Site) -> None:
    if os.geteuid() != 0:
        pytest.skip("requires root, to connect from a second account")
    site.start()
    site.enrol(user="root")
    site.configure("demo", way="socket")
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(UNPRIVILEGED_UID, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
            os.close(go[1])
            held = [connected(site) for _ in range(2 * login_quota.MAX_LOGINS)]
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            del held
        finally:
            os._exit(0)
    try:
        os.close(ready[1])
        assert os.read(ready[0], 1) == b"x"
        assert site.gets_in(codes(0), user="root")
        pid = site._service.pid if site._service else 0
        assert len(os.listdir(f"/proc/{pid}/task")) <= 4, "a login that waits occupies no thread"
    finally:
        os.close(go[1])
        os.waitpid(child, 0)
        for end in (ready[0], go[0]):
            os.close(end)


@as_root
def test_all_other_accounts_together_do_not_block_root(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user can have thousands of accounts, as subordinate uids (subuid(5))."""
    monkeypatch.setattr(login_quota, "MAX_TOTAL_LOGINS", 3)
    site.enrol()
    with serving_here(site, lambda *_: None):
        ready, go = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(go[1])
                held = []
                for uid in range(UNPRIVILEGED_UID - 6, UNPRIVILEGED_UID):
                    os.seteuid(uid)
                    held.append(connected(site))
                    os.seteuid(0)
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                del held
            finally:
                os._exit(0)
        try:
            os.close(ready[1])
            assert os.read(ready[0], 1) == b"x"
            site.configure("demo", way="socket")
            assert site.gets_in(codes(0)), "root is served, although other accounts connected earlier"
        finally:
            for end in (go[1], go[0], ready[0]):
                os.close(end)
            os.waitpid(child, 0)


@as_root
def test_logins_through_su_count_towards_the_callers_quota(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service sees root as the peer, and the caller of su in PAM_RUSER."""
    monkeypatch.setattr(login_quota, "MAX_LOGINS", 2)
    site.enrol()
    lines: list[str] = []
    with serving_here(site, lambda _, line: lines.append(line)):

        def first_word(caller: str) -> tuple[socket.socket, bytes]:
            client = connected(site)
            client.send(hello(ME) + caller.encode())
            return client, client.recv(4097)

        held = [first_word("\0ruser=bob") for _ in range(2)]
        assert [said[:1] for _, said in held] == [b"p", b"p"]
        for caller, said in (
            ("\0ruser=bob", b"r9"),
            ("\0ruser=carol", b"pOne-time code: "),
            ("\0ruser=root", b"pOne-time code: "),
            ("\0ruser=bob\0rhost=192.0.2.7", b"pOne-time code: "),  # a remote user can claim any name
            ("", b"pOne-time code: "),
        ):
            client, heard = first_word(caller)
            assert heard == said, caller
            client.close()
        assert f"pam_totp(demo:auth): refused user={ME} reason=too-many-at-once ruser=bob" in lines
        held.pop()[0].close()
        until(lambda: first_word("\0ruser=bob")[1][:1] == b"p", "a finished login no longer counts towards the quota")
        for client, _ in held:
            client.close()


@as_root
def test_a_service_full_of_roots_logins_reports_this(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay starts a helper after this report, so that all users can still use sudo."""
    monkeypatch.setattr(login_quota, "MAX_CARRIED_LOGINS", 2)
    monkeypatch.setattr(login_quota, "MAX_LOGINS", 1)
    site.enrol()
    site.configure("demo", way="socket")
    with serving_here(site):
        held = [first_message(site, hello(ME) + caller) for caller in (b"", b"\0ruser=bob")]
        assert [said[:1] for _, said in held] == [b"p", b"p"]
        for caller, expected in (("", b"f"), ("\0ruser=carol", b"f"), ("\0ruser=bob", b"r9")):
            client, said = first_message(site, hello(ME) + caller.encode())
            assert said == expected, "the service refuses an account above its own limit"
            client.close()
        assert site.gets_in(codes(0)), "a helper accepts the code"
        assert as_nobody(site, hello("nobody"), "000000")[0][0] == "p", "other accounts have a separate total"
        for client, _ in held:
            client.close()
        until(lambda: first_message(site, hello(ME))[1][:1] == b"p", "a finished login no longer counts")


@as_root
def test_uids_without_a_passwd_entry_share_one_small_quota(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_quota, "MAX_WITHOUT_ENTRY", 3)
    with serving_here(site):
        held = [connected_as(uid, site) for uid in range(OTHER_UID, OTHER_UID + 5)]

        def closed() -> int:
            return len(select.select(held, [], [], 0)[0])

        until(lambda: closed() >= 2, "two clients are disconnected")
        assert closed() == 2
        for client in held:
            client.close()


def test_codes_computed_in_advance_are_wiped_and_do_not_decide(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record changes while the prompt is open, so the decision depends on the new record."""
    made: list[Ahead] = []

    def work_out_ahead(*arguments: Any) -> Ahead:
        made.append(verify.work_out_ahead(*arguments))
        return made[-1]

    monkeypatch.setattr(login_verifier, "work_out_ahead", work_out_ahead)
    site.enrol()
    site.configure("demo", way="socket")

    def slowly(answer: str) -> str:
        until(lambda: made, "the codes are computed while the user types")
        assert any(made[0]._tables.values())
        return answer

    def the_code_is_used_meanwhile(_: Shown) -> str:
        site.enrol(fob(1))
        return slowly(codes(0))

    with serving_here(site):
        assert site.login(the_code_is_used_meanwhile).result is Result.AUTH_ERR
        assert not made.pop()._tables, "the codes that were computed in advance are wiped"
        assert site.login(lambda _: slowly(codes(1))).result is Result.SUCCESS
        assert not made.pop()._tables
        if os.geteuid() == 0:
            assert site.login(lambda _: slowly("000000"), None, user="nobody").result is Result.AUTH_ERR
            assert not made.pop()._tables, "codes are also computed for a user without a record"
        assert site.login(codes(2)).result is Result.SUCCESS, "a program answers before the codes are computed"


def test_an_answer_is_wiped_when_its_login_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service also wipes the buffer of the packet, before it verifies the answer."""
    seen: list[bytearray] = []
    buffers: list[bytearray] = []

    def parse_answer(packet: bytearray) -> bytearray | None:
        answer = protocol.parse_answer(packet)
        assert not any(packet), "the packet is wiped"
        if answer is not None:
            assert bytes(answer) in (b"000000", codes(0).encode())
            seen.append(answer)
        return answer

    def receive(channel: socket.socket, buffer: bytearray) -> bytearray | None:
        packet = protocol.receive(channel, buffer)
        buffers.append(buffer)
        assert not any(buffer)
        return packet

    monkeypatch.setattr(login_session, "parse_answer", parse_answer)
    monkeypatch.setattr(service, "receive", receive)
    site.enrol()
    site.configure("demo", way="socket")
    with serving_here(site):
        assert site.login("000000", codes(0)).result is Result.SUCCESS
    assert len(seen) == 2
    assert len(buffers) >= 3
    assert not any(any(answer) for answer in seen)


def test_the_service_raises_its_descriptor_limit_to_the_maximum(site: Site) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    process = site.start(before=f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))")
    assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (min(service.MAX_FILES, hard), hard)


def test_without_free_descriptors_the_service_does_not_spin(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service pauses before it retries an `accept` that failed for lack of descriptors."""

    class Full(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            if len(pauses) < 3:
                pauses.append(len(pauses))
                raise OSError(errno.EMFILE, "too many open files")
            return super().accept()

    pauses: list[int] = []
    monkeypatch.setattr(service, "NO_DESCRIPTOR_PAUSE", 0.2)
    site.enrol()
    listener = Full(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(site.socket))
    listener.listen()
    serving = service.Service(listener, str(site.store), str(site.config), lambda *_: None)
    thread = threading.Thread(target=serving.run)
    thread.start()
    site.configure("demo", way="socket")
    begun = time.monotonic()
    assert site.gets_in(codes(0))
    assert time.monotonic() - begun >= 3 * 0.2
    assert len(pauses) == 3
    serving.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_log_write_failure_denies_and_the_service_continues(site: Site) -> None:
    failed: list[str] = []

    def log(priority: int, line: str) -> None:
        if len(failed) < 8:
            failed.append(line)
            raise BrokenPipeError(errno.EPIPE, "broken pipe")

    site.enrol()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(site.socket))
    listener.listen()
    serving = service.Service(listener, str(site.store), str(site.config), log)
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        for _ in range(8):
            with connected(site) as client:
                client.send(b"nonsense")
                assert client.recv(1) == b"", "the service disconnects the client without a message"
        assert len(failed) == 8
        site.configure("demo", way="socket")
        assert site.gets_in(codes(0))
    finally:
        serving.stop()
        thread.join(PATIENCE)


def test_a_failure_to_start_a_thread_is_reported_in_one_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(site.socket))
        listener.listen()
        serving = service.Service(listener, str(site.store), str(site.config), lambda *_: None)
        with pytest.raises(ServiceError, match="cannot serve logins: can't start new thread"):
            serving.run()


@pytest.mark.parametrize("workers", [1, 3])
def test_the_service_ends_on_a_signal_with_any_number_of_workers(site: Site, workers: int) -> None:
    process = site.start("--workers", str(workers))
    site.enrol()
    site.configure("demo", way="socket")
    for counter in range(2 * workers):
        assert site.gets_in(codes(counter))
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert not site.socket.exists()


def workers_of(process: subprocess.Popen[bytes], count: int) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until(lambda: len(children.read_text().split()) == count, "the workers run")
    return [int(pid) for pid in children.read_text().split()]


def gone(pid: int) -> bool:
    """Return True if the process `pid` has exited, even if the parent must still reap the process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # ProcessLookupError: the worker ended between open and read
        return True


def test_workers_end_in_order_if_the_parent_ignores_sigchld(site: Site) -> None:
    """A service inherits an ignored SIGCHLD from the process that starts it."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = site.start("--workers", "2")
    finally:
        signal.signal(signal.SIGCHLD, before)
    workers = workers_of(process, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert all(gone(pid) for pid in workers)
    assert site.log.lines() == []


def test_if_a_worker_is_lost_the_service_ends_and_logs_it(site: Site) -> None:
    process = site.start("--workers", "3")
    workers = workers_of(process, 3)
    os.kill(workers[1], signal.SIGKILL)
    assert process.wait(PATIENCE) == 3
    assert all(gone(pid) for pid in workers)
    assert site.log.lines() == [f"pam-totp: worker {workers[1]} exited unexpectedly"]
    assert not site.socket.exists()


def test_workers_end_with_the_process_that_started_them(site: Site) -> None:
    workers = workers_of(site.start("--workers", "2"), 2)
    site.kill()
    until(lambda: all(gone(pid) for pid in workers), "the workers end")
    assert not _takes(site)


def test_one_code_given_to_many_workers_is_accepted_once(site: Site) -> None:
    site.start("--workers", "4")
    site.enrol()
    site.configure("demo", way="socket")
    together = threading.Barrier(12)

    def answer(_: Shown) -> str:
        together.wait(PATIENCE)
        return codes(0)

    results: list[Result] = []
    threads = [threading.Thread(target=lambda: results.append(site.login(answer).result)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == sorted([Result.SUCCESS] + [Result.AUTH_ERR] * 11)


@pytest.mark.parametrize("workers", ["0", "65", "-1"])
def test_an_invalid_number_of_workers_is_wrong_usage(site: Site, workers: str) -> None:
    done = site.command("serve", "--socket", site.socket, "--workers", workers)
    assert (done.returncode, done.stderr) == (2, "pam-totp: --workers must be 1 to 64\n")


def test_the_service_accepts_the_socket_that_systemd_passes(site: Site) -> None:
    site.enrol()
    listener = listening(site)
    fd = os.dup(listener.fileno())  # the shell moves the socket to the number that sd_listen_fds(3) requires
    script = f'exec 3<&{fd}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" -m pam_totp.cli serve --store "$1" --config "$2"'
    site.config.touch(0o644)
    command = ["/bin/bash", "-c", script, sys.executable, str(site.store), str(site.config)]
    with subprocess.Popen([*command], cwd=TREE, pass_fds=[fd]) as service:
        try:
            site.configure("demo", way="socket")
            assert site.gets_in(codes(0))
        finally:
            service.terminate()
    assert service.returncode == 0
    assert site.socket.exists(), "systemd owns the socket, so the service does not unlink it"
    listener.close()
    os.close(fd)


def test_concurrent_clients_each_get_their_own_result(site: Site) -> None:
    site.start()
    site.enrol()
    site.configure("demo", way="socket")
    refused: list[Result] = []
    threads = [threading.Thread(target=lambda: refused.append(site.login("blank").result)) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [Result.AUTH_ERR] * 30
