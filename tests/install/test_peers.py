"""Tests of `enable` in a stack with another module for codes: the replacement of its line, and the roll-back."""

from __future__ import annotations

from pathlib import Path

import pytest

from pam_totp.system.enable.changes import Change, apply, undo
from pam_totp.system.enable.plan import EnablingError, OtherCodeModule, plan
from pam_totp.system.pamd import analysis, peers
from pam_totp.system.pamd.edit import new_lines
from pam_totp.system.pamd.findings import errors
from pam_totp.system.pamd.stack import StackError, flatten
from tests.install.machine import COMMAND, LATE, Fresh
from tests.install.test_edit import machine as host
from tests.support.etc import PASSWORD, STACKS
from tests.support.site import codes

THEIRS = "auth required pam_google_authenticator.so nullok\n"
SUDO = STACKS["sudo"].replace("@include common-auth\n", f"@include common-auth\n{THEIRS}")
ADDED = new_lines("x", "password", [])


def put(text: str, first: str = "password") -> str:
    added = new_lines("x", "key" if first == "key" else "password", [])
    return peers.replace(text, "x", added, STACKS.get, "key" if first == "key" else "password")[0]


def rules(text: str) -> list[str]:
    return [f"{h.rule.control} {h.rule.module}" for h in flatten("x", {**STACKS, "x": text}.get)]


def test_the_line_of_the_other_module_becomes_a_comment_and_is_restored() -> None:
    after, replaced = peers.replace(SUDO, "x", ADDED, STACKS.get, "password")
    assert replaced == THEIRS
    assert f"# replaced by pam_totp: {THEIRS}" in after
    assert "required pam_google_authenticator.so" not in rules(after)
    assert peers.restore(after.replace(ADDED, ""), replaced) == SUDO


def test_a_replacement_of_a_line_before_the_password_is_after_it() -> None:
    after = put(THEIRS + STACKS["sudo"])
    assert after.index("common-auth") < after.index("auth required pam_totp.so")


def test_a_line_that_a_jump_skips_is_replaced_at_its_position() -> None:
    text = (
        f"auth requisite pam_unix.so\nauth [success=1 default=ignore] pam_access.so\n{THEIRS}auth optional pam_cap.so\n"
    )
    assert rules(put(text))[1:] == [
        "[success=1 default=ignore] pam_access.so",
        "required pam_totp.so",
        "optional pam_cap.so",
    ]


def test_a_stack_of_the_other_module_alone_is_enabled_after_a_key() -> None:
    """Some guides comment out the password line of sshd's stack, and require a key before PAM."""
    after = put(f"{THEIRS}account required pam_nologin.so\n", "key")
    assert rules(after) == ["[success=done ignore=ignore default=die] pam_totp.so"]
    assert not errors(analysis.check_order("x", flatten("x", {"x": after}.get), code_only=True))


def test_a_line_of_several_physical_lines_is_restored() -> None:
    text = SUDO.replace(THEIRS, "auth required \\\n    pam_oath.so usersfile=/etc/users.oath # codes\n")
    after, replaced = peers.replace(text, "x", ADDED, STACKS.get, "password")
    assert "required pam_oath.so" not in rules(after)
    assert peers.restore(after.replace(ADDED, ""), replaced) == text


def test_a_replaced_line_with_unusual_line_ends_is_restored() -> None:
    text = f"# replaced by pam_totp: {THEIRS[:-1]}\x0b\r\n# other\n"
    assert peers.restore(text, f"{THEIRS[:-1]}\x0b\r\n") == f"{THEIRS[:-1]}\x0b\r\n# other\n"


def test_a_second_comment_like_that_of_a_replaced_line_is_refused() -> None:
    after, replaced = peers.replace(SUDO, "x", ADDED, STACKS.get, "password")
    with pytest.raises(StackError, match="exactly once"):
        peers.restore(f"# replaced by pam_totp: {THEIRS}{after}", replaced)


def test_without_a_replaced_line_the_text_is_unchanged() -> None:
    assert peers.restore(SUDO, "") == SUDO


def test_two_equal_replaced_lines_are_restored() -> None:
    text = SUDO.replace(THEIRS, THEIRS * 2)
    after, replaced = peers.replace(text, "x", ADDED, STACKS.get, "password")
    assert peers.restore(after.replace(ADDED, ""), replaced) == text


def test_a_replaced_line_that_was_edited_is_not_restored() -> None:
    with pytest.raises(StackError, match="that 'enable' replaced was changed"):
        peers.restore("# replaced by pam_totp: auth required pam_oath.so\n", THEIRS)


def test_without_replace_the_plan_names_the_line_and_the_option(tmp_path: Path) -> None:
    here = host(tmp_path, sudo=SUDO)
    with pytest.raises(OtherCodeModule, match=r"by pam_google_authenticator.so \(sudo:7\) \(add --replace"):
        plan(here, "sudo", "password", [])
    changes = plan(here, "sudo", "password", [], replace=True)
    assert [(Path(c.path).name, c.commented_lines) for c in changes] == [("sudo", THEIRS), ("sudo-i", "")]


def test_a_line_in_an_included_file_must_be_deleted_by_hand(tmp_path: Path) -> None:
    here = host(tmp_path, common_auth=STACKS["common-auth"] + THEIRS)
    with pytest.raises(
        EnablingError, match=r"common-auth:4: pam_google_authenticator.so .* \(delete that line by hand"
    ):
        plan(here, "sudo", "password", [], replace=True)


def test_a_rollback_of_an_edited_file_restores_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(SUDO)
    after, replaced = peers.replace(SUDO, "x", ADDED, STACKS.get, "password")
    change = Change(str(path), SUDO, after, ADDED, replaced)
    apply(change)
    path.write_text("# site policy\n" + path.read_text())
    undo(change)
    assert path.read_text() == "# site policy\n" + SUDO


# ---- on a machine


def test_enable_offers_to_replace_the_line_and_disable_restores_it(machine: Fresh) -> None:
    machine.write("/etc/pam.d/sudo", SUDO)
    refused = machine.installed("enable", "sudo", "--for-user", "alice")
    assert (refused.returncode, "add --replace to replace that line" in refused.stderr) == (1, True), refused.stderr
    talk = machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice", LATE)
    talk.asks("Replace that line").says("y").asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0))
    talk.asks("Keep this terminal open.")
    second = machine.sudo(COMMAND, "enable", "sudo", "--keep")
    second.asks("alice: ").says(PASSWORD).asks("One-time code: ").says(codes(1))
    assert second.ends()[0] == 0, "a login needs one code only"
    assert talk.ends()[0] == 0
    machine.write("/etc/pam.d/sudo", "# site policy\n" + machine.pam_d()["sudo"])
    done = machine.installed("disable", "sudo")
    assert done.returncode == 0
    assert "pam-totp export --all" in done.stdout, "the old module's file lacks the codes accepted since"
    assert machine.pam_d()["sudo"] == "# site policy\n" + SUDO


def test_an_offer_that_is_declined_changes_nothing(machine: Fresh) -> None:
    machine.write("/etc/pam.d/sudo", SUDO)
    talk = machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice")
    talk.asks("Replace that line").says("")
    assert talk.ends()[0] == 1
    assert machine.pam_d()["sudo"] == SUDO


def test_the_rehearsal_of_sudo_with_rootpw_asks_for_the_code_of_root(machine: Fresh) -> None:
    machine.write("/etc/sudoers", "Defaults rootpw\nalice ALL=(ALL:ALL) ALL\n", 0o440)
    try:
        refused = machine.installed("enable", "sudo", "--for-user", "alice")
        assert (refused.returncode, "root has no token, and would be locked out" in refused.stdout) == (1, True)
        machine.enrol("root")
        machine.shell("chown pam_totp: /var/lib/pam_totp/root.record")
        talk = machine.talk(COMMAND, "enable", "sudo", "--for-user", "alice", LATE)
        talk.asks("log in as root").asks("rehearsal: log in to sudo as root")
        talk.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(codes(0)).asks("Keep this terminal open.")
        talk.presses_ctrl_c().ends()
    finally:
        machine.write("/etc/sudoers", "root ALL=(ALL:ALL) ALL\nalice ALL=(ALL:ALL) ALL\n", 0o440)
