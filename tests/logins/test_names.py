"""Tests of the names of accounts: the lookups that need no server."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from pam_totp.pam import names
from pam_totp.pam.names import LocalAccounts, asks_files_first

LINES = {
    "passwd: files": True,
    "passwd:\tfiles systemd": True,
    "  passwd : files # and ldap": True,
    "passwd: files sss": True,
    "#passwd: ldap\npasswd: files": True,
    "group: ldap\nhosts: files dns": True,
    "passwd_compat: nis\npasswd: files": True,
    "": True,
    "passwd: systemd files": False,
    "passwd: compat": False,
    "passwd: sss files": False,
    "passwd: files [SUCCESS=continue] ldap": False,
    "passwd: files[SUCCESS=merge]winbind": False,
    "passwd: files\npasswd: nis": False,
    "passwd:": False,
    "passwd: \udcff": False,
}
PASSWD = b"root:x:0:0:root:/root:/bin/sh\n+nis\n\n-:x:\nbob:x:1000:1000::/home/b\xf6b:/bin/sh"


@pytest.mark.parametrize("text", LINES)
def test_files_come_first_only_if_the_line_passwd_begins_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nsswitch.conf"
    path.write_bytes(text.encode("utf-8", "surrogateescape") + b"\n")
    assert asks_files_first(str(path)) is LINES[text]


def test_files_come_first_without_a_file_but_not_if_it_is_unreadable(tmp_path: Path) -> None:
    assert asks_files_first(str(tmp_path / "missing"))
    assert not asks_files_first(str(tmp_path))


def test_local_accounts_are_those_of_the_file_until_it_changes(tmp_path: Path) -> None:
    passwd, nsswitch = tmp_path / "passwd", tmp_path / "nsswitch.conf"
    passwd.write_bytes(PASSWD)
    local = LocalAccounts(str(passwd), str(nsswitch))
    assert local.have("root", "bob", 0, 1000)
    for account in ("carol", 1001, "x", "", "+nis", "-", "1000"):
        assert not local.have("root", account)
    (tmp_path / "new").write_bytes(PASSWD.replace(b"bob", b"carol"))
    os.rename(tmp_path / "new", passwd)
    assert local.have("carol")
    assert not local.have("bob")
    passwd.unlink()
    assert not local.have("root")


def test_the_name_of_a_uid_is_that_of_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_bytes(PASSWD + b"\ntoor:x:0:0::/:/bin/sh\nbob:x:1001:1001::/:/bin/sh\n")
    local = LocalAccounts(str(passwd), str(tmp_path / "missing"))
    asked: list[str] = []
    monkeypatch.setattr(names, "name_of_uid", asked.append)
    assert [local.name_of_uid(name) for name in ("root", "toor", "bob")] == ["root", "root", "bob"]
    assert asked == [], "the file has the names of these users"
    assert local.name_of_uid("carol") is None
    assert asked == ["carol"]


def test_the_name_of_a_uid_is_looked_up_by_name_and_by_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    by_name, by_uid = {"ALICE": 1000, "alice": 1000, "lost": 1001}, {1000: "alice"}
    monkeypatch.setattr("pwd.getpwnam", lambda name: SimpleNamespace(pw_name=name, pw_uid=by_name[name]))
    monkeypatch.setattr("pwd.getpwuid", lambda uid: SimpleNamespace(pw_name=by_uid[uid], pw_uid=uid))
    assert [names.name_of_uid(name) for name in ("ALICE", "alice", "lost", "unknown")] == ["alice", "alice", None, None]


@pytest.mark.parametrize(
    "line",
    [
        "#zoe:x:1005:1005::/home/zoe:/bin/sh",
        "+zoe:x:1005:1005::/home/zoe:/bin/sh",
        "-zoe:x:1005:1005::/home/zoe:/bin/sh",
        " zoe:x:1005:1005::/home/zoe:/bin/sh",
        "zoe:x:1005:x::/home/zoe:/bin/sh",
        "zoe:x:1005",
        "zoe:x::1005::/home/zoe:/bin/sh",
        "zoe:x:00000001005:1005::/home/zoe:/bin/sh",
        "zoe:x:\u0661\u0660:1005::/home/zoe:/bin/sh",
        "zoe:x:4294967296:1005::/home/zoe:/bin/sh",
        "zoe:x:1005:4294967296::/home/zoe:/bin/sh",
        "zoe:x:1005:1005::/home/\0zoe:/bin/sh",
    ],
)
def test_a_line_that_the_c_library_ignores_is_not_local(tmp_path: Path, line: str) -> None:
    """The C library asks the next name service for the name in that line."""
    passwd = tmp_path / "passwd"
    passwd.write_text(f"{line}\nbob:x:1000:1000::/home/bob:/bin/sh\n")
    local = LocalAccounts(str(passwd), str(tmp_path / "missing"))
    assert local.have("bob")
    for account in (line.partition(":")[0], line.partition(":")[0].lstrip("#+- "), 1005, 10):
        assert not local.have(account)


def test_a_carriage_return_does_not_end_a_line(tmp_path: Path) -> None:
    passwd = tmp_path / "passwd"
    passwd.write_bytes(b"bob:x:1000:1000::/home/bob\rzoe:x:1005:1005::/:/bin/sh\nx\rzoe:x:1006:1006::/:/bin/sh\n")
    local = LocalAccounts(str(passwd), str(tmp_path / "missing"))
    assert local.have("x\rzoe", 1006)
    for account in ("bob", "zoe", 1000, 1005):
        assert not local.have(account)


def test_no_account_is_local_if_a_server_is_asked_first(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_bytes(PASSWD)
    (tmp_path / "nsswitch.conf").write_text("passwd: sss files\n")
    assert not LocalAccounts(str(tmp_path / "passwd"), str(tmp_path / "nsswitch.conf")).have("root")


def test_no_account_is_local_while_nscd_answers(tmp_path: Path) -> None:
    """The C library asks nscd first, and waits for its answer."""
    (tmp_path / "passwd").write_bytes(PASSWD)
    local = LocalAccounts(str(tmp_path / "passwd"), str(tmp_path / "missing"), str(tmp_path / "nscd"))
    assert local.have("root")
    (tmp_path / "nscd").touch()
    assert not local.have("root")
