"""Tests of `pam-totp member break-glass`, which generates recovery codes for a member."""

from __future__ import annotations

import argparse
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from pam_totp.cli import main
from pam_totp.cli.command_line import CommandError
from pam_totp.cli.member_break_glass import break_glass
from pam_totp.core.record import UserRecord
from pam_totp.operations.enroll import valid_recovery_codes
from pam_totp.pam.login_session import read_site
from pam_totp.store.file import FileStore
from pam_totp.system.audit import Audit
from tests.support.site import ME, fob

MEMBER = '[member]\nauthorities = ["otp1:8443"]\ncentre_down = "break-glass"\n'


class Host:
    """A member with an empty store."""

    def __init__(self, folder: Path) -> None:
        self.config, self.output = folder / "site.toml", folder / "codes"
        self.config.write_text(MEMBER)
        (folder / "store").mkdir(0o700)
        self.store = FileStore(str(folder / "store"))

    def run(self, *users: str, **options: Any) -> int:
        given = {"output": str(self.output), "count": None, "yes": False, "json": False} | options
        args = argparse.Namespace(config=str(self.config), store=self.store.folder, audit=Audit(), **given)
        return break_glass(args, users)

    def codes(self) -> list[list[str]]:
        """Return the words of each line of the output file, and delete the file."""
        lines = [line.split() for line in self.output.read_text().splitlines()]
        self.output.unlink()
        return lines


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_several_users_get_codes_in_one_file(host: Host) -> None:
    assert host.run(ME, "alice", ME, count=2) == 0
    assert stat.S_IMODE(host.output.stat().st_mode) == 0o600
    lines = host.codes()
    assert [name for name, _ in lines] == [ME, ME, "alice", "alice"]
    for user in (ME, "alice"):
        record = host.store.read(user)
        assert (record.tokens, record.enrolled) == ((), False), "the host gets no key"
        assert len(valid_recovery_codes(record, [code for name, code in lines if name == user])) == 2


def test_the_command_makes_the_codes(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["member", "break-glass", ME, "--config", str(host.config), "--store", host.store.folder]
    assert main([*words, "--count", "3", "--output", str(host.output)]) == 0
    assert len(host.codes()) == 3
    assert main([*words, "--group", "web"]) == 2
    assert "unexpected option of 'pam-totp member break-glass': --group" in capsys.readouterr().err


def test_new_codes_replace_unused_codes_after_a_question(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.run(ME)
    old = [code for _, code in host.codes()]
    assert len(old) == 10
    monkeypatch.setattr("pam_totp.cli.prompts.ask", lambda *words, **options: "n")
    with pytest.raises(CommandError, match="cancelled; nothing was changed"):
        host.run(ME)
    assert len(valid_recovery_codes(host.store.read(ME), old)) == 10
    assert host.run(ME, yes=True) == 0
    assert valid_recovery_codes(host.store.read(ME), old) == []


def test_codes_are_printed_on_a_terminal_or_to_a_named_place(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match="only on a terminal"):
        host.run(ME, output=None)
    assert list(host.store.users()) == []
    host.run(ME, output="-", json=True, count=1)
    (shown,) = json.loads(capsys.readouterr().out)
    assert len(valid_recovery_codes(host.store.read(ME), shown["recovery"])) == 1


def test_a_warning_says_that_the_site_does_not_allow_them(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    host.config.write_text('[member]\nauthorities = ["otp1:8443"]\n')
    host.run(ME)
    assert 'these codes are not accepted yet (set centre_down = "break-glass"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("users", "options", "reason"),
    [([], {}, "missing USER"), ([ME], {"count": 0}, "--count must be"), ([ME], {"count": 1000}, "--count must be")],
)
def test_wrong_usage_changes_nothing(host: Host, users: list[str], options: dict[str, int], reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        host.run(*users, **options)
    assert not host.output.exists()


def test_a_record_with_tokens_is_not_touched(host: Host) -> None:
    record = UserRecord(user=ME, tokens=(fob(),))
    host.store.update(ME, lambda _: (record, None), create=True)
    with pytest.raises(CommandError, match="has tokens in the store of this host"):
        host.run(ME)
    assert host.store.read(ME) == record
    assert not host.output.exists()


def test_only_a_member_has_such_codes(host: Host) -> None:
    host.config.write_text("")
    with pytest.raises(CommandError, match="break-glass requires a member"):
        host.run(ME)


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root: /etc/pam_totp.toml of the test's mount namespace")
@pytest.mark.parametrize(
    "words", [["list"], ["rename", "alice", "fob", "key"], ["verify", "alice", "755224"], ["unlock", "alice"]]
)
def test_other_commands_name_the_authority(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    monkeypatch.setattr("pam_totp.cli.store_access.read_site", lambda: read_site(str(host.config)))
    assert main(words) == 3
    assert "this host is a member: its users are enrolled at an authority" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root: /etc/pam_totp.toml of the test's mount namespace")
def test_a_member_shows_statistics_of_its_log_and_names_the_authorities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    for module in ("store_access", "stats"):
        monkeypatch.setattr(f"pam_totp.cli.{module}.read_site", lambda: read_site(str(host.config)))
    (tmp_path / "log").write_text("pam_totp(sshd:auth): accepted user=alice by=code authority=otp1:8443\n")
    assert main(["stats", "--log", str(tmp_path / "log")]) == 0
    drawn = capsys.readouterr().out
    assert "accepted by code" in drawn
    assert "TOKENS" not in drawn
    assert "only its authorities know tokens, users, skipped codes and drift" in " ".join(drawn.split())
    assert main(["stats", "--textfile", str(tmp_path / "x.prom")]) == 0
    assert "pam_totp_store_up" not in (tmp_path / "x.prom").read_text()


def test_a_portal_with_a_store_names_the_authority(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["portal", "--config", str(host.config)]) == 3
    assert "this host is a member: its users are enrolled at an authority" in capsys.readouterr().err


def test_the_command_member_break_glass_makes_the_codes(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(host.config), "--store", host.store.folder, "--output", "-", "--count", "1"]
    assert main(["member", "break-glass", ME, *words]) == 0
    name, code = capsys.readouterr().out.split()
    assert (name, valid_recovery_codes(host.store.read(ME), [code])) == (ME, [code])
    assert main(["member", "break-glass", *words]) == 2
    assert "missing USER argument" in capsys.readouterr().err
    assert main(["member", "revoke", "web1", "--count", "1"]) == 2
    assert "unexpected option of 'pam-totp member revoke': --count" in capsys.readouterr().err
    assert main(["member", "revoke", "web1", "web2"]) == 2
    assert "takes at most one name" in capsys.readouterr().err
