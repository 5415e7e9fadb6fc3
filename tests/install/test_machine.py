"""Tests of system.machine with a machine's PAM files, some of them missing or invalid."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pam_totp.system.machine import Machine, architecture
from pam_totp.system.pamd.stack import StackError

LINE = "auth required pam_totp.so\n"


@pytest.fixture
def pam_d(tmp_path: Path) -> Path:
    folder = tmp_path / "etc/pam.d"
    folder.mkdir(parents=True)
    return folder


def test_a_service_is_found_by_name_by_path_and_as_planned(tmp_path: Path, pam_d: Path) -> None:
    vendor = tmp_path / "usr/lib/pam.d"
    vendor.mkdir(parents=True)
    (vendor / "sudo").write_text("vendor\n")
    (vendor / "su").write_text("vendor\n")
    (pam_d / "sudo").write_text("site\n")
    machine = Machine(str(tmp_path))
    assert [machine.service(name) for name in ("sudo", "su", "sshd")] == ["site\n", "vendor\n", None]
    assert machine.service("/etc/pam.d/sudo") == "site\n"
    after = machine.after({"sudo": LINE})
    assert [after.service(name) for name in ("sudo", "/etc/pam.d/sudo")] == [LINE, LINE]
    assert after.services_with_module() == ["sudo"]


def test_an_unreadable_service_file_is_an_error(tmp_path: Path, pam_d: Path) -> None:
    (pam_d / "sudo").mkdir()
    with pytest.raises(StackError, match=r"pam\.d/sudo: Is a directory"):
        Machine(str(tmp_path)).service("sudo")


def test_an_invalid_stack_counts_if_its_file_names_the_module(tmp_path: Path, pam_d: Path) -> None:
    (pam_d / "sudo").write_text("auth include nowhere\n" + LINE)
    (pam_d / "su").write_text("auth include nowhere\n")
    machine = Machine(str(tmp_path))
    with pytest.raises(StackError):
        machine.stack("sudo")
    assert machine.services_with_module() == ["sudo"]


def test_lines_in_the_wrong_phase_are_found(tmp_path: Path, pam_d: Path) -> None:
    (pam_d / "sudo").write_text(LINE + LINE.replace("auth", "account") + LINE.replace("auth", "session"))
    (pam_d / "su").write_text("auth required\n")
    machine = Machine(str(tmp_path))
    assert machine.wrong_phases("sudo") == ["account", "session"]
    assert machine.wrong_phases("su") == [], "another check reports an invalid stack"


def test_a_machine_without_pam_has_no_services_and_no_module_folder(tmp_path: Path) -> None:
    machine = Machine(str(tmp_path))
    assert (machine.services(), machine.services_with_module(), machine.module_folder(), machine.module()) == (
        [],
        [],
        None,
        None,
    )


def test_only_a_program_has_an_architecture(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"\x7fELF")
    (tmp_path / "script").write_bytes(b"#!/bin/sh\n" + b" " * 20)
    assert [architecture(str(tmp_path / name)) for name in ("short", "script", "nothing")] == [None] * 3
    assert architecture(sys.executable) is not None


def test_lines_in_the_wrong_phase_of_included_files_are_found(tmp_path: Path, pam_d: Path) -> None:
    (pam_d / "common-account").write_text("account required pam_totp.so\naccount required pam_unix.so\n")
    (pam_d / "sudo").write_text("auth required pam_unix.so\n@include common-account\n")
    (pam_d / "su").write_text("auth required pam_unix.so\n")
    machine = Machine(str(tmp_path))
    assert machine.wrong_phases("sudo") == ["account"]
    assert [(h.file, h.rule.first) for h in machine.misplaced("sudo")] == [("common-account", 0)]
    assert machine.services_with_module() == ["common-account", "sudo"]
