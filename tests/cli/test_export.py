"""Tests of the command `export`: files have mode 0600, and both other programs and `import` can read them."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.parse
import xml.etree.ElementTree as tree
from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken, Token, TotpToken
from pam_totp.core.secretfile import base32
from tests.support.site import KEY, ME, PIPE, TREE, Site, codes, fob, phone

FORMATS = ("otpauth", "pskc", "google-authenticator", "users-oath", "json")
STEP = int(time.time()) // 30


def same(one: Token, other: Token, *but: str) -> bool:
    fields = set(one._fields) - set(but)
    return type(one) is type(other) and all(getattr(one, f) == getattr(other, f) for f in fields)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("token", [fob(7, name="token"), phone(last_step=STEP, drift=1)], ids=["hotp", "totp"])
def test_an_exported_token_is_imported_unchanged(site: Site, tmp_path: Path, name: str, token: Token) -> None:
    site.enrol(token)
    file = tmp_path / "out"
    done = site.command("export", ME, "--format", name, "--output", file)
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert base32(token.secret) not in done.stdout + done.stderr
    assert site.command("remove", ME, "--yes").returncode == 0
    again = site.command("import", name, file, "--user", ME)
    assert again.returncode == 0, again.stderr
    lost = {"otpauth": ("last_step", "drift"), "users-oath": ("drift",)}.get(name, ())
    used = ("last_used",) if name == "users-oath" else ()
    back = site.record().tokens[0]
    assert same(back, token, "created", *lost, *used)
    if isinstance(token, TotpToken):
        for field in lost:
            assert field in done.stderr, "the command lists the fields that the format cannot hold"


def test_json_keeps_the_whole_record(site: Site, tmp_path: Path) -> None:
    site.enrol(
        fob(7, serial="S-1"), phone(drift=-3, last_step=STEP, enabled=False), failures=3, failures_at=1_700_000_000
    )
    shown = site.command_json("recovery", ME, "--count", "2", *PIPE)["recovery"]
    before = site.record()
    file = tmp_path / "alice.json"
    assert site.command("export", ME, "--format", "json", "--output", file).returncode == 0
    assert site.command("remove", ME, "--all", "--yes").returncode == 0
    assert site.command("import", "json", file).returncode == 0
    assert site.record() == before
    assert site.command("verify", ME, stdin=shown[0] + "\n").returncode == 0
    assert site.command("import", "json", file).returncode == 0, "a second import of the file succeeds"
    assert len(site.record().recovery) == 1, "a used recovery code remains used"


def from_uri(text: str) -> tuple[str, dict[str, str]]:
    parts = urllib.parse.urlsplit(text.strip())
    return parts.netloc, dict(urllib.parse.parse_qsl(parts.query))


def of_otpauth(text: str) -> list[str]:
    kind, fields = from_uri(text)
    return oathtool(kind, ["--base32", fields["secret"]], fields["digits"], fields.get("counter"), fields["algorithm"])


def of_pskc(text: str) -> list[str]:
    root = tree.fromstring(text)  # noqa: S314  pam-totp wrote this file
    key = root.find("{*}KeyPackage/{*}Key")
    assert key is not None
    kind = key.attrib["Algorithm"].rpartition(":")[2]
    secret = base64.b64decode(key.findtext("{*}Data/{*}Secret/{*}PlainValue") or "").hex()
    response = key.find("{*}AlgorithmParameters/{*}ResponseFormat")
    assert response is not None
    digits = response.attrib["Length"]
    suite = (key.findtext("{*}AlgorithmParameters/{*}Suite") or "").removeprefix("HMAC-")
    return oathtool(kind, [secret], digits, key.findtext("{*}Data/{*}Counter/{*}PlainValue"), suite)


def of_google_authenticator(text: str) -> list[str]:
    counter = re.search(r'" HOTP_COUNTER (\d+)', text)
    secret = text.splitlines()[0]
    return oathtool("hotp" if counter else "totp", ["--base32", secret], "6", counter[1] if counter else None, "SHA1")


def of_users_oath(text: str) -> list[str]:
    fields = text.strip().split("\t")
    kind = "totp" if "/T" in fields[0] else "hotp"
    return oathtool(kind, [fields[3]], fields[0][-1], fields[4] if kind == "hotp" else None, "SHA1")


def of_json(text: str) -> list[str]:
    (token,) = json.loads(text)["tokens"]
    counter = str(token["counter"]) if token["type"] == "hotp" else None
    return oathtool(token["type"], ["--base32", token["secret"]], str(token["digits"]), counter, token["algorithm"])


def oathtool(kind: str, key: list[str], digits: str, counter: str | None, algorithm: str) -> list[str]:
    """Return five codes in a row that Debian's oathtool computes from the fields of the file."""
    how = ["--counter", str(counter)] if kind == "hotp" else [f"--totp={algorithm}", "--now", "2023-11-14 00:00:00 UTC"]
    command = ["oathtool", *how, "--window", "4", "--digits", digits, *key]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


READERS: dict[str, Callable[[str], list[str]]] = {
    "otpauth": of_otpauth,
    "pskc": of_pskc,
    "google-authenticator": of_google_authenticator,
    "users-oath": of_users_oath,
    "json": of_json,
}
CASES = [(name, token) for name in FORMATS for token in (fob(7), phone())]
CASES += [(name, phone(algorithm="SHA512", digits=8, secret=b"x" * 64)) for name in ("otpauth", "pskc", "json")]


@pytest.mark.parametrize(("name", "token"), CASES)
def test_oathtool_computes_the_same_codes_from_every_export(
    site: Site, tmp_path: Path, name: str, token: Token
) -> None:
    site.enrol(token)
    file = tmp_path / "out"
    assert site.command("export", ME, "--format", name, "--output", file).returncode == 0
    first = token.counter if isinstance(token, HotpToken) else 1_699_920_000 // 30
    expected = [hotp(token.secret, first + i, token.digits, token.algorithm) for i in range(5)]
    assert READERS[name](file.read_text()) == expected


def test_a_pskc_file_can_be_encrypted(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(7))
    file, password = tmp_path / "box.xml", tmp_path / "password"
    password.write_text("a pass phrase\n")
    words = ("export", ME, "--format", "pskc", "--output", file, "--password-file", password)
    assert site.command(*words).returncode == 0
    assert base64.b64encode(KEY) not in file.read_bytes()
    assert site.command("import", "pskc", file, "--user", "bob", "--password-file", password).returncode == 0
    assert site.counter("bob") == 7


def test_a_token_that_a_format_cannot_hold_is_refused_without_a_file(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(0), phone(algorithm="SHA256"), fob(name="old", secret=b"o" * 20, enabled=False))
    file = tmp_path / "out"
    for words, said in (
        (["--format", "google-authenticator", "--token", "fob"], "use one code first"),
        (["--format", "users-oath", "--token", "phone"], "SHA1 only"),
        (["--format", "otpauth"], "old: otpauth cannot hold a disabled token"),
        (["--format", "pskc", "--token", "nosuch"], "no token named 'nosuch'"),
    ):
        done = site.command("export", ME, *words, "--output", file)
        assert done.returncode == 1
        assert said in done.stderr
        assert not file.exists()
    assert site.command("export", "zoe", "--format", "json", "--output", file).returncode == 1
    assert not file.exists()


def test_options_that_exclude_each_other_leave_no_file(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(), phone())
    file, password = tmp_path / "out", tmp_path / "password"
    password.write_bytes(b"\xff\n")
    for status, said, *words in (
        (2, "--password-file requires --format pskc", "--format", "json", "--password-file", password),
        (2, "excludes --token", "--format", "json", "--token", "fob"),
        (1, "use one code first", "--format", "google-authenticator"),
        (1, "password: must be UTF-8 text", "--format", "pskc", "--password-file", password),
    ):
        done = site.command("export", ME, *map(str, words), "--output", file)
        assert (done.returncode, said in done.stderr) == (status, True), done
        assert not file.exists()


def test_fields_missing_in_the_file_are_listed_in_json_too(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(5, serial="S1"), phone())
    file = tmp_path / "out"
    told = site.command_json("export", ME, "--format", "otpauth", "--output", file)
    assert (told["user"], told["file"], told["tokens"]) == (ME, str(file), ["fob", "phone"])
    assert "serial" in told["not_in_it"]["fob"]
    assert "serial" not in told["not_in_it"]["phone"]


def test_export_never_replaces_a_file(site: Site, tmp_path: Path) -> None:
    site.enrol()
    file = tmp_path / "mine"
    file.write_text("mine")
    done = site.command("export", ME, "--format", "json", "--output", file)
    assert done.returncode == 1
    assert "already exists" in done.stderr
    assert file.read_text() == "mine"
    assert site.command("verify", ME, codes(0)).returncode == 0, "the token is unchanged"


def test_an_export_goes_to_a_named_file_or_with_a_dash_to_a_pipe(site: Site, tmp_path: Path) -> None:
    site.enrol()
    words = ("export", ME, "--format", "json")
    refused = site.command(*words)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "pam-totp: keys and codes are printed only on a terminal: standard output is none "
        "(give --output FILE, or --output - for a pipe)\n"
    )
    piped = site.command(*words, *PIPE)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert site.command(*words, "--output", tmp_path / "file").returncode == 0
    assert piped.stdout == (tmp_path / "file").read_text()
    assert not (TREE / "-").exists()
    both = site.command(*words, *PIPE, "--json")
    assert (both.returncode, both.stdout) == (2, ""), "standard output has one of the two"
