"""Tests of commands on terminals of any size and character set, and of the output of keys."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pexpect
import pytest

from pam_totp.cli import printing
from pam_totp.core.secretfile import base32
from pam_totp.formats.otpauth import from_uri
from tests.support.site import KEY, ME, PATIENCE, PIPE, TREE, Site, codes, fob, phone
from tests.support.terminals import (
    QUESTION,
    drawn,
    drawn_in_ascii,
    groups_of_key,
    on_terminal,
    output_on_terminal,
    read_picture,
    scanned,
)

COLOUR = "\x1b["
LONG_NAME = "a-department.subdivision@directory.example.net"
NOT_A_TERMINAL = (
    "pam-totp: keys and codes are printed only on a terminal; nothing was changed "
    "(omit the pipe, or add '--output FILE', or '--output -' for the pipe)\n"
)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("user", [ME, "carol.smith@example.net"])
def test_the_key_stays_visible_at_80x24_beside_the_whole_code(site: Site, tmp_path: Path, user: str) -> None:
    child = on_terminal(site, "enroll", user, "--issuer", "a-server.example.net")
    child.expect_exact(QUESTION)
    screen = plain(child.before)
    code = [line for line in screen.splitlines() if "█" in line]
    below = screen.rpartition(code[-1])[2].count("\n")
    assert len(code) + below <= 24, "the code and the question fit on the screen"
    child.sendline("000000")
    child.expect_exact(QUESTION)
    lines = (screen + QUESTION + plain(child.before) + QUESTION).splitlines()[-24:]
    key = groups_of_key("\n".join(line[len(code[0]) :] for line in lines if "█" in line))
    uri = scanned(drawn(screen), tmp_path)
    assert "".join(key) == base32(from_uri(uri, "phone", 0).secret), "the key is also visible after a wrong answer"
    child.close(force=True)


def test_on_a_high_terminal_the_key_is_in_one_line_above_the_code(site: Site) -> None:
    screen = plain(output_on_terminal(site, "enroll", ME, "--yes", size=(50, 80)))
    above, _, below = screen.partition("█")
    assert len(groups_of_key(above)) == 8
    assert "key:" not in below


def test_a_terminal_too_narrow_for_the_code_gets_a_message(site: Site) -> None:
    child = on_terminal(site, "enroll", ME, size=(24, 30))
    child.expect_exact("then type the code it shows: ")
    said = " ".join(child.before.split())
    assert "█" not in said, "a phone cannot scan a QR code that the terminal wraps"
    assert re.search(
        r"\(no QR code: the terminal has 30 columns, and the QR code needs \d\d: "
        r"make the terminal wider, or give --qr png=FILE\)",
        said,
    )
    assert len(groups_of_key(child.before)) == 8
    child.close(force=True)


@pytest.mark.parametrize(
    ("variables", "colour"),
    [
        ({"LC_ALL": "C"}, True),
        ({"LC_ALL": "POSIX", "NO_COLOR": "1"}, False),
        ({"LC_ALL": "de_DE.ISO-8859-1"}, True),
        ({"TERM": "dumb"}, False),
        ({"LC_ALL": "", "LANG": "C"}, True),
        # Reported in the issues gtanner/qrcode-terminal 28, canonical/authd 361 and google-authenticator-libpam 268.
        ({"LC_ALL": "C", "TERM": "screen"}, True),
        ({"TERM": "linux"}, True),
        ({"LC_ALL": "C", "TERM": "vt220"}, False),
    ],
    ids=str,
)
def test_without_block_characters_the_code_is_drawn_in_ascii(
    site: Site, tmp_path: Path, variables: dict[str, str], colour: bool
) -> None:
    screen = output_on_terminal(site, "enroll", ME, "--yes", "--issuer", "host", size=(60, 80), **variables)
    assert screen.isascii()
    assert (COLOUR in screen) == colour
    assert all(len(line) <= 80 for line in plain(screen).splitlines())
    token = from_uri(scanned(drawn_in_ascii(screen), tmp_path), "phone", 0)
    assert token.secret == site.record().tokens[0].secret


@pytest.mark.parametrize("term", ["vt220", "xterm-mono"])
def test_a_terminal_without_colours_gets_a_code_in_its_own_colour(site: Site, tmp_path: Path, term: str) -> None:
    """The QR code of google-authenticator-libpam was black on black on terminals without colours (its issue 268)."""
    screen = output_on_terminal(site, "enroll", ME, "--yes", "--issuer", "host", size=(50, 80), TERM=term)
    assert COLOUR not in screen
    token = from_uri(scanned(drawn(screen), tmp_path), "phone", 0)
    assert token.secret == site.record().tokens[0].secret


@pytest.mark.parametrize("command", [("enroll", "zoe", "--yes"), ("replace", ME, "--yes"), ("qr", ME, "--yes")])
def test_an_option_selects_the_code_in_ascii(site: Site, tmp_path: Path, command: tuple[str, ...]) -> None:
    """Terminals with gaps between the lines need this option (google-authenticator-libpam, issue 155)."""
    site.enrol(phone())
    screen = output_on_terminal(site, *command, "--qr", "ascii", "--issuer", "host", size=(60, 80))
    assert screen.isascii() and COLOUR in screen
    token = from_uri(scanned(drawn_in_ascii(screen), tmp_path), "phone", 0)
    assert token.secret == site.record(command[1]).tokens[0].secret


def test_a_code_in_ascii_for_a_file_has_no_colour(site: Site) -> None:
    site.enrol(phone())
    done = site.command("qr", ME, "--yes", "--qr", "ascii", *PIPE)
    assert "####" in done.stdout and done.stdout.isascii() and COLOUR not in done.stdout


def test_an_ascii_code_that_is_too_high_is_reported(site: Site) -> None:
    screen = output_on_terminal(site, "enroll", ME, "--yes", "--issuer", "host", LC_ALL="C")
    assert re.search(r"\(the QR code needs \d\d lines: make the terminal higher, or give --qr png=FILE\)", screen)
    assert len(groups_of_key("\n".join(screen.splitlines()[-24:]))) == 8


@pytest.mark.parametrize("charset", ["C", "de_DE.ISO-8859-1", "en_US.UTF-8"])
def test_tables_and_help_are_readable_in_every_charset(site: Site, charset: str) -> None:
    site.enrol(fob(serial="é"), phone(serial="№ 7"))
    table = output_on_terminal(site, "list", LC_ALL=charset)
    shown = {"C": ("\\xe9", "\\u2116 7"), "de_DE.ISO-8859-1": ("é", "\\u2116 7"), "en_US.UTF-8": ("é", "№ 7")}
    assert all(serial in table for serial in shown[charset])
    assert output_on_terminal(site, "enroll", "--help", LC_ALL=charset).startswith("usage:")
    child = on_terminal(site, "list", "zoë", LC_ALL=charset)
    child.expect_exact("unknown user zo")
    child.expect(pexpect.EOF)
    assert "Traceback" not in child.before


def test_a_file_gets_the_bytes_of_names_in_the_c_locale_too(site: Site) -> None:
    site.enrol(fob(serial="é"))
    command = [sys.executable, "-m", "pam_totp.cli", "list", "--store", str(site.store)]
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    done = subprocess.run(command, cwd=TREE, env=environment, capture_output=True, timeout=PATIENCE, check=True)
    assert "é".encode() in done.stdout


def test_colour_is_for_terminals_without_no_color(site: Site) -> None:
    site.enrol()
    assert output_on_terminal(site, "list").startswith(f"{COLOUR}1mUSER")
    assert output_on_terminal(site, "list", NO_COLOR="1").startswith("USER")
    assert output_on_terminal(site, "list", TERM="dumb").startswith("USER")
    assert output_on_terminal(site, "list", TERM="vt220").startswith("USER")
    assert output_on_terminal(site, "list", TERM="unknown-terminal").startswith(f"{COLOUR}1mUSER")
    assert COLOUR not in site.command("list").stdout
    assert f"{COLOUR}32maccepted{COLOUR}0m" in output_on_terminal(site, "verify", ME, codes(0))


@pytest.mark.parametrize("columns", [50, 80, 100])
def test_a_table_fits_the_width_and_loses_nothing(site: Site, columns: int) -> None:
    site.enrol(fob(serial="SN-0123456789-0123456789", name="a key fob with a long name"), user=LONG_NAME)
    table = plain(output_on_terminal(site, "list", size=(24, columns)))
    assert max(map(len, table.splitlines())) <= columns
    for word in ("fob", "counter", "SHA1,", "active", "STATE"):
        assert columns < 80 or word in table.split(), "short words are not split"
    (row,) = site.command("list").stdout.splitlines()[1:]
    assert LONG_NAME in row, "the command writes one line for each token to a pipe"
    assert Counter("".join(table.split())) == Counter("".join(site.command("list").stdout.split())), (
        "the table contains every part of the text"
    )


def test_narrow_columns_keep_all_characters_of_each_cell() -> None:
    cells = ("alice", "SN-0123456789-0123456789", "6 digits, SHA1, counter 12")
    widths = printing.fitted([len(cell) for cell in cells], [5, 24, 7], 40)
    assert widths[1] == 24, "columns with long words become narrower last"
    widths = printing.fitted([len(cell) for cell in cells], [5, 24, 7], 34)
    assert sum(widths) + 2 * len(printing.GAP) == 34
    lines = list(printing._lines_of(cells, widths))
    starts = [0, widths[0] + 2, widths[0] + widths[1] + 4]
    for cell, start, width in zip(cells, starts, widths, strict=True):
        assert "".join(line[start : start + width] for line in lines).replace(" ", "") == cell.replace(" ", "")


def test_the_picture_is_complete_before_the_prompt_for_the_code(site: Site, tmp_path: Path) -> None:
    picture = tmp_path / "code.png"
    child = on_terminal(site, "enroll", ME, "--qr", f"png={picture}")
    child.expect_exact(QUESTION)
    assert f"the QR code is in {picture}" in child.before
    assert read_picture(picture).startswith("otpauth://totp/")
    child.close(force=True)


def test_qr_none_shows_the_key_and_asks_to_type_it(site: Site) -> None:
    child = on_terminal(site, "enroll", ME, "--qr", "none")
    child.expect_exact("Type this key into your authenticator app, then the code it shows: ")
    assert len(groups_of_key(child.before)) == 8
    assert "█" not in child.before
    child.close(force=True)


def test_a_later_confirmation_requires_the_key_of_the_token(site: Site) -> None:
    done = site.command("enroll", ME, "--type", "hotp", "--serial", "S-1", "--later", *PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("pam-totp: --later requires the key of the token (give --secret-stdin or --uri-stdin)\n")
    assert not site.path().exists()


def test_a_command_without_words_prints_a_short_help(site: Site) -> None:
    command = [sys.executable, "-m", "pam_totp.cli"]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) <= 12 and max(map(len, lines)) <= 80
    assert "pam-totp enroll alice" in done.stderr and "'pam-totp --help'" in done.stderr


KEY_COMMANDS = [
    ("enroll", "zoe", "--yes"),
    ("enroll", "zoe", "--yes", "--json"),
    ("enroll", "zoe", "--yes", "--qr", "none"),
    ("replace", ME, "--yes"),
    ("qr", ME, "--yes"),
    ("qr", ME, "--yes", "--json"),
    ("recovery", ME, "--yes"),
    ("recovery", ME, "--yes", "--json"),
    ("export", ME, "--format", "otpauth"),
]


@pytest.mark.parametrize("words", KEY_COMMANDS, ids=" ".join)
def test_keys_go_to_a_terminal_or_a_named_file(site: Site, tmp_path: Path, words: tuple[str, ...]) -> None:
    site.enrol()
    before = site.path().read_bytes()
    refused = site.command(*words)
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", NOT_A_TERMINAL)
    assert (site.path().read_bytes(), site.files()) == (before, {f"{ME}.record"}), "nothing was changed"
    file = tmp_path / "file"
    written = site.command(*words, "--output", file)
    assert written.returncode == 0, written.stderr
    assert file.stat().st_mode & 0o7777 == 0o600
    content = file.read_text()
    assert content and content not in written.stdout
    secrets = re.findall(r"[A-Z2-7]{32}|(?:[0-9A-Z]{4}[- ]){3,7}[0-9A-Z]{4}", content)
    assert secrets
    assert not any(secret in written.stdout + written.stderr for secret in secrets)
    again = site.command(*words, "--output", file)
    assert again.returncode == 1 and "already exists" in again.stderr


def test_a_key_that_the_user_enters_is_not_shown_and_needs_no_output(site: Site) -> None:
    done = site.command("enroll", ME, "--secret-stdin", "--yes", "--json", stdin=base32(KEY) + "\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert base32(KEY) not in done.stdout


def test_recovery_codes_that_cannot_be_written_void_no_code(site: Site, tmp_path: Path) -> None:
    site.enrol()
    (code, *_) = site.command("recovery", ME, *PIPE).stdout.split()
    before = site.path().read_bytes()
    done = site.command("recovery", ME, "--yes", "--output", tmp_path / "no" / "file")
    assert done.returncode == 3
    assert site.path().read_bytes() == before
    assert site.command("verify", ME, stdin=f"{code}\n").returncode == 0
