"""Names of accounts: whether their lookup asks a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from pam_totp.pam.names import lookups_are_local

LINES = {
    "passwd: files": True,
    "passwd:\tfiles systemd": True,
    "passwd:compat": True,
    "  passwd : files # and ldap": True,
    "passwd: files [NOTFOUND=return] systemd": True,
    "passwd: files [ NOTFOUND=return UNAVAIL=continue ] systemd": True,
    "#passwd: ldap\npasswd: files": True,
    "group: files ldap\nhosts: files dns": True,
    "passwd_compat: nis\npasswd: files": True,
    "": True,
    "passwd: files sss": False,
    "passwd: files [NOTFOUND=return] ldap": False,
    "passwd: files[SUCCESS=merge]winbind": False,
    "passwd: compat\npasswd_compat: nis\npasswd: nis": False,
    "passwd: \udcff": False,
}


@pytest.mark.parametrize("text", LINES)
def test_lookups_are_local_if_all_services_of_passwd_read_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "nsswitch.conf"
    path.write_bytes(text.encode("utf-8", "surrogateescape") + b"\n")
    assert lookups_are_local(str(path)) is LINES[text]


def test_lookups_are_local_without_a_file_but_not_if_it_is_unreadable(tmp_path: Path) -> None:
    assert lookups_are_local(str(tmp_path / "missing"))
    assert not lookups_are_local(str(tmp_path))
