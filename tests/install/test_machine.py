"""Where things are on a machine, when some of them are not there or not as they should be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pam_totp.system.machine import Machine, architecture
from pam_totp.system.pamd.stack import StackError

OURS = "auth required pam_totp.so\n"


@pytest.fixture
def pam_d(tmp_path: Path) -> Path:
    folder = tmp_path / "etc/pam.d"
    folder.mkdir(parents=True)
    return folder


def test_a_service_is_found_by_name_by_path_and_as_it_would_be(tmp_path: Path, pam_d: Path) -> None:
    vendor = tmp_path / "usr/lib/pam.d"
    vendor.mkdir(parents=True)
    (vendor / "sudo").write_text("vendor\n")
    (vendor / "su").write_text("vendor\n")
    (pam_d / "sudo").write_text("site\n")
    machine = Machine(str(tmp_path))
    assert [machine.service(name) for name in ("sudo", "su", "sshd")] == ["site\n", "vendor\n", None]
    assert machine.service("/etc/pam.d/sudo") == "site\n"
    after = machine.after({"sudo": OURS})
    assert [after.service(name) for name in ("sudo", "/etc/pam.d/sudo")] == [OURS, OURS]
    assert after.ours() == ["sudo"]


def test_a_service_that_cannot_be_read_is_never_taken_for_one_that_is_not_there(tmp_path: Path, pam_d: Path) -> None:
    (pam_d / "sudo").mkdir()
    with pytest.raises(StackError, match=r"pam\.d/sudo: Is a directory"):
        Machine(str(tmp_path)).service("sudo")


def test_a_stack_that_cannot_be_followed_is_ours_where_it_names_us(tmp_path: Path, pam_d: Path) -> None:
    (pam_d / "sudo").write_text("auth include nowhere\n" + OURS)
    (pam_d / "su").write_text("auth include nowhere\n")
    machine = Machine(str(tmp_path))
    with pytest.raises(StackError):
        machine.stack("sudo")
    assert machine.ours() == ["sudo"]


def test_lines_of_ours_where_no_code_is_asked_for_are_named(tmp_path: Path, pam_d: Path) -> None:
    (pam_d / "sudo").write_text(OURS + OURS.replace("auth", "account") + OURS.replace("auth", "session"))
    (pam_d / "su").write_text("auth required\n")
    machine = Machine(str(tmp_path))
    assert machine.misplaced("sudo") == ["account", "session"]
    assert machine.misplaced("su") == [], "what is no stack is told of elsewhere"


def test_a_machine_without_pam_has_no_services_and_no_place_for_a_module(tmp_path: Path) -> None:
    machine = Machine(str(tmp_path))
    assert (machine.services(), machine.ours(), machine.module_folder(), machine.module()) == ([], [], None, None)


def test_what_is_no_program_has_no_architecture(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"\x7fELF")
    (tmp_path / "script").write_bytes(b"#!/bin/sh\n" + b" " * 20)
    assert [architecture(str(tmp_path / name)) for name in ("short", "script", "nothing")] == [None] * 3
    assert architecture(sys.executable) is not None
