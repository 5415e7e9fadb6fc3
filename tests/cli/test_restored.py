"""Tests of the command `restored`: its input files, its output, and its exit status."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pam_totp.cli.command_line import OUT_OF_REACH
from pam_totp.cli.restored import forward_stock
from pam_totp.core.record import UserRecord
from pam_totp.operations import audit_log, stock
from pam_totp.operations.restored import Log
from pam_totp.store import StoreError
from pam_totp.store.file import FileStore
from pam_totp.store.stock import StockEntry, stock_of
from pam_totp.store.upkeep import created_at
from tests.conftest import as_root
from tests.core.test_restored import change, use
from tests.support.site import KEY, ME, PATIENCE, TREE, Site, codes, fob, phone, without_log_warning

HEADER = "2026-11-28T19:37:06Z host pam_totp[471]: "
RESTORED = ("--restored-at", "2026-11-28T20:00Z")
NO_LOG = "warning: no lines of a log: counters and steps are unchanged, and every key fob needs codes in a row"
SALT, DIGEST = "00" * 16, "ab" * 32


def write_log(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{HEADER}{line}\n" for line in lines))
    return path


def test_records_are_rolled_forward_and_listed(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(5), phone(), salt=SALT, recovery=(DIGEST,))
    site.enrol(fob(7), user="bob")
    log = write_log(tmp_path / "auth.log", use(fob(9), user=ME), change("remove", phone(), 100, user=ME))
    done = site.command("restored", "--log", log, "--yes", *RESTORED)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        f"pam-totp: {log}: 2 lines of pam_totp, from '2026-11-28T19:37:06Z host' to '2026-11-28T19:37:06Z host'",
        "pam-totp: only lines before 2026-11-28 20:00 UTC show that the log covers a key fob (see --restored-at)",
    ]
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["USER", "TOKEN", "RESULT"],
        *sorted([[ME, "fob", "counter", "5", "->", "9"], [ME, "phone", "removed"],
                 [ME, "-", *["recovery", "codes", "void:", "create", "new", "codes"]],
                 ["bob", "fob", "codes", "in", "a", "row", "needed"]], key=lambda row: (row[0], row[1] == "-")),
        ["2", "users:", "3", "tokens", "changed,", "1", "recovery", "code", "voided"],
    ]  # fmt: skip
    assert site.record() == UserRecord(user=ME, tokens=(fob(9),), salt=SALT)
    assert site.record("bob") == UserRecord(user="bob", tokens=(fob(7, row_needed=True),))


def test_after_a_restore_a_used_code_is_refused_and_codes_in_a_row_work(site: Site, way: str, tmp_path: Path) -> None:
    site.enrol()
    backup = site.path().read_bytes()
    assert site.gets_in(codes(0))
    site.path().write_bytes(backup)
    assert site.command("restored", "--yes").returncode == 0
    assert not site.gets_in(codes(0)), "codes in a row are required: the log is missing"
    assert site.gets_in(codes(1, 2))
    assert site.gets_in(codes(3))


def test_without_a_log_every_key_fob_needs_codes_in_a_row(site: Site) -> None:
    site.enrol(fob(5), phone(last_step=7))
    assert site.command("restored", "--yes").returncode == 0
    assert site.record().tokens == (fob(5, row_needed=True), phone(last_step=7))
    assert "codes in a row only" in site.command("list", ME).stdout


def test_rotated_and_compressed_logs_are_read_in_any_order(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(5), phone())
    new = write_log(tmp_path / "auth.log", change("enroll", phone(name="new"), 200, user=ME))
    middle = write_log(tmp_path / "auth.log.1", use(fob(9), user=ME))
    old = tmp_path / "auth.log.2.gz"
    old.write_bytes(gzip.compress(f"{HEADER}{change('remove', phone(name='new'), 100, user=ME)}\n".encode()))
    done = site.command("restored", "--yes", "--log", new, middle, "--log", old, *RESTORED)
    assert (done.returncode, site.record().tokens) == (0, (fob(9), phone()))
    assert done.stdout.splitlines()[-1] == "1 user: 1 token changed, 0 recovery codes voided, 1 token not in the backup"


def test_a_log_is_read_from_standard_input(site: Site) -> None:
    site.enrol(fob(5))
    said = site.command_json("restored", "--yes", "--log", "-", *RESTORED, stdin=f"{HEADER}{use(fob(9), user=ME)}\n")
    assert said == {
        "dry_run": False,
        "restored_at": 1_795_896_000,
        "restored_before": None,
        "logs": [{"file": "-", "lines": 1, "first": "2026-11-28T19:37:06Z host", "last": "2026-11-28T19:37:06Z host"}],
        "records": [
            {
                "user": ME,
                "tokens": [
                    {
                        "token": "fob",
                        "type": "hotp",
                        "changed": True,
                        "removed": False,
                        "enabled": True,
                        "row_needed": False,
                        "next_before": 5,
                        "next": 9,
                        "notes": ["counter 5 -> 9"],
                    }
                ],
                "recovery_voided": 0,
                "recovery_made": None,
                "not_in_the_backup": [],
            }
        ],
        "stock": [],
    }


def test_a_dry_run_shows_the_same_and_changes_nothing(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(5), phone(), salt=SALT, recovery=(DIGEST,))
    before = site.path().read_bytes()
    log = write_log(tmp_path / "log", use(fob(9), user=ME), change("enroll", phone(name="new"), 100, user="zoe"))
    dry = site.command_json("restored", "--dry-run", "--log", log, *RESTORED)
    assert site.path().read_bytes() == before
    done = site.command_json("restored", "--yes", "--log", log, *RESTORED)
    assert (dry.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert dry == done
    assert done["records"][-1]["not_in_the_backup"] == ["new"]
    assert not site.path("zoe").exists()
    assert site.command("restored", "--dry-run").stdout.endswith(
        "1 token would be changed, 0 recovery codes would be voided\n"
    )


def test_the_question_can_be_declined(site: Site) -> None:
    site.enrol(fob(5))
    declined = site.command("restored", stdin="n\n")
    assert (declined.returncode, "cancelled; nothing was changed" in declined.stderr) == (1, True)
    assert "(without a terminal, give --yes)" in site.command("restored").stderr
    assert site.record().tokens == (fob(5),)


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (None, 3, "no such file or directory"),
        (gzip.compress(b"x" * 999, mtime=0)[:-9], 1, "damaged gzip file; nothing was changed"),
        (b"\x1f\x8bnot gzip", 1, "damaged gzip file; nothing was changed"),
    ],
)
def test_a_log_that_cannot_be_read_changes_nothing(
    site: Site, tmp_path: Path, content: bytes | None, status: int, says: str
) -> None:
    site.enrol(fob(5))
    if content is not None:
        (tmp_path / "log").write_bytes(content)
    done = site.command("restored", "--yes", "--log", tmp_path / "log")
    assert done.returncode == status
    assert done.stderr.startswith(f"pam-totp: {tmp_path}/log: {says}")
    assert site.record().tokens == (fob(5),)


def test_a_file_without_lines_of_pam_totp_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(range(256)) * 1000)
    done = site.command("restored", "--log", tmp_path / "log", stdin="n\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"pam-totp: warning: {tmp_path}/log: no line of pam_totp",
        f"pam-totp: {NO_LOG}",
        "pam-totp: cancelled; nothing was changed",
    ]


def test_an_unreadable_record_does_not_stop_the_others(site: Site) -> None:
    site.enrol(fob(5), user="a")
    site.enrol(fob(5), user="b")
    site.enrol(fob(5), user="c")
    site.path("b").write_text("damaged")
    done = site.command("restored", "--yes")
    assert (done.returncode, done.stderr.startswith("pam-totp: ")) == (3, True)
    assert [site.record(user).tokens[0].row_needed for user in "ac"] == [True, True]


def test_a_closed_pipe_does_not_stop_the_change_of_all_records(site: Site) -> None:
    for number in range(30):
        site.enrol(fob(5, secret=KEY[1:] + bytes([number])), user=f"u{number}")
    reading, writing = os.pipe()
    os.close(reading)
    words = ["restored", "--yes", "--store", str(site.store)]
    done = subprocess.run([sys.executable, "-m", "pam_totp.cli", *words], cwd=TREE, stdout=writing, check=False)
    os.close(writing)
    assert done.returncode == 141
    assert all(site.record(f"u{number}").tokens[0].row_needed for number in range(30))


def test_ctrl_c_between_two_records_reports_the_remaining_records(site: Site) -> None:
    for user in "abc":
        site.enrol(fob(5), user=user)
    script = f"""
import os, signal, sys
from pam_totp import cli
from pam_totp.operations import audit_log
from pam_totp.cli import restored
forward = restored._forward
def interrupted(args, log, store, user):
    if user == "b":
        os.kill(os.getpid(), signal.SIGINT)
    return forward(args, log, store, user)
restored._forward = interrupted
sys.exit(cli.main(["restored", "--yes", "--store", {str(site.store)!r}]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False)
    said = f"pam-totp: {NO_LOG}\npam-totp: interrupted after 1 of 3 records; run the command again\n"
    assert (done.returncode, without_log_warning(done.stderr)) == (128 + signal.SIGINT, said)
    assert [site.record(user).tokens[0].row_needed for user in "abc"] == [True, False, False]
    assert site.command("restored", "--yes").returncode == 0
    assert all(site.record(user).tokens[0].row_needed for user in "abc")


@as_root
def test_the_lines_of_a_login_are_enough(site: Site) -> None:
    """Write the log of the real service to a file, and roll a backup forward from this log."""
    site.start()
    site.configure("demo", way="socket")
    site.enrol(fob(created=7), phone())
    backup = site.path().read_bytes()
    assert site.gets_in(codes(0))
    assert site.gets_in(codes(4))
    assert not site.gets_in(codes(4))
    after = site.record()
    site.path().write_bytes(backup)
    log = write_log(site.folder / "auth.log", *(site.folder / "log").read_text().splitlines())
    assert site.command("restored", "--yes", "--log", log, *RESTORED).returncode == 0
    assert site.record().tokens == tuple(t._replace(last_used=None) for t in after.tokens)
    assert not site.gets_in(codes(4))
    assert site.gets_in(codes(5))


def test_a_use_after_the_restore_does_not_cover_a_key_fob(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(12))
    log = write_log(tmp_path / "log", use(fob(13), user=ME))
    assert site.command("restored", "--yes", "--log", log, "--restored-at", "2026-11-28T19:37:06Z").returncode == 0
    assert site.record().tokens == (fob(13, row_needed=True),)


def test_the_time_of_the_restore_is_that_of_the_folder(site: Site, tmp_path: Path) -> None:
    """A repair or a login can create a secret file again, but not the folder."""
    before = int(time.time())
    folder = tmp_path / "new"
    folder.mkdir(0o700)
    status = site.store.stat()
    os.chown(folder, status.st_uid, status.st_gid)
    os.utime(folder, (0, 0))
    if created_at(str(folder)) is None:
        pytest.skip("the file system does not store the time of creation")
    said = site.command_json("restored", "--dry-run", "--store", folder)
    assert before - 1 <= said["restored_at"] <= time.time()


def test_an_invalid_time_is_refused(site: Site) -> None:
    done = site.command("restored", "--dry-run", "--restored-at", "yesterday")
    assert (done.returncode, "must be a time such as 2026-11-28T14:00" in done.stderr) == (2, True)


def test_every_record_is_written_again_so_that_doctor_has_no_finding(site: Site) -> None:
    site.enrol(phone())
    os.utime(site.path(), (0, 0))
    before = site.record()
    assert site.command("restored", "--yes").returncode == 0
    assert (site.record(), site.path().stat().st_mtime > 0) == (before, True)


def test_a_second_run_causes_a_warning(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(12))
    line = audit_log.line("pam-totp", "changed", user=ME, what="restored", at=1_795_897_000, store="/new", by="root")
    log = write_log(tmp_path / "log", line)
    done = site.command("restored", "--log", log, *RESTORED, stdin="n\n")
    again = "a second run for the same restore also voids the recovery codes created since then"
    assert f"pam-totp: warning: 'pam-totp restored' ran at 2026-11-28 20:16 UTC: {again}\n" in done.stderr
    assert (done.returncode, site.record().tokens) == (1, (fob(12),))


def test_changes_of_the_replaced_store_count(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(5), phone())
    log = write_log(tmp_path / "log", change("remove", phone(), 100, user=ME, store="/srv/store"))
    assert site.command("restored", "--yes", "--log", log).returncode == 0
    assert len(site.record().tokens) == 2
    assert site.command("restored", "--yes", "--log", log, "--replaces", "/srv/store/").returncode == 0
    assert len(site.record().tokens) == 1


def test_a_forged_removal_lets_no_user_in_without_a_code(site: Site, way: str, tmp_path: Path) -> None:
    site.configure("demo", "nullok", way, "auth required pam_permit.so")
    site.enrol(fob(5))
    log = write_log(tmp_path / "log", change("remove", fob(7), 100, user=ME))
    done = site.command("restored", "--yes", "--log", log, *RESTORED)
    assert "removed: kept as disabled, because a user without a token passes nullok" in done.stdout
    assert not site.gets_in(codes(8))
    assert "disabled" in site.command("list", ME).stdout
    site.enrol(fob(5))
    assert site.command_json("restored", "--yes", "--log", log, *RESTORED)["records"][0]["tokens"][0] == {
        "token": "fob",
        "type": "hotp",
        "changed": True,
        "removed": False,
        "enabled": False,
        "row_needed": False,
        "next_before": 5,
        "next": 7,
        "notes": ["removed: kept as disabled, because a user without a token passes nullok", "counter 5 -> 7"],
    }


@pytest.mark.parametrize("user", ["", "\ud800", "x\n9 users", "\x1b[2J"])
def test_a_forged_name_does_not_stop_the_command(site: Site, tmp_path: Path, user: str) -> None:
    """The command must print its report: all records are already changed."""
    site.enrol(fob(5), salt=SALT, recovery=(DIGEST,))
    lines = [change("enroll", fob(), 100, user="carol"), change("enroll", fob(), 100, user=user)]
    done = site.command("restored", "--yes", "--log", write_log(tmp_path / "log", *lines), *RESTORED)
    assert (done.returncode, site.record().recovery) == (0, ())
    assert done.stdout.splitlines()[-2:] == [
        "carol  fob    not in the backup: enrol it again",
        "1 user: 1 token changed, 1 recovery code voided, 1 token not in the backup",
    ]


def test_a_name_that_the_terminal_lacks_does_not_stop_the_command(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(5))
    log = write_log(tmp_path / "log", change("enroll", fob(name="\u2713"), 100, user="carol"))
    words = ["restored", "--yes", "--log", str(log), "--store", str(site.store)]
    done = subprocess.run(
        [sys.executable, "-m", "pam_totp.cli", *words],
        cwd=TREE,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, site.record().tokens[0].row_needed) == (0, True), done
    assert done.stdout.splitlines()[-2].split()[:2] == ["carol", "\\u2713"]


def test_recovery_codes_that_the_backup_lacks_are_named(site: Site, tmp_path: Path) -> None:
    site.enrol(phone())
    line = audit_log.line("pam-totp", "changed", user=ME, what="recovery", codes=10, at=1_795_890_000, by="root")
    done = site.command("restored", "--dry-run", "--log", write_log(tmp_path / "log", line))
    assert "-      recovery codes void, also the codes created 2026-11-28 18:20 UTC: create new codes" in done.stdout


def test_the_facts_are_json(site: Site) -> None:
    site.enrol(fob(5))
    done = site.command("restored", "--dry-run", "--json")
    assert json.loads(done.stdout)["records"][0]["tokens"][0]["row_needed"] is True
    assert audit_log.NAME not in done.stdout


def test_a_token_that_left_the_stock_meanwhile_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    store = FileStore(str(folder))
    assert stock_of(store).add([StockEntry(serial="T-1", imported=0, token=fob(serial="T-1"))]) == [None]
    items = stock.items

    def assigned_meanwhile(*arguments: Any, **more: Any) -> Iterator[stock.Item | StoreError]:
        for item in items(*arguments, **more):
            stock.assign(store, "T-1", ME, now=0)
            yield item

    monkeypatch.setattr(stock, "items", assigned_meanwhile)
    lines: list[object] = []
    audit = argparse.Namespace(store=str(folder), changed=lambda *words, **fields: lines.append((words, fields)))
    log = Log({str(folder)}, restored_at=None, now=0)
    changed, status = forward_stock(argparse.Namespace(dry_run=False, audit=audit), log, store)
    assert (changed, status, lines) == ([], OUT_OF_REACH, [])
    what = f"{ME} has the token with the serial number T-1"
    assert capsys.readouterr().err == f"pam-totp: {what}; tokens in stock may be unchanged\n"


def test_tokens_in_stock_are_rolled_forward_too(site: Site, tmp_path: Path) -> None:
    seeds = f"T-1,{KEY.hex()}\nT-2,{'ab' * 20}\n"
    assert site.command("stock", "import", "csv", "-", "--yes", stdin=seeds).returncode == 0
    log = write_log(tmp_path / "auth.log", change("assign", fob(9), 100, user=ME, serial="T-1", type="hotp"))
    dry = site.command_json("restored", "--log", log, "--dry-run", *RESTORED)
    assert [(each["serial"], each["next_before"], each["next"]) for each in dry["stock"]] == [
        ("T-1", 0, 9),
        ("T-2", 0, 0),
    ]
    assert not any(each["token"]["row_needed"] for each in site.command_json("stock", "list"))
    done = site.command("restored", "--log", log, "--yes", *RESTORED)
    assert done.stdout.splitlines()[-2:] == [
        "in stock: T-1: counter 0 -> 9, codes in a row needed",
        "stock: 2 tokens changed; key fobs need codes in a row when they are assigned",
    ]
    refused = site.command("assign", "T-1", ME, "--confirm", stdin=f"{codes(9)}\n" + f"{codes(2, 2)}\n{codes(3, 2)}\n")
    assert refused.returncode == 1
    assert site.command("assign", "T-1", ME, "--confirm", stdin=f"{codes(9, 2)}\n").returncode == 0
