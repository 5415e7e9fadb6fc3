"""Tests of the command `export`: files have mode 0600, and both other programs and `import` can read them."""

from __future__ import annotations

import base64
import json
import os
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
from pam_totp.store.file import FileStore
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
            assert field in done.stderr, "the command lists the fields that the format cannot contain"


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
        "pam-totp: keys and codes are printed only on a terminal; nothing was changed "
        "(omit the pipe, or add '--output FILE', or '--output -' for the pipe)\n"
    )
    piped = site.command(*words, *PIPE)
    assert (piped.returncode, piped.stderr) == (0, "")
    assert site.command(*words, "--output", tmp_path / "file").returncode == 0
    assert piped.stdout == (tmp_path / "file").read_text()
    assert not (TREE / "-").exists()
    both = site.command(*words, *PIPE, "--json")
    assert (both.returncode, both.stdout) == (2, ""), "standard output receives the keys or the report, never both"


# --- all users


def crowd(site: Site) -> None:
    """Enrol users with a token for each program, and with tokens that these programs do not support."""
    site.enrol(fob(7), user="alice")
    site.enrol(phone(last_step=STEP), user="bob")
    site.enrol(phone(algorithm="SHA256"), user="carl")
    site.enrol(fob(3), phone(), user="dora")
    site.enrol(fob(3, enabled=False), user="emil")


def test_all_tokens_are_exported_for_pam_oath(site: Site, tmp_path: Path) -> None:
    crowd(site)
    file = tmp_path / "users.oath"
    done = site.command("export", "--all", "--format", "users-oath", "--output", file)
    assert done.returncode == 1, "exit status 1 reports a skipped token"
    assert [line.split()[1] for line in file.read_text().splitlines()] == ["alice", "bob", "dora", "dora"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert done.stdout.splitlines() == [
        f"{file}: 4 tokens of 3 users exported; any account that can read the output can generate the same codes",
        f"for the stack: auth required pam_oath.so usersfile={file} window=10 digits=6",
    ]
    assert done.stderr.splitlines() == [
        "pam-totp: skipped: carl, phone: users-oath supports SHA1 only",
        "pam-totp: skipped: emil, fob: users-oath cannot hold a disabled token",
    ]
    assert base32(KEY) not in done.stdout + done.stderr
    again = site.command("import", "users-oath", file, "--dry-run")
    assert again.stdout.count("already imported as") == 4


def test_all_tokens_are_exported_for_google_authenticator(site: Site, tmp_path: Path) -> None:
    crowd(site)
    folder = tmp_path / "ga"
    done = site.command("export", "--all", "--format", "google-authenticator", "--output", folder)
    assert done.returncode == 1
    assert sorted(path.name for path in folder.iterdir()) == ["alice", "bob"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert f"secret={folder}/${{USER}} user=root" in done.stdout
    reason = "a google-authenticator file has one token, and the user has 2 (select a token with --token)"
    assert f"dora: {reason}" in done.stderr
    assert of_google_authenticator((folder / "alice").read_text()) == [hotp(KEY, 7 + i) for i in range(5)]


def test_google_authenticator_can_open_every_exported_file_name(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(7), user="alice")
    store = FileStore(str(site.store))
    store.update("EXAMPLE\\bob", lambda record: (record.with_token(fob(7)), None), create=True)
    relative = os.path.relpath(tmp_path / "ga", TREE)
    done = site.command("export", "--all", "--format", "google-authenticator", "--output", relative)
    assert done.returncode == 1
    assert os.listdir(tmp_path / "ga") == ["alice"]
    reason = "the other program requires a file with the user's name, and this name cannot be a file name"
    assert f"skipped: EXAMPLE\\bob: {reason}" in done.stderr
    assert f"secret={tmp_path / 'ga'}/${{USER}} user=root" in done.stdout


def test_all_exported_records_can_be_imported(site: Site, tmp_path: Path) -> None:
    crowd(site)
    folder = tmp_path / "records"
    said = site.command_json("export", "--all", "--format", "json", "--output", folder)
    assert (said["users"], said["tokens"], said["left_out"]) == (5, 6, [])
    before = site.record("dora")
    assert site.command("remove", "dora", "--all", "--yes").returncode == 0
    assert site.command("import", "json", folder / "dora").returncode == 0
    assert site.record("dora") == before


@pytest.mark.parametrize(
    "words",
    [
        ["--all", "--format", "users-oath"],
        ["--all", "--format", "google-authenticator"],
        ["--all", "--format", "users-oath", "--output", "-"],
        ["--all", "--format", "pskc", "--output", "new"],
        ["alice", "--all", "--format", "users-oath", "--output", "new"],
        ["--all", "--token", "fob", "--format", "users-oath", "--output", "new"],
    ],
)
def test_an_export_of_all_requires_an_output(site: Site, words: list[str]) -> None:
    crowd(site)
    before = set(TREE.iterdir())
    done = site.command("export", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert set(TREE.iterdir()) == before


@pytest.mark.parametrize("name", ["users-oath", "google-authenticator"])
def test_an_export_of_all_replaces_nothing(site: Site, tmp_path: Path, name: str) -> None:
    place = tmp_path / "place"
    words = ("export", "--all", "--format", name, "--output", place)
    assert site.command(*words).returncode == 1, "there is no token"
    assert not place.exists()
    crowd(site)
    place.symlink_to(tmp_path / "elsewhere")
    done = site.command(*words)
    assert done.returncode == 1
    assert "already exists" in done.stderr
    assert not (tmp_path / "elsewhere").exists()


def test_an_export_of_all_without_a_usable_token_gives_the_reasons(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(enabled=False), user="alice")
    site.enrol(fob(algorithm="SHA256"), user="bob")
    words = ("export", "--all", "--format", "google-authenticator", "--output", tmp_path / "new")
    done = site.command(*words)
    assert (done.returncode, done.stdout) == (1, "")
    alice, bob, last = done.stderr.splitlines()
    assert alice == "pam-totp: skipped: alice, fob: google-authenticator cannot hold a disabled token"
    assert bob.startswith("pam-totp: skipped: bob, fob: ")
    assert last == "pam-totp: nothing was written: the export requires a token that the format can represent"
    site.path("alice").unlink()
    site.path("bob").write_text("{}")
    damaged = site.command(*words)
    assert (damaged.returncode, "skipped: bob: bob.record: " in damaged.stderr) == (3, True)
    assert not (tmp_path / "new").exists()


def test_a_damaged_record_does_not_stop_an_export_of_all(site: Site, tmp_path: Path) -> None:
    crowd(site)
    site.path("bob").write_text("{}")
    file = tmp_path / "users.oath"
    done = site.command("export", "--all", "--format", "users-oath", "--output", file)
    assert done.returncode == 3
    assert "skipped: bob: bob.record: " in done.stderr
    assert [line.split()[1] for line in file.read_text().splitlines()] == ["alice", "dora", "dora"]
