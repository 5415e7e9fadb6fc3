"""Tests of the command `import`: boxes of tokens, users' files, invalid input, and interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pexpect
import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.secretfile import base32
from pam_totp.core.slots import decode
from pam_totp.formats.otpauth import NO_URI
from tests.conftest import as_root
from tests.core.stores import holding
from tests.formats.backups import PASSWORD, aegis_encrypted
from tests.formats.reading import written
from tests.formats.samples import SAMPLES
from tests.formats.test_migration import part, token
from tests.formats.test_pskc import FIGURES, figure
from tests.formats.test_qr_pictures import PICTURES, png
from tests.support.site import KEY, ME, PATIENCE, TREE, Site, codes, fob, phone, until, without_log_warning

HEX = KEY.hex()
MANY = 5000  # the smallest number of tokens for which the command shows the progress bar at once
OATH = f"HOTP alice 1234 {HEX} 5\nHOTP/E/8 bob - {'ab' * 20}\nHOTP carl - {'cd' * 8}\n"


def records(site: Site) -> dict[str, bytes]:
    return {p.name: decode(p.read_bytes()).document for p in site.store.glob("*.record")}


def in_place(site: Site) -> int:
    return sum(name.endswith(".record") for name in site.files() if not name.startswith("."))


def started(site: Site, name: str, *words: str) -> subprocess.Popen[str]:
    """Start the command `name` with a longer lock timeout, because tests hold locks for long. Return the process."""
    program = (
        f"from pam_totp.store import file; file.LOCK_WAIT = {PATIENCE}; from pam_totp.cli import main; exit(main())"
    )
    command = [sys.executable, "-c", program, name, "--store", str(site.store), *words]
    return subprocess.Popen(command, cwd=TREE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def test_the_table_lists_imported_and_skipped_tokens_without_keys(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text(OATH)
    done = site.command("import", "users-oath", file)
    assert done.returncode == 1, "exit status 1 reports a skipped token"
    shown = [line.split(maxsplit=6) for line in done.stdout.splitlines()[1:4]]
    assert [row[1:4] for row in shown] == [["1", "alice", "token"], ["2", "bob", "token"], ["3", "carl", "-"]]
    assert "skipped: secret: must be 112 to 1024 bits" in done.stdout
    assert "line 1: PIN dropped" in done.stdout
    assert done.stderr.splitlines()[-1] == "2 tokens of 2 users imported, 1 skipped"
    for key in (HEX, "ab" * 20, base32(KEY)):
        assert key not in done.stdout + done.stderr
    assert site.counter("alice") == 5
    assert sorted(records(site)) == ["alice.record", "bob.record"]


def test_the_table_precedes_the_summary_in_a_common_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "users.oath").write_text(OATH)
    words: list[str | Path] = ["import", "--store", site.store, "users-oath", tmp_path / "users.oath"]
    with open(tmp_path / "both", "w") as both:
        command = [sys.executable, "-m", "pam_totp.cli", *words]
        env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        subprocess.run(command, cwd=TREE, env=env, stdout=both, stderr=subprocess.STDOUT, check=False)
    lines = without_log_warning((tmp_path / "both").read_text()).splitlines()
    assert (lines[0].split()[0], lines[-1]) == ("WHERE", "2 tokens of 2 users imported, 1 skipped")


def test_a_dry_run_prints_the_same_and_changes_nothing(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text(OATH)
    said = json.loads(site.command("import", "users-oath", file, "--dry-run", "--json").stdout)
    assert records(site) == {}
    assert "would be imported" in site.command("import", "users-oath", file, "--dry-run").stdout
    done = json.loads(site.command("import", "users-oath", file, "--json").stdout)
    assert (said.pop("dry_run"), done.pop("dry_run")) == (True, False)
    assert said == done
    assert [(t["user"], t["token"]) for t in done["imported"]] == [("alice", "token"), ("bob", "token")]
    assert (done["left_out"][0]["place"], done["left_out"][0]["code"]) == ("line 3", "invalid")
    assert HEX not in json.dumps(done)


def test_a_dry_run_needs_no_store_and_creates_none(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text(OATH)
    said = json.loads(site.command("import", "users-oath", file, "--dry-run", "--json").stdout)
    new = tmp_path / "new"
    done = site.command("import", "users-oath", file, "--dry-run", "--json", "--store", new)
    assert json.loads(done.stdout) == said
    assert not new.exists()
    for more in (["--dry-run"], []):
        done = site.command("import", "users-oath", file, *more, "--store", tmp_path / "no" / "folder")
        assert (done.returncode != 0, done.stdout) == (True, "")


def test_a_dry_run_leaves_the_roll_back_to_the_next_command(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text(OATH)
    journal = site.store / ".import"
    journal.mkdir(0o700)
    done = site.command("import", "users-oath", file, "--dry-run")
    assert (done.returncode, done.stdout) == (3, "")
    assert "an interrupted import must be rolled back" in done.stderr
    assert journal.exists()
    site.command("list")
    assert not journal.exists()
    assert "would be imported" in site.command("import", "users-oath", file, "--dry-run").stdout


def test_the_same_file_imported_again_changes_nothing(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text(f"HOTP alice - {HEX}\n")
    assert site.command("import", "users-oath", file).returncode == 0
    assert site.command("verify", "alice", codes(0)).returncode == 0
    before = records(site)
    again = site.command("import", "users-oath", file)
    assert again.returncode == 0
    assert "already imported as 'token'" in again.stdout
    assert records(site) == before, "the second import does not reset the counter"


def test_an_error_names_file_and_line_and_imports_nothing(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text(OATH + "HOTP dora - nonsense\n")
    done = site.command("import", "users-oath", file)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pam-totp: {file}: line 4: key: must be hexadecimal or base32; nothing was imported\n"
    assert records(site) == {}
    assert site.command("import", "users-oath", tmp_path / "not-there").returncode == 3


def test_a_file_of_another_format_is_named_in_the_error(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "box"
    file.write_text(f"A1,{HEX},hotp,6,0\n")
    done = site.command("import", "users-oath", file)
    assert done.returncode == 1
    assert done.stderr.endswith("; nothing was imported (it looks like csv: try 'pam-totp import csv')\n")
    file.write_bytes(figure(3))
    assert "it looks like pskc" in site.command("import", "json", file).stderr
    file.write_text("hello\n")
    assert "it looks like" not in site.command("import", "csv", file).stderr


def test_the_format_of_a_file_is_recognised(site: Site, tmp_path: Path) -> None:
    for number, (name, samples) in enumerate(SAMPLES.items()):
        file, words = tmp_path / f"file{number}", ["--user", "zoe", "--dry-run"]
        file.write_bytes(PICTURES[0] if name == "qr" else samples[0])
        if name != "map":
            done = site.command("import", file, *words)
            assert f"{file}: recognised as {name}\n" in done.stderr, (name, done.stderr)
            piped = subprocess.run(
                [sys.executable, "-m", "pam_totp.cli", "import", "--store", str(site.store), *words, "-"],
                cwd=TREE,
                input=file.read_bytes(),
                capture_output=True,
                check=False,
            )
            assert piped.stdout.decode() == done.stdout, name


def test_the_error_for_an_unknown_format_asks_for_the_name_of_the_format(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "box"
    file.write_text("hello\n")
    done = site.command("import", file)
    assert done.returncode == 1
    assert done.stderr.startswith(f"pam-totp: {file}: unknown or ambiguous format; nothing was imported (name the")
    file.write_text(f"A1,{HEX}\n")
    mixed = tmp_path / "mixed"
    mixed.write_text(f"HOTP alice - {HEX}\n")
    assert "unknown or ambiguous format" in site.command("import", file, mixed).stderr
    typo = site.command("import", "cvs", file)
    assert (typo.returncode, "cvs: must be an existing file or a format" in typo.stderr) == (2, True)


def test_a_tree_of_homes_needs_no_name_of_the_format(site: Site, tmp_path: Path) -> None:
    home = tmp_path / "home" / ME
    home.mkdir(parents=True)
    (home / ".google_authenticator").write_text(f'{base32(KEY)}\n" HOTP_COUNTER 5\n')
    assert site.command("import", "--homes", tmp_path / "home").returncode == 0
    assert site.counter() == 5


ENTRA = f"upn,serial number,secret key,time interval\r\nalice,1,{base32(KEY)},30\r\n"


def test_the_meaning_of_a_heading_is_shown_before_the_import(site: Site, tmp_path: Path) -> None:
    box, users = tmp_path / "box.csv", tmp_path / "users.csv"
    box.write_text(ENTRA)
    users.write_text("Owner;Serial No\nbob;1\n")
    done = site.command("import", box, "--map", users)
    assert done.stderr.splitlines()[:4] == [
        f"{box}: recognised as csv",
        f"{users}: columns: 'Owner' is the user, 'Serial No' is the serial number",
        f"{box}: columns: 'upn' is the user, 'serial number' is the serial number, 'secret key' is the key, "
        "'time interval' is the period",
        f"{box}: type: totp, because no column names it",
    ]
    assert site.record("bob").tokens[0].serial == "1"


@pytest.mark.parametrize(("answer", "status"), [("n", 1), ("y", 0)])
def test_a_terminal_confirms_the_meaning_of_a_heading(site: Site, tmp_path: Path, answer: str, status: int) -> None:
    (tmp_path / "box.csv").write_text(ENTRA)
    words = ["-m", "pam_totp.cli", "import", "--store", str(site.store), str(tmp_path / "box.csv")]
    child = pexpect.spawn(sys.executable, words, cwd=str(TREE), encoding="utf-8", timeout=60)
    child.expect("'upn' is the user")
    child.expect(r"Import these tokens\? \[y/N\] ")
    assert records(site) == {}
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, list(records(site))) == (status, ["alice.record"] if status == 0 else [])
    assert "tokens?" not in site.command("import", tmp_path / "box.csv", "--yes").stderr


def root_picture(folder: Path) -> Path:
    """Return a picture of a QR code that names root in its label, as from an untrusted user."""
    (folder / "evil.png").write_bytes(png(f"otpauth://totp/alice-phone:root?secret={base32(KEY)}"))
    return folder / "evil.png"


@pytest.mark.parametrize(("answer", "status"), [("n", 1), ("", 1), ("y", 0)])
def test_a_terminal_confirms_the_users_that_labels_name(site: Site, tmp_path: Path, answer: str, status: int) -> None:
    words = ["-m", "pam_totp.cli", "import", "--store", str(site.store), str(root_picture(tmp_path))]
    child = pexpect.spawn(sys.executable, words, cwd=str(TREE), encoding="utf-8", timeout=60)
    child.expect(r"evil\.png: the labels name the users 'root' ")
    child.expect(r"Import these tokens\? \[y/N\] ")
    assert records(site) == {}
    child.sendline(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, list(records(site))) == (status, ["root.record"] if status == 0 else [])


def test_a_line_without_a_token_is_reported_before_any_question(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "uris.txt"
    file.write_text(f"otpauth://totp/daemon?secret={base32(KEY)}\nnonsense\n")
    done = site.command("import", file, "--strict", "--yes")
    assert (done.returncode, records(site)) == (1, {})
    assert without_log_warning(done.stderr).endswith(f"line 2: {NO_URI}; nothing was imported\n")
    words = ["-m", "pam_totp.cli", "import", "--store", str(site.store), str(file)]
    child = pexpect.spawn(sys.executable, words, cwd=str(TREE), encoding="utf-8", timeout=60)
    child.expect(NO_URI)
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, records(site)) == (1, {})


@pytest.mark.parametrize("words", [["--user", "bob"], ["--yes"], ["--dry-run"]])
def test_an_option_for_the_users_replaces_the_question(site: Site, tmp_path: Path, words: list[str]) -> None:
    words = ["-m", "pam_totp.cli", "import", "--store", str(site.store), str(root_picture(tmp_path)), *words]
    child = pexpect.spawn(sys.executable, words, cwd=str(TREE), encoding="utf-8", timeout=60)
    child.expect("1 token of 1 user")
    assert "tokens?" not in child.before
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize("name", ["otpauth", "migration", "qr", "aegis", "andotp", "freeotp", "2fas", "bitwarden"])
def test_without_a_terminal_labels_name_no_users(site: Site, tmp_path: Path, name: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(PICTURES[0] if name == "qr" else SAMPLES[name][0])
    for words in ([file], [name, file]):
        done = site.command("import", *words)
        problem = "--user, --map or --yes is required without a terminal: the file's labels would name the users"
        assert (done.returncode, done.stderr.splitlines()[-1].startswith(f"pam-totp: {problem}")) == (2, True), name
        assert records(site) == {}


def test_one_unusable_uri_is_skipped_and_the_others_are_imported(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "uris.txt"
    key = base32(KEY)
    file.write_text(f"otpauth://steam/Steam%3Abob?secret={key}&digits=5\notpauth://totp/ACME:alice?secret={key}\n")
    done = site.command("import", file, "--yes")
    assert done.returncode == 1
    assert "line 1  bob" in done.stdout
    assert "skipped: unsupported type: must be totp or hotp" in done.stdout
    assert key not in done.stdout + done.stderr
    assert list(records(site)) == ["alice.record"]


def test_an_encrypted_backup_of_aegis_asks_for_its_password(site: Site, tmp_path: Path) -> None:
    file, password = tmp_path / "aegis.json", tmp_path / "password"
    file.write_bytes(aegis_encrypted())
    password.write_bytes(b"\xef\xbb\xbf" + PASSWORD.encode() + b"\r\n")
    done = site.command("import", file, "--user", "alice", "--password-file", password)
    assert "entry 3" in done.stdout
    assert len(site.record("alice").tokens) == 2
    asked = site.command("import", file, "--user", "bob", stdin=PASSWORD + "\n")
    assert len(site.record("bob").tokens) == 2, asked.stderr
    wrong = site.command("import", file, "--user", "carl", stdin="wrong\n")
    assert (wrong.returncode, "wrong password, or the file was changed" in wrong.stderr) == (1, True)


@pytest.mark.parametrize("spelled", ["{}\r\n", "\n0x{}\n", " {} "])
def test_a_key_file_is_read_as_editors_write_it(site: Site, tmp_path: Path, spelled: str) -> None:
    file, key = tmp_path / "box.xml", tmp_path / "key"
    file.write_bytes(figure(6))
    for encoding in ("utf-8-sig", "utf-16"):
        key.write_bytes(spelled.format("12345678901234567890123456789012").encode(encoding))
        done = site.command("import", file, "--key-file", key, "--serial", "987654321", "--user", "u")
        assert done.returncode == 0, done.stderr


def test_new_tokens_are_added_under_unused_names(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(3, name="token"), user="alice")
    file = tmp_path / "uris"
    uris = [f"otpauth://hotp/alice?secret={base32(bytes([i]) * 20)}&counter={i}\n" for i in (1, 2)]
    file.write_text("".join(uris))
    assert site.command("import", "otpauth", file, "--yes").returncode == 0
    assert [(t.name, getattr(t, "counter", None)) for t in site.record("alice").tokens] == [
        ("token", 3),
        ("token-2", 1),
        ("token-3", 2),
    ]
    crowd = tmp_path / "crowd"
    crowd.write_text("".join(f"HOTP alice - {i:040x}\n" for i in range(6)))
    full = site.command("import", "users-oath", crowd)
    assert full.returncode == 1
    assert "alice has 8 tokens, which is the maximum" in full.stdout
    assert len(site.record("alice").tokens) == 8


def test_user_selects_lines_of_users_oath_and_assigns_other_tokens(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text(OATH)
    assert site.command("import", "users-oath", file, "--user", "bob").returncode == 0
    assert sorted(records(site)) == ["bob.record"]
    nobody = site.command("import", "users-oath", file, "--user", "zoe")
    problem = f"pam-totp: {file}: must contain a token of zoe; nothing was imported\n"
    assert (nobody.returncode, nobody.stderr) == (1, problem)
    file.write_text(f"otpauth://totp/someone@else?secret={base32(KEY)}\n")
    assert site.command("import", "otpauth", "-", "--user", "zoe", stdin=file.read_text()).returncode == 0
    assert site.record("zoe").tokens[0].name == "phone"


BOX = "serial,user\n# box 7\nA1,alice\nA2,bob\nA9,zoe\n"


def test_a_box_of_tokens_requires_a_map_or_a_serial_and_a_user(site: Site, tmp_path: Path) -> None:
    box, users = tmp_path / "box.csv", tmp_path / "serials.csv"
    box.write_text(f"A1,{HEX},hotp,6,0\nA2,{'ab' * 20},totp,8,60\nA3,{'cd' * 20}\n")
    users.write_text(BOX)
    no_users = site.command("import", "csv", box)
    assert no_users.returncode == 1
    assert no_users.stdout.count("the file names no user (see --user and --map)") == 3
    assert records(site) == {}
    done = site.command("import", "csv", box, "--map", users)
    assert done.returncode == 1
    assert "the map lacks the serial number" in done.stdout
    assert "serial number A9 of the map is not in the file" in done.stdout
    assert site.record("alice").tokens[0].serial == "A1"
    assert (site.record("bob").tokens[0].digits, getattr(site.record("bob").tokens[0], "period", 0)) == (8, 60)
    assert site.command("import", "csv", box, "--serial", "A3", "--user", "carl").returncode == 0
    assert site.record("carl").tokens[0].serial == "A3"
    assert site.command("import", "csv", box, "--serial", "A7", "--user", "carl").returncode == 1


def test_a_serial_number_matches_without_case_and_separators(site: Site, tmp_path: Path) -> None:
    box, users = tmp_path / "box.csv", tmp_path / "serials.csv"
    box.write_text(f"SM-00 1,{HEX}\nSM-002,{'ab' * 20}\n")
    users.write_text("serial,user\nsm001,alice\n")
    mapped = site.command("import", "csv", box, "--map", users)
    assert "not in the file" not in mapped.stdout
    assert site.record("alice").tokens[0].serial == "SM-00 1", "the record keeps the serial number of the file"
    assert site.command("import", "csv", box, "--serial", "sm 002", "--user", "bob").returncode == 0
    assert site.record("bob").tokens[0].serial == "SM-002"


def test_a_token_that_another_user_has_is_skipped_with_the_owner(site: Site, tmp_path: Path) -> None:
    box, users = tmp_path / "box.csv", tmp_path / "serials.csv"
    box.write_text(f"SM-001,{HEX}\nSM-002,{'ab' * 20}\n")
    users.write_text("SM-001,alice\nSM-002,bob\n")
    site.enrol(fob(serial="sm001"), user="zoe")
    dry = site.command("import", "csv", box, "--map", users, "--dry-run", "--json")
    done = site.command("import", "csv", box, "--map", users, "--json")
    for said in (json.loads(dry.stdout), json.loads(done.stdout)):
        (skipped,) = [row for row in said["left_out"] if row["code"] == "serial-taken"]
        assert (skipped["user"], skipped["reason"]) == ("alice", "zoe has a token with this serial number")
        assert [row["user"] for row in said["imported"]] == ["bob"]
    assert done.returncode == 1
    assert sorted(records(site)) == ["bob.record", "zoe.record"]


def test_many_tokens_skipped_for_one_reason_are_one_line(site: Site, tmp_path: Path) -> None:
    box, users = tmp_path / "box.csv", tmp_path / "serials.csv"
    box.write_text("".join(f"SM-{i:03},{i:040x}\n" for i in range(53)) + "SM-900,00\nSM-901,01\n")
    users.write_text("SM-001,alice\nSM-002,bob\nSM-900,carl\nSM-901,dora\n")
    shown = site.command("import", "csv", box, "--map", users).stdout
    assert [line.split()[2] for line in shown.splitlines() if line.startswith("line")] == [
        "alice",
        "bob",
        "carl",
        "dora",
    ]
    assert shown.splitlines()[-1] == "51 skipped: the map lacks the serial number (use --json to list all)"
    said = json.loads(site.command("import", "csv", box, "--map", users, "--json").stdout)
    assert sum(row["code"] == "no-user" for row in said["left_out"]) == 51


@pytest.mark.parametrize(
    ("number", "option", "secret"),
    [(6, "--key-file", "12345678901234567890123456789012"), (7, "--password-file", "qwerty"), (3, None, "")],
)
def test_a_pskc_file_is_decrypted_with_a_key_from_a_file_or_the_prompt(
    site: Site, tmp_path: Path, number: int, option: str | None, secret: str
) -> None:
    file, key = tmp_path / "box.xml", tmp_path / "key"
    file.write_bytes(figure(number))
    key.write_text(secret + "\n")
    words: list[str | Path] = ["--serial", "987654321", "--user", "alice"]
    with_key = [*words, option, key] if option else words
    done = site.command("import", "pskc", file, *with_key)
    assert done.returncode == 0, done.stderr
    assert site.command("verify", "alice", hotp(KEY, 0, 8)).returncode == 0
    assert secret == "" or secret not in done.stdout + done.stderr
    assert site.command("remove", "alice", "--yes").returncode == 0
    asked = site.command("import", "pskc", file, *words, stdin=secret + "\n")
    assert asked.returncode == 0, asked.stderr
    if option:
        wrong = site.command("import", "pskc", file, *words, stdin="00112233445566778899aabbccddeeff\n")
        assert wrong.returncode == 1
        assert "line " in wrong.stderr
        assert "wrong key or password" in wrong.stderr


ENCRYPTED = FIGURES / "figure7.xml"  # with a password


def test_an_encrypted_file_without_its_password_names_the_option(site: Site) -> None:
    words = ("import", "pskc", ENCRYPTED, "--user", "alice")
    done = site.command(*words)
    need = "--password-file is required: the file is encrypted with a password; nothing was imported"
    assert (done.returncode, done.stderr) == (1, f"pam-totp: {need}\n")
    assert site.command(*words, stdin="wrong\n").returncode == 1
    assert site.command(*words, stdin="").returncode == 1
    assert records(site) == {}


def test_ctrl_c_at_the_password_of_a_file_is_an_interrupt(site: Site) -> None:
    words = ["-m", "pam_totp.cli", "import", "--store", str(site.store), "pskc", str(ENCRYPTED), "--user", "alice"]
    child = pexpect.spawn(sys.executable, words, cwd=str(TREE), encoding="utf-8", timeout=60)
    child.expect("password of the file: ")
    child.sendintr()
    child.expect("interrupted")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 128 + signal.SIGINT


def test_the_weak_key_of_figure_2_and_the_pin_of_figure_5_are_skipped(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "box.xml"
    file.write_bytes(figure(2))
    weak = site.command("import", "pskc", file, "--user", "alice")
    assert weak.returncode == 1
    assert "skipped: secret: must be 112" in weak.stdout
    file.write_bytes(figure(5))
    pin = site.command("import", "pskc", file, "--user", "alice")
    assert "skipped: unsupported algorithm PIN: must be HOTP or TOTP" in pin.stdout
    assert len(site.record("alice").tokens) == 1


def test_a_bulk_file_is_mapped_by_serial(site: Site, tmp_path: Path) -> None:
    file, users = tmp_path / "box.xml", tmp_path / "serials.csv"
    file.write_bytes(figure(10))
    users.write_text("654321,alice\n123456,bob\n9999999,carl\n")
    done = site.command("import", "pskc", file, "--map", users)
    assert "already imported as 'token'" in done.stdout, (
        "carl's second token is skipped, because its key is the same as that of the first token"
    )
    assert [site.record(user).tokens[0].serial for user in ("alice", "bob", "carl")] == ["654321", "123456", "9999999"]
    assert site.command("verify", "alice", hotp(KEY, 0, 8)).returncode == 1, (
        "a token with a policy that ended in 2006 is imported as disabled"
    )
    assert site.command("enable-token", "alice").returncode == 0
    assert site.command("verify", "alice", hotp(KEY, 0, 8)).returncode == 0


def test_thousands_of_keys_of_one_file_are_imported_with_progress(site: Site, tmp_path: Path) -> None:
    file, users = tmp_path / "box.xml", tmp_path / "serials.csv"
    tokens = [fob(name=f"t{i}", secret=i.to_bytes(20, "big"), serial=f"S{i}") for i in range(MANY)]
    file.write_bytes(written("pskc", tokens))
    users.write_text("".join(f"S{i},user{i}\n" for i in range(MANY)))
    words = ["-m", "pam_totp.cli", "import", "--store", str(site.store), "pskc", str(file), "--map", str(users)]
    child = pexpect.spawn(sys.executable, words, cwd=str(TREE), encoding="utf-8", timeout=100)
    child.expect(r"\rimporting \[#* *\] \d+/" + str(2 * MANY))
    child.expect(f"{MANY} tokens of {MANY} users imported, 0 skipped")
    child.expect(pexpect.EOF)
    assert in_place(site) == MANY
    assert site.command("verify", f"user{MANY - 1}", hotp(tokens[-1].secret, 0)).returncode == 0


def test_all_parts_of_a_migration_are_imported_together(site: Site, tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(2)]
    for i, file in enumerate(files):
        file.write_text(part(i, 2, token(bytes([i]) * 20, name=b"Co:alice")) + "\n")
    missing = site.command("import", "migration", files[1], "--yes")
    assert missing.returncode == 1
    assert "part 1 of 2 is missing" in missing.stderr
    assert site.command("import", "migration", *files, "--yes").returncode == 0
    assert len(site.record("alice").tokens) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["google-authenticator", "f"],
        ["google-authenticator", "f", "--homes", "/home"],
        ["users-oath", "--homes", "/home"],
        ["csv", "f", "--serial", "1"],
        ["csv", "f", "--map", "m", "--user", "u"],
        [],
        ["otpauth"],
        ["--user", "u"],
        ["--homes", "/home", "f"],
        ["otpauth", "a", "b"],
        ["csv", "-", "--map", "-"],
        ["csv", "f", "--key-file", "k"],
        ["nonsense", "f"],
    ],
)
def test_missing_or_contradictory_words_are_wrong_usage(site: Site, words: list[str]) -> None:
    done = site.command("import", *words)
    assert done.returncode == 2
    assert done.stderr


def test_an_import_that_finds_no_token_names_the_searched_files(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "empty.csv"
    file.write_text("serial,user,key\n")
    for dry in ([], ["--dry-run"]):
        done = site.command("import", "csv", file, "--yes", *dry)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == f"pam-totp: {file}: must contain a token; nothing was imported"
    (tmp_path / "homes" / "alice").mkdir(parents=True)
    done = site.command("import", "--homes", tmp_path / "homes", "--home-file", ".codes")
    what = "nothing was imported: .codes not found in the home folders (--home-file gives another name)"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"pam-totp: {tmp_path / 'homes'}: {what}\n")


@as_root
def test_a_tree_of_homes_is_read_as_each_home_s_owner(site: Site, tmp_path: Path) -> None:
    homes = site.folder / "home"
    homes.mkdir(0o755)
    good = f'{base32(KEY)}\n" HOTP_COUNTER 5\n12345678\n'
    secret = site.folder / "roots-own"
    secret.write_text(good)
    secret.chmod(0o600)
    for name, uid in (("daemon", 1), ("bin", 2), ("sys", 3), ("nobody", 65534), ("games", 5), ("man", 6), ("lp", 7)):
        home = homes / name
        home.mkdir(0o700)
        file = home / ".google_authenticator"
        if name == "sys":
            file.symlink_to(secret)
        elif name == "nobody":
            os.mkfifo(file)
        elif name != "man":
            file.write_text(good if name != "bin" else "junk=\n")
            file.chmod(0o000 if name == "lp" else 0o400)
            os.chown(file, uid, uid)
        os.chown(home, 0 if name == "games" else uid, uid)
    (homes / "linked").symlink_to(homes / "daemon")
    site.give_to(65534)
    done = site.command("import", "google-authenticator", "--homes", homes, "--json")
    said = json.loads(done.stdout)
    assert [(row["user"], row["place"]) for row in said["imported"]] == [
        ("daemon", f"{homes}/daemon/.google_authenticator")
    ]
    reasons = {row["place"].split("/")[-2]: row["reason"] for row in said["left_out"]}
    assert reasons == {
        "home": "must be a folder, not a symbolic link",  # the entry `linked`
        "bin": "line 1: the key must be base32",
        "sys": "Too many levels of symbolic links",
        "nobody": "must be a regular file",
        "games": "must belong to the owner of the home folder",
        "lp": "Permission denied",  # the owner of the home cannot read the file, but root can
    }
    assert done.returncode == 1
    assert (site.store / "daemon.record").stat().st_uid == 65534
    assert site.counter("daemon") == 5


@as_root
def test_homes_that_root_cannot_read_are_read_as_their_owners(site: Site) -> None:
    """An NFS server with root_squash denies root a folder of mode 0700. This test drops CAP_DAC_OVERRIDE instead."""
    homes = site.folder / "home"
    homes.mkdir(0o755)
    good = f'{base32(KEY)}\n" HOTP_COUNTER 5\n12345678\n'
    for name, uid, mode in (("daemon", 1, 0o700), ("bin", 2, 0o000), ("sys", 3, 0o700)):
        (homes / name / ".ssh").mkdir(0o700, parents=True)
        file = homes / name / ".ssh" / "codes"
        file.write_text(good)
        file.chmod(0o400)
        for path in (file, file.parent, homes / name):
            os.chown(path, uid, uid)
        (homes / name).chmod(mode)
    (homes / "lp").symlink_to(homes / "daemon")
    (homes / "lost+found").mkdir(0o700)
    (homes / "aquota.user").touch()
    command = [sys.executable, "-m", "pam_totp.cli", "import", "--store", str(site.store), "google-authenticator"]
    command += ["--homes", str(homes), "--home-file", ".ssh/codes", "--json"]
    without = "-dac_override,-dac_read_search"
    done = subprocess.run(
        ["setpriv", f"--bounding-set={without}", *command], cwd=TREE, capture_output=True, text=True, check=False
    )
    said = json.loads(done.stdout)
    assert [row["user"] for row in said["imported"]] == ["daemon", "sys"], done.stderr
    assert {row["place"]: row["reason"] for row in said["left_out"]} == {
        f"{homes}/bin/.ssh/codes": "Permission denied",
        f"{homes}/lp": "must be a folder, not a symbolic link",
    }


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a//b", ".", ""])
def test_a_home_file_is_inside_the_home(site: Site, tmp_path: Path, name: str) -> None:
    done = site.command("import", "google-authenticator", "--homes", tmp_path, f"--home-file={name}")
    assert done.returncode == 2


def test_users_without_an_account_are_named_with_similar_accounts(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    names = ("daemon", "DAEMON", "bin@myhost", "CORP\\sys", "zoe")
    file.write_text("".join(f"HOTP {name} - {i:040x}\n" for i, name in enumerate(names)))
    done = site.command("import", "users-oath", file)
    warning = "pam-totp: warning:"
    assert done.returncode == 0
    assert without_log_warning(done.stderr).splitlines() == [
        f"{warning} CORP\\sys has no account on this host (did you mean sys?)",
        f"{warning} DAEMON has no account on this host (did you mean daemon?)",
        f"{warning} bin@myhost has no account on this host (did you mean bin?)",
        f"{warning} zoe has no account on this host",
        "5 tokens of 5 users imported, 0 skipped",
    ]
    said = json.loads(site.command("import", "users-oath", file, "--dry-run", "--json").stdout)
    assert said["without_account"] == [
        {"user": "DAEMON", "similar": "daemon"},
        {"user": "bin@myhost", "similar": "bin"},
        {"user": "CORP\\sys", "similar": "sys"},
        {"user": "zoe", "similar": None},
    ]


def test_strict_requires_an_account_for_every_user(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text(f"HOTP daemon - {HEX}\nHOTP Bin - {'ab' * 20}\n")
    done = site.command("import", "users-oath", file, "--strict")
    assert (done.returncode, done.stdout) == (1, "")
    remedy = "create the missing accounts, or omit --strict"
    reason = f"nothing was imported: Bin has no account on this host (did you mean bin?); {remedy}"
    assert without_log_warning(done.stderr) == f"pam-totp: {reason}\n"
    assert records(site) == {}
    file.write_text(f"HOTP daemon - {HEX}\n")
    assert site.command("import", "users-oath", file, "--strict").returncode == 0


def test_many_users_without_an_account_are_counted(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text("".join(f"HOTP ghost{i:02} - {i:040x}\n" for i in range(25)))
    said = site.command("import", "users-oath", file).stderr
    assert said.count("has no account") == 20
    assert "5 more users have no account on this host (use --json to list all tokens)" in said
    remedy = "create the missing accounts, or omit --strict"
    assert f", and 5 more; {remedy}" in site.command("import", "--strict", file).stderr


def test_an_ordinary_user_imports_the_file_of_their_home(site: Site, tmp_path: Path) -> None:
    home = tmp_path / "home" / ME
    home.mkdir(parents=True)
    (home / ".google_authenticator").write_text(f'{base32(KEY)}\n" HOTP_COUNTER 5\n')
    done = site.command("import", "google-authenticator", "--homes", tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert site.counter() == 5


@contextmanager
def held(site: Site, user: str) -> Iterator[None]:
    lock = holding(site.store, f"{user}.record")
    try:
        yield
    finally:
        os.close(lock)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_import_leaves_the_store_as_it_was(site: Site, tmp_path: Path, number: signal.Signals) -> None:
    file = tmp_path / "users.oath"
    file.write_text("".join(f"HOTP user{i} - {i:040x}\n" for i in range(400)))
    for i in range(0, 400, 100):
        site.enrol(phone(), user=f"user{i}")
    before = records(site)
    # The import waits for the lock of user250, as for the lock of a slow login.
    with held(site, "user250"), started(site, "import", "users-oath", str(file)) as process:
        until(
            lambda: in_place(site) == 251 or process.poll() is not None,
            "all records up to user249, and the old record of user300, are in the store",
        )
        assert process.poll() is None, "the import is still running"
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    if number == signal.SIGINT:
        assert (process.returncode, said) == (130, "pam-totp: interrupted; nothing was changed\n")
        assert records(site) == before, "the command rolls the import back before it exits"
    listed = site.command("list", "user0")
    assert listed.returncode == 0
    if number != signal.SIGINT:
        assert "an interrupted import was rolled back: 250 records are as before the import" in listed.stderr
    assert records(site) == before
    assert not (site.store / ".import").exists()
    assert site.command("import", "users-oath", file).returncode == 0
    assert in_place(site) == 400


def appends_to(pid: int, file: Path) -> bool:
    """Return True if the process `pid` has opened `file` in append mode."""
    for number in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # the process has closed the descriptor
            if os.readlink(f"/proc/{pid}/fd/{number}") == str(file):
                flags = Path(f"/proc/{pid}/fdinfo/{number}").read_text().split("flags:")[1].split()[0]
                if int(flags, 8) & os.O_APPEND:
                    return True
    return False


def test_an_import_interrupted_twice_reports_the_open_roll_back(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    file.write_text("".join(f"HOTP user{i} - {i:040x}\n" for i in range(20)))
    site.enrol(phone(), user="user0")
    before = records(site)

    manifest = site.store / ".import" / "manifest"
    with held(site, "user10"), started(site, "import", "users-oath", str(file)) as process:
        until(lambda: in_place(site) == 10, "the records of user0 to user9 are in the store")
        assert appends_to(process.pid, manifest)
        with held(site, "user0"):
            process.send_signal(signal.SIGINT)
            until(lambda: not appends_to(process.pid, manifest), "the roll-back waits for user0")
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "pam-totp: interrupted during the roll-back; the next command completes it\n"
    assert records(site) != before
    assert "an interrupted import was rolled back: 10 records are as before the import" in site.command("list").stderr
    assert records(site) == before
