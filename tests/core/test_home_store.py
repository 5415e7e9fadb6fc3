"""Tests of the store of a `secret=` template: the store opens only files that the user of the process owns."""

from __future__ import annotations

import fcntl
import os
import pwd
from pathlib import Path

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import serialize
from pam_totp.core.slots import decode
from pam_totp.core.verify import Outcome
from pam_totp.store import NoAccount, StoreError
from pam_totp.store.home import HomeStore, home_store
from tests.core.stores import change, code
from tests.support.site import fob


def account(monkeypatch: pytest.MonkeyPatch, home: str, name: str = "alice", uid: int | None = None) -> None:
    """Simulate a passwd database that finds the account `name` by the names `name` and `alias`."""
    entry = pwd.struct_passwd((name, "x", os.geteuid() if uid is None else uid, 0, "", home, "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwnam", {name: entry, "alias": entry}.__getitem__)


@pytest.mark.parametrize("template", ["~/.codes", "${HOME}/.codes", "FOLDER/.codes"])
def test_home_and_name_are_those_of_the_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, template: str) -> None:
    account(monkeypatch, str(tmp_path))
    store = home_store(template.replace("FOLDER", str(tmp_path)), "alias")
    assert isinstance(store, HomeStore)
    assert store.folder == str(tmp_path)
    assert list(store.users()) == []


def test_only_a_process_of_the_user_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    account(monkeypatch, str(tmp_path), uid=os.geteuid() + 1)
    with pytest.raises(StoreError, match=f"but runs as uid {os.geteuid()}"):
        home_store("~/.codes", "alice")


@pytest.mark.parametrize("name", ["", ".", "..", "../root", "a/b"])
def test_no_user_name_leads_to_another_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    account(monkeypatch, str(tmp_path), name)
    with pytest.raises(StoreError, match="must be a valid file name"):
        home_store("/var/codes/${USER}", "alias")


@pytest.mark.parametrize(("template", "home"), [("codes", "/home/alice"), ("~/codes", "home/alice")])
def test_no_path_depends_on_the_working_directory(monkeypatch: pytest.MonkeyPatch, template: str, home: str) -> None:
    account(monkeypatch, home)
    with pytest.raises(StoreError, match="must be an absolute path"):
        home_store(template, "alice")


def test_the_store_contains_only_the_record_of_one_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    account(monkeypatch, str(tmp_path))
    store = home_store("~/.codes", "alice")
    with pytest.raises(StoreError, match=r"\.codes: has only the record of alice"):
        store.read("bob")


def test_a_file_of_version_1_is_converted_under_the_same_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    account(monkeypatch, str(tmp_path))
    tmp_path.chmod(0o700)
    (tmp_path / ".codes").write_bytes(serialize(UserRecord(user="alice", tokens=(fob(),))))
    (tmp_path / ".codes").chmod(0o600)
    store = home_store("~/.codes", "alice")
    assert store.read("alice").tokens == (fob(),)
    assert [store.update("alice", change(code(0))) for _ in range(2)] == [Outcome.CODE, Outcome.REPLAYED]
    assert decode((tmp_path / ".codes").read_bytes()).sequence == 2
    assert sorted(os.listdir(tmp_path)) == [".codes", ".codes.lock"]
    store.update("alice", lambda record: (None, None))
    assert os.listdir(tmp_path) == [".codes.lock"]


def test_a_new_file_is_created_without_decoys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    account(monkeypatch, str(tmp_path))
    tmp_path.chmod(0o700)
    store = home_store("~/.codes", "alice")
    store.update("alice", lambda record: (record.with_token(fob()), None), create=True)
    assert sorted(os.listdir(tmp_path)) == [".codes", ".codes.lock"]
    assert list(store.users()) == ["alice"]


def test_a_user_without_an_account_has_no_file() -> None:
    store = home_store("~/.codes", "no-such-account")
    assert list(store.users()) == []
    store.update_decoy("zoe", int)
    with pytest.raises(NoAccount):
        store.read("no-such-account")
    with pytest.raises(NoAccount):
        store.update("no-such-account", lambda record: (record, None))


def test_an_update_waits_for_a_process_of_version_1(tmp_path: Path) -> None:
    """A process of version 1 locks this file by flock(2), and could overwrite a newer record without the wait."""
    tmp_path.chmod(0o700)
    store = HomeStore(str(tmp_path / ".codes"), "alice", lock_wait=0.01)
    store.update("alice", lambda record: (record.with_token(fob()), None), create=True)
    with open(tmp_path / ".codes.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"the lock was not acquired within 0\.01 s"):
            store.update("alice", lambda record: (record.without_token("fob"), None))
    store.update("alice", lambda record: (record.without_token("fob"), None))
    assert store.read("alice").tokens == ()
