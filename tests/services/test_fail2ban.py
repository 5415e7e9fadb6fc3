"""Tests of the filter for fail2ban, by the real fail2ban-regex, on lines that sshd and pam_totp have written."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pam_totp.core.verify import Outcome
from pam_totp.member.decisions import NOT_THIS_MEMBER, REFUSED
from pam_totp.operations import audit_log
from pam_totp.operations.first_login import NOT_CONFIRMED, TICKET_ENDED
from tests.services.namespace import Machine, Sshd
from tests.services.test_log import FORGERIES
from tests.services.test_ssh import CODE, is_in
from tests.support.site import TREE, codes

DATA = TREE / "pam_totp/system/data"
FILTER, JAIL = DATA / "fail2ban-filter.conf", DATA / "fail2ban-jail.conf"
FAIL2BAN = Path("/etc/fail2ban")
REGEX = shutil.which("fail2ban-regex")
HOST = "server"

needs_fail2ban = pytest.mark.skipif(REGEX is None, reason="requires fail2ban (apt-get install fail2ban)")


def as_file(lines: list[str]) -> str:
    """Return `lines` of /dev/log as a log daemon writes them to auth.log: without priority, with the host name."""
    found = (re.fullmatch(r"(?:<\d+>)(\w{3} [ \d]\d [\d:]{8}) (.*)", line.rstrip("\0\n")) for line in lines)
    return "".join(f"{m[1]} {HOST} {m[2]}\n" for m in found if m is not None)


def own(*lines: str) -> str:
    """Return `lines` of pam_totp as in auth.log."""
    return "".join(f"Nov 28 22:51:22 {HOST} pam_totp[4711]: {line}\n" for line in lines)


def failures(tmp_path: Path, log: str, name: str = "pam_totp") -> list[tuple[str, str | None]]:
    """Return address and user of each failure that fail2ban-regex finds in `log` with the filter `name`."""
    folder = tmp_path / "fail2ban"
    if not folder.exists():
        shutil.copytree(FAIL2BAN, folder)
        shutil.copy(FILTER, folder / "filter.d/pam_totp.conf")
    file = tmp_path / "auth.log"
    file.write_text(log)
    assert REGEX is not None
    done = subprocess.run(
        [REGEX, "-c", folder, "-o", '["<ip>","<F-USER>"]', file, f"{name}[logtype=file]"],
        text=True,
        capture_output=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode in (0, 255), done.stderr  # 255: no matching line
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    return [(ip, user or None) for ip, user in rows]


@needs_fail2ban
def test_fail2ban_finds_wrong_codes_in_the_log_of_sshd_and_of_pam_totp(
    machine: Machine, sshd: Sshd, way_there: str, tmp_path: Path
) -> None:
    machine.stack("sshd", machine.module_line(way=way_there))
    machine.enrol("alice")
    talk = sshd.ssh("alice", "NumberOfPasswordPrompts=1", source="192.0.2.7").asks(CODE).fails("000000")
    assert talk.ends()[0] == 255
    talk = sshd.ssh("mallory", "NumberOfPasswordPrompts=1", source="192.0.2.8").asks(CODE).fails("000000")
    assert talk.ends()[0] == 255
    assert is_in(sshd.ssh(source="192.0.2.7").asks(CODE).says(codes(0)))
    sshd.ssh(source="192.0.2.7").asks(CODE).interrupts()
    machine.log.wait_for("reason=no-answer")
    log = as_file(machine.log.lines())
    assert "accepted user=alice" in log
    found = failures(tmp_path, log)
    assert found == [("192.0.2.7", "alice")] * 2 + [("192.0.2.8", "mallory")] * 2
    by_sshd = {address for address, _ in failures(tmp_path, log, "sshd")}
    assert by_sshd == {"192.0.2.7", "192.0.2.8"}, "the filter for sshd, which Debian enables, finds the same lines"


@needs_fail2ban
def test_every_refused_answer_counts_but_a_missing_answer_does_not(tmp_path: Path) -> None:
    """A ban, or its absence, could otherwise reveal a right code or an enrolled user to an attacker."""
    counted = {o.value for o in Outcome if not o.accepted} - {Outcome.TICKET.value}
    counted |= {NOT_CONFIRMED, TICKET_ENDED}
    reasons = [*counted, "no-answer", "too-many-at-once", "not-yours-to-ask"]
    users = {reason: f"user{number}" for number, reason in enumerate(reasons)}
    lines = [audit_log.line("sshd", "refused", user=u, reason=r, rhost="192.0.2.7") for r, u in users.items()]
    lines.append(audit_log.line("sshd", "accepted", user="alice", by="code", rhost="192.0.2.7"))
    lines.append(audit_log.line("su", "refused", user="alice", reason="wrong"))
    lines.append(audit_log.line("sshd", "refused", user="alice", reason="wrong", rhost="host.example"))
    assert {user for _, user in failures(tmp_path, own(*lines))} == {users[reason] for reason in counted}
    portal = audit_log.line("pam_totp-portal", "refused", user="?", reason="password", rhost="2001:db8::7")
    long = audit_log.line(
        "sshd", "refused", user="a", reason="wrong", token="my fob", refused_before=2, rhost="192.0.2.9"
    )
    assert failures(tmp_path, own(portal, long)) == [("2001:db8::7", None), ("192.0.2.9", "a")]


@needs_fail2ban
def test_in_a_fleet_lines_of_the_host_count_and_no_member_can_cause_a_ban(tmp_path: Path) -> None:
    """A stolen member could otherwise cause a ban of the address of an authority or another member."""
    member = {"authority": "otp1.example.org:8443", "rhost": "192.0.2.7"}
    lines = [
        audit_log.line("sshd", "refused", user=f"user{number}", reason=reason, **member)
        for number, reason in enumerate((REFUSED, NOT_THIS_MEMBER))
    ]
    lines += [
        audit_log.line("sshd", "refused", user="x", reason=reason, member="web1", rhost="192.0.2.66")
        for reason in (*(o.value for o in Outcome), NOT_THIS_MEMBER)
    ]
    lines.append(
        audit_log.line("sshd", "refused", user="x", reason="replayed", token="a", member="web1", rhost="192.0.2.66")
    )
    assert failures(tmp_path, own(*lines)) == [("192.0.2.7", "user0"), ("192.0.2.7", "user1")]


@needs_fail2ban
def test_no_user_name_causes_a_ban_of_another_address(tmp_path: Path) -> None:
    hostile = [*FORGERIES, "x rhost=192.0.2.66", '" rhost=192.0.2.66', "x reason=wrong rhost=192.0.2.66", "<HOST>"]
    lines = [audit_log.line("sshd", "refused", user=h, reason="wrong", token=h, rhost="192.0.2.7") for h in hostile]
    lines += [audit_log.line("sshd", "refused", user=h, reason="wrong", rhost=h) for h in hostile]
    lines += [audit_log.line(h, "refused", user="a", reason="no-answer", rhost="192.0.2.66") for h in hostile]
    found = failures(tmp_path, own(*lines))
    assert [address for address, _ in found] == ["192.0.2.7"] * len(hostile)


def test_the_jail_is_shipped_disabled_and_names_the_filter() -> None:
    jail = configparser.RawConfigParser()
    jail.read(JAIL)
    assert dict(jail["pam_totp"]).items() >= {"enabled": "false", "filter": "pam_totp", "backend": "systemd"}.items()


@needs_fail2ban
def test_fail2ban_accepts_the_jail(tmp_path: Path) -> None:
    folder = tmp_path / "fail2ban"
    shutil.copytree(FAIL2BAN, folder)
    shutil.copy(FILTER, folder / "filter.d/pam_totp.conf")
    for old in (folder / "jail.d").iterdir():
        old.unlink()
    shutil.copy(JAIL, folder / "jail.d/pam_totp.conf")
    (folder / "jail.d/pam_totp.local").write_text("[pam_totp]\nenabled = true\n")
    client = shutil.which("fail2ban-client")
    assert client is not None
    done = subprocess.run([client, "-c", folder, "-d"], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "['add', 'pam_totp', 'systemd']" in done.stdout
    assert "_SYSTEMD_UNIT=pam_totp.service" in done.stdout
