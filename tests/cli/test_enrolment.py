"""Tests of enroll and qr: the dialogue, the QR code and the picture."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pexpect
import pyotp
import pytest

from pam_totp.core.oath import totp
from pam_totp.core.record import Token
from pam_totp.core.secretfile import base32
from pam_totp.formats.otpauth import from_uri
from pam_totp.store.file import FileStore
from tests.support.site import KEY, ME, PIPE, Site, codes, fob, phone
from tests.support.terminals import QUESTION, drawn, groups_of_key, on_terminal, read_picture, scanned


def token_of(uri: str) -> Token:
    return from_uri(uri, "phone", 0)


def test_a_phone_app_is_enrolled_from_the_qr_code_on_the_terminal(site: Site, tmp_path: Path) -> None:
    site.configure()
    child = on_terminal(site, "enroll", ME)
    child.expect_exact(QUESTION)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", child.before)
    lines = shown.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert len(lines) + 1 <= 24, "the QR code, the key and the prompt fit on one screen of 80×24"
    uri = scanned(drawn(shown), tmp_path)
    token = token_of(uri)
    assert len(token.secret) == 20
    assert "".join(groups_of_key(shown)) == base32(token.secret), "`enroll` shows the key in groups of four characters"
    assert not site.path().exists(), "`enroll` stores the token only after a right code"
    child.sendline("000000")
    child.expect_exact("wrong answer (enter a code from this token)")
    app = pyotp.parse_uri(uri)
    assert isinstance(app, pyotp.TOTP)
    code = app.at(int(time.time()))
    child.sendline(code)
    child.expect(f"{ME} now has the totp token phone")
    child.expect(pexpect.EOF)
    assert not site.gets_in(code), "the code that confirmed the token counts as used"
    assert site.gets_in(totp(token.secret, int(time.time()) + 30))


def test_the_qr_code_is_dark_on_light_under_every_theme(site: Site) -> None:
    child = on_terminal(site, "enroll", ME, "--yes")
    child.expect(pexpect.EOF)
    blocks = [line for line in child.before.splitlines() if "█" in line]
    assert blocks
    assert all(re.match(r"\x1b\[38;5;231;48;5;16m[█▀▄ ]+\x1b\[0m", line) for line in blocks)


def test_hotp_without_a_known_counter_asks_for_two_codes_in_a_row(site: Site) -> None:
    words = ("enroll", ME, "--type", "hotp", "--secret-stdin")
    one = site.command(*words, stdin=f"{base32(KEY)}\n{codes(40)}\n{codes(41)}\n{codes(42)}\n")
    assert one.returncode == 1
    assert "wrong answer (enter two codes in a row from this token)" in one.stderr
    assert not site.path().exists()
    two = site.command(*words, stdin=f"{base32(KEY)}\n{codes(40, 2)}\n")
    assert two.returncode == 0, two.stderr
    assert site.counter() == 42


def test_an_existing_token_is_not_replaced(site: Site) -> None:
    site.enrol(phone())
    before = site.path().read_bytes()
    done = site.command("enroll", ME, *PIPE, stdin="000000\n")
    assert done.returncode == 1
    assert done.stderr == (
        f"pam-totp: {ME} already has a token named 'phone'; nothing was changed "
        "(choose another name with --name, or see 'pam-totp remove --help')\n"
    )
    assert "key:" not in done.stdout, "`enroll` reports the error before it shows a key"
    assert site.path().read_bytes() == before


def test_a_counter_for_a_time_token_is_wrong_usage(site: Site) -> None:
    done = site.command("enroll", ME, "--counter", "7", stdin="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "pam-totp: --counter requires --type hotp\n"


def test_after_wrong_codes_of_a_time_token_the_current_time_is_shown(site: Site) -> None:
    by_time = site.command("enroll", ME, "--qr", "none", *PIPE, stdin="000000\n" * 3)
    told = r"nothing was changed \(check the phone's clock: it is now \d\d:\d\d:\d\d UTC\)$"
    assert re.search(told, by_time.stderr)
    by_button = site.command("enroll", ME, "--qr", "none", *PIPE, "--type", "hotp", stdin="000000\n" * 3)
    assert by_button.stderr.endswith("3 answers were wrong; nothing was changed\n")


CHOICES = [
    ["--type", "totp"],
    ["--type", "totp", "--algorithm", "SHA256", "--digits", "8", "--period", "60"],
    ["--type", "hotp", "--counter", "7"],
    ["--type", "totp", "--issuer", "Ex & Co =?#/é%", "--name", "n"],
]
NAME = "al.i+ce@example.net"


@pytest.mark.parametrize("words", CHOICES)
def test_zbar_and_pyotp_read_the_enrolled_token(site: Site, tmp_path: Path, words: list[str]) -> None:
    picture = tmp_path / "code.png"
    done = site.command("enroll", NAME, *words, "--yes", "--qr", f"png={picture}", "--json", *PIPE)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_mode & 0o777 == 0o600
    uri = read_picture(picture)
    assert uri == json.loads(done.stdout)["uri"]
    stored = FileStore(str(site.store)).read(NAME).tokens[0]
    theirs = pyotp.parse_uri(uri)
    assert theirs.byte_secret() == stored.secret
    assert theirs.digits == stored.digits
    assert theirs.name == NAME
    issuer = words[words.index("--issuer") + 1] if "--issuer" in words else socket.gethostname()
    assert theirs.issuer == issuer
    back = token_of(uri)
    assert (back.type, back.algorithm) == (stored.type, stored.algorithm)
    if isinstance(theirs, pyotp.HOTP):
        assert theirs.initial_count == 7
        assert site.command("verify", NAME, theirs.at(0)).returncode == 0
    else:
        assert isinstance(theirs, pyotp.TOTP)
        assert site.command("verify", NAME, theirs.now()).returncode == 0


def test_a_picture_never_replaces_a_file_and_is_deleted_on_failure(site: Site, tmp_path: Path) -> None:
    site.enrol()
    there = tmp_path / "there.svg"
    there.write_text("mine")
    done = site.command("qr", ME, "--yes", "--qr", f"svg={there}")
    assert done.returncode == 1
    assert "already exists" in done.stderr
    assert there.read_text() == "mine"
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "elsewhere")
    assert site.command("qr", ME, "--yes", "--qr", f"png={link}").returncode == 1
    assert not (tmp_path / "elsewhere").exists()
    fresh = tmp_path / "fresh.png"
    refused = site.command("enroll", ME, "--qr", f"png={fresh}", stdin="000000\n" * 3)
    assert refused.returncode == 1
    assert not fresh.exists(), "a failed enrolment deletes its picture"
    drawn = site.command("qr", ME, "--yes", "--qr", f"svg={fresh.with_suffix('.svg')}")
    assert drawn.returncode == 0, drawn.stderr
    assert fresh.with_suffix(".svg").read_text().startswith("<?xml")


def test_qr_shows_a_token_again_only_after_a_yes(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(9), phone())
    child = on_terminal(site, "qr", ME, "fob")
    child.expect(r"any person who sees the key can generate the same codes \[y/N\] ")
    child.sendline("n")
    child.expect("cancelled")
    child.expect(pexpect.EOF)
    assert base32(KEY)[:4] not in child.before
    shown = site.command("qr", ME, "fob", *PIPE, stdin="y\n")
    assert shown.returncode == 0
    uri = scanned(drawn(shown.stdout), tmp_path)
    assert uri == site.command_json("qr", ME, "fob", "--yes", *PIPE)["uri"]
    assert "counter=9" in uri, "the URI contains the counter of the next code"
    which = site.command("qr", ME, "--yes", *PIPE)
    said = f"pam-totp: {ME} has several tokens: name one (see 'pam-totp list {ME}')\n"
    assert (which.returncode, which.stderr) == (2, said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--algorithm", "SHA256"], "SHA256"),
        (["--algorithm", "SHA512"], "SHA512"),
        (["--digits", "8"], "8 digits"),
        (["--period", "60"], "a period of 60 s"),
    ],
)
def test_a_setting_that_some_apps_ignore_causes_a_warning(site: Site, words: list[str], said: str) -> None:
    done = site.command("enroll", ME, *words, "--yes", *PIPE)
    assert done.returncode == 0
    assert f"some phone apps ignore {said} in a QR code" in done.stderr
    assert site.command("enroll", ME, "--name", "usual", "--yes", *PIPE).stderr == ""


def test_an_issuer_with_a_colon_is_wrong_usage(site: Site) -> None:
    assert site.command("enroll", ME, "--yes", *PIPE, "--issuer", "a:b").returncode == 2
    assert not site.path().exists()


@pytest.mark.parametrize("how", ["png", "jpeg=x", "terminal=x", "none=x", "svg="])
def test_an_unknown_qr_output_is_wrong_usage(site: Site, how: str) -> None:
    assert site.command("enroll", ME, "--yes", "--qr", how).returncode == 2
    assert not site.path().exists()


def test_a_serial_number_of_another_user_is_refused_before_the_question(site: Site) -> None:
    site.enrol(fob(serial="SM-001"), user="alice")
    key = base32(b"another key of 20 B.")
    words = ("enroll", "bob", "--type", "hotp", "--serial", "sm 001", "--secret-stdin")
    done = site.command(*words, stdin=f"{key}\n123456\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert "alice has the token with the serial number sm 001; nothing was changed" in done.stderr
    assert "codes in a row" not in done.stderr
    assert site.command("remove", "alice", "--yes").returncode == 0
    assert site.command(*words, "--yes", stdin=f"{key}\n").returncode == 0
    assert site.record("bob").tokens[0].serial == "sm 001"
    replaced = site.command("replace", "bob", "token", "--secret-stdin", "--yes", "--serial", "SM-1", stdin="x" * 32)
    assert replaced.returncode == 0, replaced.stderr
    carl = ("enroll", "carl", "--type", "hotp", "--serial", "SM-2", "--secret-stdin", "--yes")
    assert site.command(*carl, stdin="z" * 32).returncode == 0
    refused = site.command("replace", "bob", "token", "--secret-stdin", "--yes", "--serial", "sm2", stdin="y" * 32)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "carl has the token with the serial number sm2" in refused.stderr
