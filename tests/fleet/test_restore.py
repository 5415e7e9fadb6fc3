"""Tests of a fleet's database after a restore by PostgreSQL's programs: used codes and removed tokens stay invalid."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pam_totp.cli import main
from pam_totp.core.answer import recovery_digest
from pam_totp.core.record import UserRecord
from pam_totp.member import wire
from pam_totp.operations import audit_log
from pam_totp.operations.tickets import issue_ticket, new_phone, with_temporary_code
from pam_totp.store.postgres_state import state_of
from tests.support.cluster import OWNER, owned, servers, with_postgresql
from tests.support.fleet import Fleet, Member, question, running
from tests.support.site import KEY, PATIENCE, codes, fob, phone

pytestmark = with_postgresql
SALT, RECOVERY = "00" * 16, "0123456789ABCDEF"


class Backup:
    """A backup of the database of a fleet. `restore` replaces a lost server by a running server with the backup."""

    def __init__(self, fleet: Fleet, folder: Path) -> None:
        self.fleet, self.server, self.path = fleet, fleet.server, folder / "backup"
        self.database = fleet.url.split("/")[3].partition("?")[0]
        self.where: list[str | Path] = ["-h", self.server.folder, "-U", OWNER]

    is_seen: bool  # doctor detects the restore

    def make(self) -> None:
        raise NotImplementedError

    def restore(self) -> None:
        raise NotImplementedError

    def destroy(self) -> None:
        self.server.kill()
        shutil.rmtree(self.server.data)


class BaseBackup(Backup):
    is_seen = False

    def make(self) -> None:
        self.server.program("pg_basebackup", "-D", self.path, *self.where, "-X", "stream", "-c", "fast", "-N")

    def restore(self) -> None:
        subprocess.run(["cp", "-a", self.path, self.server.data], check=True)
        self.server.start()


class Dump(Backup):
    is_seen = True

    def make(self) -> None:
        self.server.program("pg_dump", "-Fc", "-f", self.path, *self.where, self.database)

    def restore(self) -> None:
        self.server.initialise()
        self.server.start()
        self.server.sql(f"CREATE DATABASE {self.database}")
        self.server.program("pg_restore", "-e", "-d", self.database, *self.where, self.path)


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """Yield a fleet with its own database server, which the test can destroy."""
    with servers() as server, running(server) as made:
        yield made


@pytest.fixture(params=[BaseBackup, Dump])
def backup(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Backup]:
    folder = fleet.server.folder.parent / "backups"
    folder.mkdir()
    owned(folder)
    yield request.param(fleet, folder)


class Logs:
    """The logs of two authorities and of the commands, in the format of a log daemon."""

    def __init__(self, fleet: Fleet, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._fleet, self._folder = fleet, folder
        self._lines: list[str] = []
        monkeypatch.setattr(audit_log, "to_syslog", lambda _, line: self._lines.append(line))
        monkeypatch.setattr(audit_log, "fault", lambda: None)

    def command(self, *words: str, status: int = 0) -> None:
        """Run a command on the first authority, in this process, so that the test receives the command's log lines."""
        config = [] if "--store" in words else ["--config", str(self._fleet.authorities[0].config)]
        assert main([*words, *config]) == status

    def write(self, authorities: int = 2) -> list[str]:
        """Write the logs of the first `authorities` authorities to files, and return the paths."""
        texts = [authority.log.read_text().splitlines() for authority in self._fleet.authorities[:authorities]]
        texts[0] += self._lines
        for number, lines in enumerate(texts, 1):
            header = f"{_iso(time.time() - 1)} otp{number} pam_totp[471]: "
            text = "".join(f"{header}{line}\n" for line in lines if line.startswith("pam_totp("))
            (self._folder / f"otp{number}.txt").write_text(text)
        return [str(self._folder / f"otp{number}.txt") for number in range(1, authorities + 1)]


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


@pytest.fixture
def logs(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Logs:
    return Logs(fleet, tmp_path, monkeypatch)


def now_code(fleet: Fleet, user: str) -> str:
    """Return the current code of the phone of `user`."""
    fleet.store.read(user)
    return codes(fleet.store.now() // 30, key=KEY[::-1])


class Scene:
    """Users and members of a fleet before the backup, and the changes after it."""

    def __init__(self, fleet: Fleet, logs: Logs) -> None:
        self.fleet, self.logs = fleet, logs
        self.web1, self.web2, self.web3 = (fleet.member() for _ in range(3))
        self.db1 = fleet.member("db")
        fleet.members.put("staff", ["zoe"])
        fleet.members.allow("db", ["staff", "all"])
        fleet.members.permit_enrolment("db", permitted=True)
        self.alice, self.key_fob = fleet.user(), fleet.user()
        recovery = {"salt": SALT, "recovery": (recovery_digest(SALT, RECOVERY),)}
        self.bob = fleet.user(tokens=(phone(),), **recovery)
        self.carol = fleet.user(tokens=(fob(), phone()))
        self.temporary = self._change(self.bob, lambda r: with_temporary_code(r, 1 << 40))
        self.ticket = self._change(self.carol, lambda r: issue_ticket(r, new_phone(r, 1), 1 << 40))
        self.asked = question(self.alice, codes(0))
        assert self.web1.ask(self.asked).accepted

    def _change(self, user: str, change: Callable[[UserRecord], tuple[UserRecord, str]]) -> str:
        return self.fleet.store.update(user, change)

    def after_the_backup(self) -> None:
        fleet, web1 = self.fleet, self.web1
        for authority in (0, 1):
            assert web1.ask(question(self.alice, codes(1 + authority)), authority).accepted
        self.used_code = now_code(fleet, self.bob)
        for answer in (self.used_code, RECOVERY, self.temporary):
            assert web1.ask(question(self.bob, answer)).accepted
        assert web1.ask(question(self.carol, codes(4))).accepted
        self.logs.command("remove", self.carol, "phone", "--store", fleet.url)
        self.logs.command("member", "revoke", self.web2.name, "--yes")
        self.logs.command("member", "groups", "db", "--deny", "all", "--enroll", "off")
        self.logs.command("member", "groups", "staff", "--take", "zoe", "--put", "yan")
        with self.web3.client() as client:
            assert client.post(wire.RENEW_PATH, wire.Renew(csr=_request(fleet))).status == 200
        token = secrets.token_bytes(32)
        fleet.members.add(self.db1.name, ["db"], None, token, 3600)


def _request(fleet: Fleet) -> str:
    from pam_totp.authority import certificates

    return certificates.make_request(fleet.key)


def status(member: Member, user: str, answer: str) -> int:
    with member.client() as client:
        return client.post(wire.ANSWER_PATH, question(user, answer)).status


def refused(member: Member, user: str, *answers: str) -> bool:
    return not any(member.ask(question(user, answer)).accepted for answer in answers)


def lost_and_restored(backup: Backup, scene: Scene) -> str:
    """Back up, change and lose the database, and restore the backup. Return the time of the restore."""
    backup.make()
    scene.after_the_backup()
    scene.fleet.stop()
    backup.destroy()
    backup.restore()
    return _iso(time.time() + 1)


def test_after_a_restore_nothing_of_the_log_lives_again(
    backup: Backup, fleet: Fleet, logs: Logs, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Scene(fleet, logs)
    restored_at = lost_and_restored(backup, scene)
    assert [token.next_factor for token in fleet.store.read(scene.alice).tokens] == [1]
    assert len(fleet.store.read(scene.bob).recovery) == 1, "the backup has the used recovery code"
    assert state_of(fleet.url, PATIENCE).is_moved is backup.is_seen
    logs.command("authority", "restore", "--log", *logs.write(), "--restored-at", restored_at, "--yes")
    assert not state_of(fleet.url, PATIENCE).is_moved
    shown = capsys.readouterr().out.splitlines()
    assert f"new epoch: {state_of(fleet.url, PATIENCE).epoch}" in shown
    begins = (scene.web1.name, scene.web2.name, scene.web3.name, scene.db1.name, "db ", "staff ")
    table = shown[shown.index(next(line for line in shown if line.startswith("MEMBER OR GROUP"))) :]
    assert [line.split(maxsplit=1) for line in table if line.startswith(begins)] == [
        [scene.web2.name, "revoked"],
        [scene.web3.name, "got a later certificate: it must join again"],
        ["db", "may no longer ask about the users of all"],
        ["staff", "zoe is no longer in this user group"],
        ["staff", "--put since the backup: run 'pam-totp member groups staff --put yan'"],
        ["db", "may no longer enrol users by tickets"],
    ]
    fleet.start()
    web1 = scene.web1
    assert refused(web1, scene.alice, codes(0), codes(1), codes(2), codes(1, 2))
    assert web1.ask(question(scene.alice, codes(3))).accepted, "the logs contain the logins with this key fob"
    assert not web1.ask(scene.asked).accepted, "the backup has this verdict"
    assert refused(web1, scene.bob, scene.used_code, RECOVERY, scene.temporary)
    assert refused(web1, scene.carol, codes(4), now_code(fleet, scene.carol), scene.ticket)
    assert [token.name for token in fleet.store.read(scene.carol).tokens if token.confirmed] == ["fob"]
    assert fleet.store.read(scene.carol).ticket is None
    assert refused(web1, scene.key_fob, codes(0)), "the logs contain no login with this key fob"
    assert web1.ask(question(scene.key_fob, codes(1, 2))).accepted
    assert (status(scene.web2, "alice", codes(9)), status(scene.web3, "alice", codes(9))) == (401, 401)
    assert status(scene.db1, scene.alice, codes(4)) == 403
    assert fleet.members.groups().users == {}, "the table lists yan's group, but restores no permission"


def test_without_a_log_every_token_needs_codes_in_a_row(backup: Backup, fleet: Fleet, logs: Logs) -> None:
    scene = Scene(fleet, logs)
    lost_and_restored(backup, scene)
    logs.command("authority", "fence", "--yes")
    fleet.start()
    web1 = scene.web1
    assert refused(web1, scene.alice, codes(1), codes(2), codes(3))
    assert not web1.ask(scene.asked).accepted
    assert refused(web1, scene.bob, scene.used_code, RECOVERY, scene.temporary)
    assert refused(web1, scene.carol, codes(4), scene.ticket)
    assert web1.ask(question(scene.alice, codes(4, 2))).accepted
    assert web1.ask(question(scene.alice, codes(6))).accepted


def test_if_an_authority_has_no_line_every_token_needs_codes_in_a_row(
    fleet: Fleet, logs: Logs, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Scene(fleet, logs)
    scene.after_the_backup()
    fleet.stop()
    capsys.readouterr()
    at = _iso(time.time() + 1)
    logs.command("authority", "restore", "--log", *logs.write(1), "--restored-at", at, "--dry-run", "--json")
    out, err = capsys.readouterr()
    assert "has 2 authorities (give the logs of all authorities" in err
    assert _rows(out) == {True}
    logs.command(
        "authority", "restore", "--log", *logs.write(1), "--restored-at", at, "--dry-run", "--json", "--complete"
    )
    assert _rows(capsys.readouterr().out) == {True, False}
    logs.command("authority", "restore", "--log", *logs.write(2), "--restored-at", at, "--dry-run", "--json")
    assert _rows(capsys.readouterr().out) == {True, False}


def test_an_epoch_alone_keeps_tokens_and_running_authorities(
    fleet: Fleet, logs: Logs, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = Scene(fleet, logs)
    logs.command("authority", "fence", "--epoch-only", "--yes")
    epoch = state_of(fleet.url, PATIENCE).epoch
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"new epoch: {epoch}"
    assert "of pam_totp to the database: stop all authorities first" in err, "this fleet runs"
    for authority in (0, 1):
        assert scene.web1.ask(question(scene.alice, codes(1 + authority)), authority).accepted
    assert scene.web1.ask(scene.asked).accepted, "the database still stores its verdict"
    assert len(fleet.store.read(scene.bob).recovery) == 1


def _rows(output: str) -> set[bool]:
    records: list[dict[str, Any]] = json.loads(output)["records"]
    return {token["row_needed"] for record in records for token in record["tokens"] if not token["removed"]}
