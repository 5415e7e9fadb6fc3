"""Tests of the commands that process all users: output, progress and memory use with many users."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pexpect
import pytest

from pam_totp.cli.printing import BLOCK
from pam_totp.system.enrolled import find_enrolled
from tests.support.site import KEY, TREE, Site, fob, phone, until
from tools.bench.bulk import run

FEW, LISTED, MANY = 300, 3000, 6000  # users
NAMES = 1.0  # MB: enough for 3000 names and a block of lines, which use 0.5 MB; the whole output would use 2.5 MB
A_TOKEN = 560  # bytes per token: a line, a result and a name use 330 to 520; the whole output would use over 600


def enrol(site: Site, users: range) -> None:
    for i in users:
        site.enrol(fob(), user=f"user{i}")


def oath(folder: Path, users: int) -> Path:
    file = folder / f"{users}.oath"
    file.write_text("".join(f"HOTP user{i} - {i:040x}\n" for i in range(users)))
    return file


def listing(site: Site, *words: str) -> subprocess.Popen[str]:
    """Start `list` with the options `words`, and pipes for standard output and error. Return the process."""
    command = [sys.executable, "-m", "pam_totp.cli", "list", "--store", str(site.store), *words]
    return subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_list_keeps_only_the_names_in_memory(site: Site) -> None:
    ways = (("list",), ("list", "--json"))
    enrol(site, range(FEW))
    few = [run(*way, "--store", site.store) for way in ways]
    enrol(site, range(FEW, LISTED))
    many = [run(*way, "--store", site.store) for way in ways]
    assert {done.status for done in (*few, *many)} == {0}
    assert max(m.megabytes - f.megabytes for f, m in zip(few, many, strict=True)) < NAMES


def test_import_keeps_only_the_file_and_a_few_bytes_a_token_in_memory(tmp_path: Path) -> None:
    megabytes: dict[tuple[str, ...], list[float]] = {}
    run("import", "users-oath", oath(tmp_path, 1), "--dry-run")  # puts the interpreter into the page cache
    for users in (FEW, MANY):
        file = oath(tmp_path, users)
        for number, more in enumerate(((), ("--json",), ("--dry-run",))):
            store = tmp_path / f"{users}-{number}"
            store.mkdir(0o700)
            done = run("import", "users-oath", file, "--store", store, *more)
            assert (done.status, len(list(store.glob("*.record")))) == (0, 0 if more == ("--dry-run",) else users)
            megabytes.setdefault(more, []).append(done.megabytes)
    assert max(many - few for few, many in megabytes.values()) * 2**20 / (MANY - FEW) < A_TOKEN


def test_a_long_table_has_one_heading_and_is_sorted_by_name(site: Site) -> None:
    enrol(site, range(BLOCK + 50))
    site.enrol(phone(name="a rather long name"), user="zoe", failures=3, failures_at=1 << 40)
    site.enrol(fob(), user="adam", failures=2, failures_at=1 << 40)
    lines = site.command("list").stdout.splitlines()
    rows = [line for line in lines if "digits" in line]
    assert [row.split()[0] for row in rows] == sorted(["adam", "zoe", *(f"user{i}" for i in range(BLOCK + 50))])
    assert [i for i, line in enumerate(lines) if line.startswith("USER")] == [0]
    for block in (lines[:BLOCK], rows[BLOCK:]):
        assert len({line.index("otp") for line in block if "otp" in line}) == 1, (
            "the columns of all lines in a block are aligned"
        )
    remarks = [line for line in lines[1:] if "digits" not in line]
    assert [line.partition(" counted")[0] for line in remarks] == ["adam: 2 wrong answers", "zoe: 3 wrong answers"]


def test_a_long_json_list_is_one_document_with_a_user_a_line(site: Site) -> None:
    enrol(site, range(200))
    said = site.command("list", "--json").stdout
    document = json.loads(said)
    assert [record["user"] for record in document] == sorted(f"user{i}" for i in range(200))
    assert [json.loads(line.rstrip(",")) for line in said.splitlines()[1:-1]] == document
    empty = site.command("list", "--json", "nobody")
    assert (empty.returncode, empty.stdout) == (1, "")


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_closed_pipe_ends_the_list_without_an_error(site: Site, words: list[str]) -> None:
    enrol(site, range(1500))
    with listing(site, *words) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def full(reader: IO[str]) -> bool:
    """Return True if the pipe of `reader` is full. The capacity of a pipe depends on the size of each write."""
    writer = os.open(f"/proc/self/fd/{reader.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
    try:
        return not select.select([], [writer], [], 0)[1]
    finally:
        os.close(writer)


def test_an_interrupted_list_reports_the_interrupt(site: Site) -> None:
    enrol(site, range(1500))
    with listing(site, "--json") as process:
        stdout = process.stdout
        assert stdout is not None
        until(lambda: full(stdout), "the command has filled the pipe and waits for the reader")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT
    assert said.startswith("pam-totp: interrupted")


def test_a_long_import_shows_its_progress_from_the_start(site: Site, tmp_path: Path) -> None:
    words = ["-m", "pam_totp.cli", "import", "--store", str(site.store), "users-oath", str(oath(tmp_path, MANY))]
    child = pexpect.spawn(sys.executable, words, cwd=str(TREE), encoding="utf-8", timeout=100)
    child.expect(r"importing \[ {30}\] 0/\d+\r")
    child.expect(rf"importing \[#+ *\] {MANY // 2}/\d+\r")
    child.expect(rf"{MANY} tokens of {MANY} users imported, 0 skipped")
    child.expect(pexpect.EOF)


def test_a_dry_run_includes_a_users_earlier_lines_of_the_same_file(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(), user="alice")
    file = tmp_path / "users.oath"
    keys = [KEY.hex(), *(f"{i:040x}" for i in (1, 2, 1, 3))]
    file.write_text("".join(f"HOTP alice - {key}\nHOTP bob{i} - {key}\n" for i, key in enumerate(keys)))
    said, done = (
        json.loads(site.command("import", "users-oath", file, "--json", *more).stdout) for more in (["--dry-run"], [])
    )
    assert said | {"dry_run": False} == done
    assert [t["token"] for t in done["imported"] if t["user"] == "alice"] == ["token", "token-2", "token-3"]
    assert [(t["place"], t["reason"]) for t in done["left_out"]] == [
        ("line 1", "already imported as 'fob'"),
        ("line 7", "already imported as 'token'"),
    ]
    assert [t.name for t in site.record("alice").tokens] == ["fob", "token", "token-2", "token-3"]


def test_only_the_given_users_are_looked_up(site: Site) -> None:
    enrol(site, range(20))
    site.enrol(fob(confirmed=False), user="user3")
    found = find_enrolled(str(site.store), {"user1", "user2", "user3", "zoe"})
    assert (found.users, found.broken) == (frozenset({"user1", "user2"}), ())


def test_of_many_invalid_records_the_first_hundred_are_listed(site: Site) -> None:
    for i in range(130):
        site.path(f"user{i}").touch(0o600)
    found = find_enrolled(str(site.store), set())
    assert len(found.broken) == 101
    assert found.broken[-1] == "30 more records cannot be read"
