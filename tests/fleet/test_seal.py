"""Tests of a sealed database: the steps of `pam-totp seal` with several authorities, and an authority's answers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import base32
from pam_totp.store import StoreError, seal_key
from pam_totp.store.keyring import Keyring, State, parse_keyring, serialize_keyring
from pam_totp.store.postgres import PostgresStore
from pam_totp.store.seal import Sealer
from pam_totp.store.stock import stock_of
from pam_totp.system import seal_files
from tests.conftest import with_mounts
from tests.core.stores import LOCK_TIMEOUT, change, code
from tests.core.test_stock import entry, key
from tests.support.cluster import Server, with_postgresql
from tests.support.fleet import question, running
from tests.support.site import KEY, TREE, codes, fob

pytestmark = [with_postgresql, with_mounts]
SITE = Path("/etc/pam_totp.toml")


@pytest.fixture(autouse=True)
def host(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write a site file with the database's URL in this namespace. Delete the file and the keyring after the test.

    The process must not use a keyring that it read in an earlier test.
    """
    monkeypatch.setattr(seal_key, "_process", seal_key._Process())
    SITE.write_text(f"[store]\nurl = {json.dumps(database)}\n[authority]\naddresses = ['otp1.example.org:8443']\n")
    yield
    SITE.unlink()
    shutil.rmtree(seal_key.FOLDER, ignore_errors=True)
    for unit in seal_files.UNITS:
        Path(seal_files.DROP_IN.format(unit)).unlink(missing_ok=True)


def run(*words: str, stdin: str = "", status: int = 0) -> str:
    command = [sys.executable, "-m", "pam_totp.cli", *words]
    done = subprocess.run(command, cwd=TREE, text=True, capture_output=True, check=False, input=stdin)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


class Other:
    """Another authority, with the keyring of an earlier step or without a keyring."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.keyring: Keyring | None = None
        self._counter = 0

    def copy(self) -> None:
        self.keyring = parse_keyring(Path(seal_key.FILE).read_bytes())

    def store(self) -> PostgresStore:
        state = None if self.keyring is None else self.keyring.state_of(self._url)
        codec = None if self.keyring is None or state is None else Sealer(self.keyring, state)
        return PostgresStore(self._url, wait=LOCK_TIMEOUT, codec=codec)

    def log_in(self) -> str:
        """Log in as alice with her next code, and return the outcome."""
        self._counter += 1
        word: str = self.store().update("alice", change(code(self._counter - 1))).value
        return word


@pytest.fixture
def other(database: str) -> Other:
    """Enrol alice, add a token to the stock, and return another authority."""
    store = PostgresStore(database, wait=LOCK_TIMEOUT)
    store.update("alice", lambda _: (UserRecord(user="alice", tokens=(fob(),)), None), create=True)
    stock_of(store).add([entry("T-1")])
    return Other(database)


def dump(server: Server) -> str:
    bodies = "SELECT convert_from(body, 'UTF8') FROM pam_totp."
    return server.sql(f"{bodies}record UNION ALL {bodies}stock")


def seal_in_three_steps(other: Other) -> None:
    for state in (State.OPENING, State.SEALING, State.SEALED):
        shown = run("seal", "init", "--yes")
        assert ("then run 'pam-totp seal init' again here" in shown) == (state is not State.SEALED)
        assert other.log_in() == "code", "with the keyring of the previous step"
        other.copy()
        assert other.keyring is not None
        assert other.keyring.state_of("postgresql://") is state
        assert other.log_in() == "code"


def test_a_database_with_records_is_sealed_while_authorities_answer(other: Other, postgresql: Server) -> None:
    seal_in_three_steps(other)
    for secret in (KEY, key("T-1")):
        assert base32(secret) not in dump(postgresql)
    assert json.loads(run("seal", "status", "--json"))["stores"][0]["state"] == "sealed"
    assert "alice" in run("list")
    other.keyring = None
    with pytest.raises(StoreError, match=r"alice: .*is sealed, and this process has no key"):
        other.log_in()


def test_a_rotation_takes_its_steps_while_authorities_answer(other: Other, postgresql: Server) -> None:
    seal_in_three_steps(other)
    before = dump(postgresql)
    (old,) = json.loads(run("seal", "status", "--json"))["keys"]
    for last in (False, False, True):
        shown = run("seal", "rotate", "--yes")
        assert ("then run 'pam-totp seal rotate' again here" in shown) != last
        assert other.log_in() == "code", "with the keyring of the previous step"
        other.copy()
        assert other.log_in() == "code"
    (new,) = json.loads(run("seal", "status", "--json"))["keys"]
    assert new != old
    assert f"sealed:{old}" in before
    assert f"sealed:{old}" not in dump(postgresql)


def test_a_new_fleet_is_sealed_and_a_second_authority_needs_its_key(database: str) -> None:
    shown = run("authority", "init")
    assert f"created: {seal_key.FILE}, which seals all secrets" in shown
    again = run("authority", "init")
    assert "seals all secrets" not in again
    keyring = parse_keyring(Path(seal_key.FILE).read_bytes())
    assert keyring.state_of(database) is State.SEALED
    run("seal", "export", "/etc/pam_totp/copy", "--yes")
    mine = ("authority/authority.key", "authority/authority.pem")  # the second authority has the CA's files only
    for path in (seal_key.FILE, seal_key.NOTE, *(f"{seal_key.FOLDER}/{name}" for name in mine)):
        Path(path).unlink()
    assert "pam-totp seal init --key FILE" in run("authority", "init")
    run("seal", "init", "--key", "/etc/pam_totp/copy")
    assert parse_keyring(Path(seal_key.FILE).read_bytes()) == keyring


def test_a_fleet_with_records_or_without_the_option_is_not_sealed(other: Other) -> None:
    assert "the database has records" in run("authority", "init")
    shutil.rmtree(seal_key.FOLDER)
    assert "seal" not in run("authority", "init", "--no-seal")
    assert not Path(seal_key.FILE).exists()


def test_a_host_without_the_key_writes_no_open_secret(other: Other, postgresql: Server) -> None:
    seal_in_three_steps(other)
    run("seal", "export", "/etc/copy", "--yes")
    shutil.rmtree(seal_key.FOLDER)  # another host with this database
    secret = base32(KEY)
    shown = run("enroll", "bob", "--type", "hotp", "--secret-stdin", stdin=f"{secret}\n{codes(0, 2)}\n", status=3)
    assert "is sealed, and this process has no key" in shown
    assert "is sealed with the key" in run("seal", "init", "--yes", status=3)
    assert secret not in dump(postgresql)
    run("seal", "init", "--key", "/etc/copy")
    Path("/etc/copy").unlink()
    assert other.log_in() == "code"


def test_a_fence_demands_codes_in_a_row_for_sealed_records(other: Other) -> None:
    seal_in_three_steps(other)
    run("authority", "fence", "--yes")
    assert other.store().read("alice").tokens[0].row_needed
    assert other.log_in() != "code"


def test_an_authority_answers_from_a_sealed_database(postgresql: Server) -> None:
    keyring = Keyring(current=b"1" * 32).with_store("postgresql://", State.SEALED)
    Path(seal_key.FOLDER).mkdir(exist_ok=True)
    Path(seal_key.FILE).write_bytes(serialize_keyring(keyring))
    Path(seal_key.FILE).chmod(0o400)
    with running(postgresql) as fleet:
        fleet.store = PostgresStore(fleet.url, wait=LOCK_TIMEOUT, codec=Sealer(keyring))
        user, member = fleet.user(), fleet.member()
        assert member.ask(question(user, code(0).decode())).accepted
        assert not member.ask(question(user, code(0).decode())).accepted
