"""Tests of `pam-totp stats`: the log, the store, the terminal, JSON, and the file for node_exporter."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pam_totp.cli import log_journal, textfile
from pam_totp.cli.command_line import CommandError
from pam_totp.core.record import UserRecord
from tests.cli.test_restored import write_log
from tests.conftest import as_root
from tests.metrics.test_statistics import accepted
from tests.support.site import OTHER_UID, PATIENCE, TREE, Site, codes, fob, phone

REFUSED = "pam_totp(sshd:auth): refused user=alice reason=wrong rhost=192.0.2.7"
FOB = fob(serial="FT000123", last_used=1)


def enrolled(site: Site) -> Path:
    """Enrol three users. Return the path of a log with six answers and an error."""
    site.enrol(FOB, user="alice", failures=2, failures_at=4_000_000_000)
    site.enrol(phone(), user="bob", salt="00" * 16, recovery=("ab" * 32,))
    site.enrol(phone(confirmed=False), user="carol")
    lines = [accepted(UserRecord(user="alice", tokens=(FOB,)), 6)] * 3 + [REFUSED]
    lines += [accepted(UserRecord(user="bob", tokens=(phone(),)), -1, "sudo")] * 2
    return write_log(site.folder / "auth.log", *lines, "pam_totp(sshd:auth): error user=bob problem=broken")


def test_the_statistics_are_drawn_in_80_columns(site: Site) -> None:
    log = enrolled(site)
    done = site.command("stats", "--log", log)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    words = [" ".join(line.split()).rstrip("█▏▎▍▌▋▊▉ #") for line in lines]
    for expected in (
        "ANSWERS since 2026-11-28 19:37 UTC (7 lines of the log)",
        "sshd accepted by code 3",
        "refused: wrong 1",
        "sudo accepted by code 2",
        "1 error (see 'journalctl -t pam_totp -p err')",
        "TOKENS of 3 users",
        "hotp active 1",
        "no recovery codes: 1 of 2 users (see 'pam-totp list --without-recovery')",
        "wrong answers: alice 2",
        "FT00 1 3 6.0 6",
        "bob phone - 2 -1.0 30 s slow",
    ):
        assert expected in words


def test_all_statistics_are_in_json(site: Site) -> None:
    log = enrolled(site)
    data: Any = site.command_json("stats", "--log", log)
    assert data["answers"][0] == {"service": "sshd", "outcome": "accepted", "reason": "code", "count": 3}
    assert data["errors"] == 1
    assert data["store"]["without_recovery_codes"] == 1
    assert data["store"]["failures"] == {"alice": 2}
    assert {"type": "totp", "state": "unconfirmed", "count": 1} in data["store"]["tokens"]
    assert data["ahead"] == [{"prefix": "FT00", "tokens": 1, "codes": 3, "mean": 6.0, "most": 6}]
    assert data["drift"][0] | {"user": "bob", "period": 30, "mean": -1.0, "least": -1} == data["drift"][0]


def test_the_length_of_a_serial_prefix_is_an_option(site: Site) -> None:
    log = enrolled(site)
    data: Any = site.command_json("stats", "--log", log, "--prefix", "1")
    assert [found["prefix"] for found in data["ahead"]] == ["F"]
    done = site.command("stats", "--log", log, "--prefix", "0")
    assert (done.returncode, "--prefix must be at least 1" in done.stderr) == (2, True)


def test_a_terminal_in_ascii_gets_ascii(site: Site) -> None:
    log = enrolled(site)
    words = [sys.executable, "-m", "pam_totp.cli", "stats", "--store", str(site.store), "--log", str(log)]
    environment = os.environ | {"LC_ALL": "C", "TERM": "dumb", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(words, cwd=TREE, env=environment, capture_output=True, timeout=PATIENCE, check=True)
    assert b"##" in done.stdout
    assert done.stdout.isascii()


def test_only_lines_since_a_time_count(site: Site, tmp_path: Path) -> None:
    site.enrol()
    late = REFUSED.replace("alice", "zoe")
    log = tmp_path / "auth.log.gz"
    text = f"2026-11-28T10:00:00Z h pam_totp: {REFUSED}\n2026-11-28T12:00:00Z h pam_totp: {late}\n{REFUSED}\nother\n"
    log.write_bytes(gzip.compress(text.encode()))
    assert site.command_json("stats", "--log", log)["lines"] == 3
    assert site.command_json("stats", "--log", log, "--since", "2026-11-28T11:00Z")["lines"] == 1
    done = site.command("stats", "--log", log, "--since", "yesterday")
    assert (done.returncode, "must be a time such as" in done.stderr) == (2, True)


def test_names_are_escaped_in_the_terminal(site: Site, tmp_path: Path) -> None:
    site.enrol()
    log = write_log(tmp_path / "log", 'pam_totp("a\\u001b[31mb":auth): refused user=x reason=wrong')
    done = site.command("stats", "--log", log)
    assert "\x1b" not in done.stdout
    assert "a\\x1b[31mb" in done.stdout


def test_an_unreadable_record_is_counted_and_the_status_tells_it(site: Site) -> None:
    log = enrolled(site)
    site.path("bob").write_text("damaged")
    done = site.command("stats", "--log", log)
    assert done.returncode == 3
    assert "1 record cannot be read (see 'pam-totp doctor')" in done.stdout


# ---- the journal


def journalctl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the shell script `script` first in PATH, as the program `journalctl`."""
    program = folder / "journalctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_the_journal_is_read_by_its_writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        {"MESSAGE": REFUSED, "__REALTIME_TIMESTAMP": "5000001"},
        {"MESSAGE": [112, 255], "__REALTIME_TIMESTAMP": "6000000"},
        {"MESSAGE": None},
    ]
    (tmp_path / "entries").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries) + "not JSON\n")
    journalctl(tmp_path, f'echo "$@" >{tmp_path}/words; cat {tmp_path}/entries', monkeypatch)
    os.chown(tmp_path, OTHER_UID, -1) if os.geteuid() == 0 else None
    assert list(log_journal.journal_lines(4, str(tmp_path))) == [(5, REFUSED)]
    words = (tmp_path / "words").read_text().split()
    assert {"--output=json", "--since=@4", "-t", "pam_totp", "_UID=0", f"_UID={tmp_path.stat().st_uid}"} <= set(words)


def test_a_missing_journal_is_reported_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journalctl(tmp_path, "echo 'No journal files were found.' >&2; exit 1", monkeypatch)
    with pytest.raises(CommandError, match="No journal files were found"):
        list(log_journal.journal_lines(0, "/"))
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(CommandError, match=r"no such file.*--log"):
        list(log_journal.journal_lines(0, "/"))


@as_root
def test_another_account_gets_no_statistics(site: Site) -> None:
    words = [sys.executable, "-m", "pam_totp.cli", "stats"]
    done = subprocess.run(
        words, cwd=TREE, user=OTHER_UID, group=OTHER_UID, extra_groups=[], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "only root" in done.stderr


# ---- node_exporter


def test_the_textfile_has_the_metrics_of_the_store(site: Site, tmp_path: Path) -> None:
    enrolled(site)
    path = tmp_path / "pam_totp.prom"
    for _ in range(2):
        done = site.command("stats", "--textfile", path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = path.read_text()
    assert "pam_totp_store_up 1\n" in text
    assert 'pam_totp_tokens{type="totp",state="unconfirmed"} 1\n' in text
    assert "pam_totp_users_without_recovery_codes 1\n" in text
    assert "alice" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [entry.name for entry in tmp_path.iterdir()] == ["pam_totp.prom"], "the temporary file is deleted"


def test_the_textfile_tells_that_the_store_is_out_of_reach(site: Site, tmp_path: Path) -> None:
    site.store.rename(site.folder / "elsewhere")
    path = tmp_path / "pam_totp.prom"
    done = site.command("stats", "--textfile", path)
    assert done.returncode == 3
    assert "store not found" in done.stderr
    assert "pam_totp_store_up 0\n" in path.read_text()
    assert "pam_totp_tokens" not in path.read_text()


def test_a_textfile_needs_the_suffix_that_node_exporter_reads(site: Site, tmp_path: Path) -> None:
    done = site.command("stats", "--textfile", tmp_path / "pam_totp.txt")
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert "must end in .prom" in done.stderr


def test_a_link_in_place_of_the_textfile_is_replaced(site: Site, tmp_path: Path) -> None:
    enrolled(site)
    (tmp_path / "target").write_text("kept")
    (tmp_path / "x.prom").symlink_to(tmp_path / "target")
    assert site.command("stats", "--textfile", tmp_path / "x.prom").returncode == 0
    assert (tmp_path / "target").read_text() == "kept"
    assert not (tmp_path / "x.prom").is_symlink()


def test_the_textfile_has_the_counters_of_a_running_service(site: Site) -> None:
    socket = str(site.folder / "metrics")
    site.start("--metrics", socket)
    site.enrol()
    site.configure("demo", way="socket")
    assert site.gets_in(codes(0))
    assert not site.gets_in("000000")
    found = textfile.of_services({"service": socket, "authority": str(site.folder / "none")})
    text = textfile.text(found, None, is_expected=False)
    assert 'pam_totp_service_up{role="service"} 1\n' in text
    assert 'outcome="accepted",reason="code"} 1\n' in text
    assert 'outcome="refused",reason="refused"}' in text
    assert "wrong" not in text, "every account can read the file"
    assert "store_up" not in text


def test_a_service_that_sends_something_else_is_down(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text("no socket")
    found = textfile.of_services({"service": str(tmp_path / "metrics")})
    assert found == {"service": None}
    assert 'pam_totp_service_up{role="service"} 0\n' in textfile.text(found, None, is_expected=False)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="requires promtool (Debian: prometheus)")
def test_promtool_accepts_the_metrics(site: Site, tmp_path: Path) -> None:
    enrolled(site)
    socket = str(site.folder / "metrics")
    site.start("--metrics", socket)
    site.configure("demo", way="socket")
    site.enrol()
    assert site.gets_in(codes(0))
    path = tmp_path / "pam_totp.prom"
    assert site.command("stats", "--textfile", path).returncode == 0
    from pam_totp.metrics.endpoint import fetch

    for text in (path.read_text(), fetch(socket, reasons=True), fetch(socket, reasons=False)):
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
