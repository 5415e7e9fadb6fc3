"""Tests of the change of uid and gid to those of the account that reads a database."""

from __future__ import annotations

import os

from pam_totp.pam.privileges import act_as_account, acting_as_root, become_account
from tests.conftest import as_root
from tests.core.racing import in_processes
from tests.support.site import UNPRIVILEGED_UID


def ids() -> str:
    return f"{os.getresuid()} {os.getgroups()}"


@as_root
def test_root_becomes_the_account_permanently_with_the_given_groups() -> None:
    def changes(_: int) -> str:
        become_account("nobody", also=(7,))
        return ids()

    assert in_processes(1, changes) == [f"{(UNPRIVILEGED_UID,) * 3} [7]"]


@as_root
def test_root_acts_as_the_account_and_can_return() -> None:
    def changes(_: int) -> str:
        act_as_account("nobody")
        acting = ids()
        with acting_as_root():
            return f"{acting}, {os.geteuid()}"

    assert in_processes(1, changes) == [f"{(0, UNPRIVILEGED_UID, 0)} [], 0"]


def test_without_the_account_or_root_nothing_changes() -> None:
    before = ids()
    become_account("no-such-account")
    act_as_account("no-such-account")
    if os.geteuid() != 0:
        become_account("root")
    assert ids() == before
