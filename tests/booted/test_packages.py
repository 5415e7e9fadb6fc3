"""Tests of the Debian package under a real systemd. Only `make booted` runs these tests.

A fixture builds the packages in a bare root of the same system, because a build on the virtual machine takes minutes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from tests.booted.machine import SUITE, Booted, Shell, make_disk, only_booted, until
from tests.support.site import KEY
from tests.systems.packages import LOGINS, NEXT, Packaged
from tests.systems.roots import SYSTEMS

pytestmark = only_booted
KEYS = {"alice": KEY, "root": KEY[::-1]}


@pytest.fixture(scope="module")
def root() -> Iterator[Shell]:
    """Yield a root shell on a machine with the first version installed, and alice and root enrolled."""
    with tempfile.TemporaryDirectory(prefix="pam_totp-packages-", dir="/var/tmp") as folder:
        packages = Path(folder) / "packages"
        packages.mkdir()
        with Packaged(SYSTEMS[SUITE], tools=()) as made:
            made.build_both()
            for version in ("one", "two"):
                shutil.copytree(made.root.path(f"/srv/{version}"), packages / version)
        (packages / "logins.py").write_text(LOGINS)
        for user, key in KEYS.items():
            (packages / user).write_text("".join(f"{hotp(key, counter)}\n" for counter in range(2000)))
        disk = Path(folder) / "disk"
        make_disk(disk, packages)
        machine = Booted(disk)
        try:
            yield prepared(machine.first)
        finally:
            machine.stop()


def prepared(root: Shell) -> Shell:
    root.does("dpkg -i packages/one/libpam-totp_*.deb")
    root.does("echo 'auth required pam_totp.so nodelay socket=none' > /etc/pam.d/cold")
    for user, key in KEYS.items():
        root.does(f"echo hex:{key.hex()} | pam-totp enroll {user} --type hotp --name fob --secret-stdin --yes")
    return root


def pid(root: Shell) -> int:
    return int(root.does("systemctl show --property MainPID --value pam_totp.service"))


def test_an_upgrade_restarts_the_service_and_refuses_no_right_code(root: Shell) -> None:
    def reports(user: str, word: str) -> bool:
        return word in root.does(f"cat /run/{user}")

    assert root.does("systemctl is-active pam_totp.socket").strip() == "active"
    assert root.does("systemctl is-enabled pam_totp.socket pam_totp-takeback.service").split() == ["enabled"] * 2
    for service, user in (("demo", "alice"), ("cold", "root")):
        loop = f"python3 -I packages/logins.py {service} {user} /run/stop < packages/{user}"
        root.does(f"({loop} > /run/{user} 2>&1 &)")
        until(partial(reports, user, "begun"), f"{user} completes a first login")
    before = pid(root)
    assert before != 0
    root.does("dpkg -i packages/two/libpam-totp_*.deb")
    until(lambda: pid(root) not in (0, before), "systemd starts the new service")
    root.does("touch /run/stop")
    for user in KEYS:
        until(partial(reports, user, "refused"), "the logins end")
        came = json.loads(root.does(f"cat /run/{user}").partition("begun")[2])
        assert came["refused"] == []
        assert came["count"] > 5
    assert root.does("pam-totp --version").split()[-1] == NEXT
    assert "0 loaded units" in root.does("systemctl --no-pager --failed")


def test_a_purge_leaves_no_unit_and_keeps_the_secrets(root: Shell) -> None:
    status, said = root.tries("dpkg -P libpam-totp")
    assert (status != 0, "/etc/pam.d/demo: names pam_totp.so" in said) == (True, True), said
    root.does("rm /etc/pam.d/demo /etc/pam.d/cold; DEBIAN_FRONTEND=noninteractive dpkg -P libpam-totp")
    assert "0 loaded units" in root.does("systemctl --no-pager --failed")
    units = root.does("systemctl list-unit-files --no-pager; systemctl list-units --no-pager --all")
    assert "pam_totp" not in units
    assert root.does("ls /var/lib/pam_totp").split() != []
