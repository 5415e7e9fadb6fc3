"""Tests of members with real authorities over PostgreSQL: logins through libpam, the relay and a member's service."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from base64 import b32encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.record import UserRecord
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.store.file import FileStore
from tests.conftest import as_root
from tests.support.cluster import with_postgresql
from tests.support.fleet import Fleet
from tests.support.memory import copies
from tests.support.pamconf import Answer, Login, Result, login, service
from tests.support.site import MODULE, TREE, Site, codes, fob

pytestmark = [with_postgresql, as_root]
RHOST = "192.0.2.7"
SALT, RECOVERY = "5a" * 16, "0123456789ABCDEF"


class Host:
    """A host that has joined the fleet as the member `name`, with its service."""

    def __init__(self, fleet: Fleet, folder: Path, name: str, *groups: str) -> None:
        folder.mkdir()
        self._lines: dict[str, str] = {}  # PAM service -> the line of its stack
        self.site, self.name, self.credentials = Site(folder), name, folder / "credentials"
        self.pam_totp("join", "--credentials", str(self.credentials), stdin=fleet.join_line(name, *groups).to_text())

    def pam_totp(self, *words: str, stdin: str = "") -> str:
        command: list[str] = [sys.executable, "-m", "pam_totp.cli", *words, "--config", str(self.site.config)]
        done = subprocess.run(command, cwd=TREE, input=f"{stdin}\n", text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def configure(self, lines: str) -> None:
        """Add lines to `[member]`, which is the last table of the site file."""
        self.site.config.write_text(self.site.config.read_text() + lines)

    def login(self, user: str, *answers: Answer, name: str = "sshd", arguments: str = "") -> Login:
        line = f"auth required {MODULE} socket={self.site.socket} nodelay {arguments}"
        if self._lines.get(name) != line:  # write only changed stacks, because other threads might be logging in
            service(self.site.confdir, name, line)
            self._lines[name] = line
        return login(name, user, answers, self.site.confdir, items={"rhost": RHOST})


@pytest.fixture(scope="module")
def hosts(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Host]]:
    """Yield two members, whose services run."""
    folder = tmp_path_factory.mktemp("hosts")
    made = [Host(fleet, folder / f"host{n}", f"host{n}-{secrets.token_hex(4)}.example.org") for n in range(2)]
    for host in made:
        host.configure("answer = 8\npatience = 3\n")  # seconds, for a busy machine
        host.site.start()
    yield made
    for host in made:
        host.site.stop()


@pytest.fixture
def host(fleet: Fleet, tmp_path: Path) -> Iterator[Host]:
    """Yield a member for one test. The test starts the member's service."""
    made = Host(fleet, tmp_path / "host", f"host-{secrets.token_hex(4)}.example.org")
    yield made
    made.site.stop()


def test_one_code_opens_one_of_two_members(fleet: Fleet, hosts: list[Host]) -> None:
    results: list[Result] = []
    user = fleet.user()

    def log_in(number: int) -> None:
        results.append(hosts[number % 2].login(user, codes(0), arguments="no_second_prompt").result)

    for host in hosts:
        host.login(fleet.user(), "x", arguments="no_second_prompt")
    threads = [threading.Thread(target=log_in, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [Result.SUCCESS, *[Result.AUTH_ERR] * 9]
    accepted = [line for host in hosts for line in host.site.log.lines() if f"accepted user={user} " in line]
    assert len(accepted) == 1
    assert any(f"authority={address} " in accepted[0] for address in fleet.addresses)
    refused = [line for authority in fleet.authorities for line in authority.lines(f"user={user} ", "refused")]
    assert len(refused) == 9, "an authority must log each refusal"
    assert all("reason=replayed" in line for line in refused)


def test_codes_at_two_and_three_prompts_are_codes_in_a_row(fleet: Fleet, hosts: list[Host]) -> None:
    user = fleet.user()
    done = hosts[0].login(user, codes(40), codes(41))
    assert (done.result, done.prompts[1].text) == (Result.SUCCESS, NEXT_PROMPT)
    user = fleet.user(failures=20, failures_at=fleet.store.now())
    done = hosts[1].login(user, codes(40), codes(41), codes(42))
    assert (done.result, len(done.prompts)) == (Result.SUCCESS, 3)


def test_the_messages_of_the_authority_are_shown(fleet: Fleet, hosts: list[Host]) -> None:
    user = fleet.user(salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
    done = hosts[0].login(user, RECOVERY)
    assert done.result is Result.SUCCESS
    assert [message.text for message in done.messages] == ["recovery code used, 0 left"]


def test_grace_is_for_one_member(fleet: Fleet, hosts: list[Host]) -> None:
    user = fleet.user()
    asks = {"name": "graceful", "arguments": "grace_period=600"}
    assert hosts[0].login(user, codes(0), **asks).result is Result.SUCCESS
    done = hosts[0].login(user, **asks)
    assert (done.result, done.prompts) == (Result.SUCCESS, ())
    assert hosts[1].login(user, "000000", "000001", **asks).result is Result.AUTH_ERR
    assert hosts[0].login(user, "000000", "000001", name="sshd", arguments="grace_period=600").prompts, "no such policy"


def test_a_password_is_handed_on_at_the_member(fleet: Fleet, hosts: list[Host]) -> None:
    user = fleet.user()
    line = f"auth required {MODULE} socket={hosts[0].site.socket} nodelay forward_pass"
    service(hosts[0].site.confdir, "forward", line, carry_authtok=True)
    done = login("forward", user, [f"correct horse{codes(0)}"], hosts[0].site.confdir)
    assert (done.result, done.authtok) == (Result.SUCCESS, "correct horse")


def test_a_revoked_member_is_out_at_once(fleet: Fleet, host: Host) -> None:
    host.site.start()
    user = fleet.user()
    assert host.login(user, codes(0)).result is Result.SUCCESS
    fleet.members.revoke(host.name)
    assert host.login(user, codes(1), codes(2)).result is Result.AUTH_ERR, "also on the open connection"
    assert host.site.log.has("refused", f"user={user} ", "reason=not-a-member")


def test_a_killed_authority_loses_no_login(fleet: Fleet, host: Host) -> None:
    host.configure("answer = 8\npatience = 3\n")
    host.site.start()
    users = [fleet.user() for _ in range(8)]
    results: list[Result] = []

    def log_in(user: str) -> None:
        results.extend(host.login(user, codes(number), arguments="no_second_prompt").result for number in range(3))

    host.login(fleet.user(), codes(0), arguments="no_second_prompt")
    threads = [threading.Thread(target=log_in, args=(user,)) for user in users]
    for thread in threads:
        thread.start()
    fleet.authorities[0].end(signal.SIGKILL)
    try:
        for thread in threads:
            thread.join()
        assert results == [Result.SUCCESS] * 24
    finally:
        fleet.authorities[0].start()


def test_without_authorities_only_break_glass_opens(fleet: Fleet, host: Host) -> None:
    host.configure('answer = 1\ncentre_down = "break-glass"\n')
    host.site.start()
    user = fleet.user()
    made, (code, _) = new_recovery_codes(UserRecord(user=user), 2)
    FileStore(str(host.site.store)).update(user, lambda _: (made, None), create=True)
    assert host.login(user, code, codes(0)).result is Result.SUCCESS, "accepted by the token's code"
    for authority in fleet.authorities:
        authority.end(signal.SIGKILL)
    try:
        assert host.login(user, codes(1), codes(2)).result is Result.AUTHINFO_UNAVAIL
        assert host.login(user, code).result is Result.SUCCESS
        assert host.login(user, code).result is Result.AUTHINFO_UNAVAIL
        assert host.site.log.has("error", "break-glass: ", user)
        assert host.site.log.has("accepted", f"user={user} ", "by=break-glass", "recovery_left=1")
    finally:
        for authority in fleet.authorities:
            authority.start()


def test_a_renewal_interrupts_no_login(fleet: Fleet, host: Host) -> None:
    host.site.start()
    user = fleet.user()
    assert host.login(user, codes(0)).result is Result.SUCCESS
    old = (host.credentials / "certificate.pem").read_text()
    host.pam_totp("join", "--renew")
    assert host.login(user, codes(1)).result is Result.SUCCESS
    from pam_totp.authority import certificates

    assert fleet.members.find(certificates.fingerprint(old), None, None) is None, "the old certificate is invalid"
    assert host.login(user, codes(2)).result is Result.SUCCESS


def test_a_member_has_no_key_and_no_digest_of_a_token(fleet: Fleet, host: Host) -> None:
    """Search the member's files, and the memory of its service, after logins of all kinds."""
    pid = host.site.start().pid
    secret = os.urandom(20)
    digest = recovery_digest(SALT, RECOVERY)
    user = fleet.user(tokens=(fob(secret=secret),), salt=SALT, recovery=(digest,))
    assert host.login(user, codes(0, key=secret)).result is Result.SUCCESS
    assert host.login(user, "000000", "x").result is Result.AUTH_ERR
    assert host.login(user, "ZZZZ-ZZZZ-ZZZZ-ZZZZ", codes(1, key=secret)).result is Result.SUCCESS
    shapes = [secret, secret.hex().encode(), b32encode(secret), digest.encode(), bytes.fromhex(digest)]
    assert copies(pid, shapes) == []
    files = [path.read_bytes() for path in host.site.folder.rglob("*") if path.is_file()]
    assert not [shape for shape in shapes for content in files if shape in content]
