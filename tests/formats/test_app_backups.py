"""Tests of the backups of phone apps."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest

from pam_totp.core.secretfile import base32
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import FORMATS, sniff
from tests.formats.backups import (
    AEGIS,
    BACKUPS,
    BITWARDEN,
    FREEOTP,
    OTHER,
    PASSWORD,
    TWOFAS,
    TWOFAS_OLD,
    aegis_encrypted,
    dumped,
)
from tests.formats.reading import parsed
from tests.support.site import KEY


def ask(what: str) -> str:
    assert what == "password"
    return PASSWORD


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (name, data)
        for name, samples in BACKUPS.items()
        for data in (*samples[:2], b"\xef\xbb\xbf" + samples[0], samples[0].decode().encode("utf-16"))
        if data != dumped(TWOFAS_OLD, indent=2)
    ],
)
def test_the_entries_of_a_backup_are_read(name: str, data: bytes) -> None:
    assert sniff(data) == name
    found = parsed(name, data, ask_secret=ask)
    alice, bob, carl = found[:3]
    assert (alice.user, alice.secret, alice.type) == ("alice@example.org", KEY, "totp")
    assert (alice.algorithm, alice.digits, alice.period, alice.unsupported) == ("SHA256", 7, 20, None)
    assert (bob.user, bob.secret, bob.type, bob.counter, bob.digits) == ("bob", OTHER, "hotp", 50, 6)
    assert (carl.user, carl.unsupported is None, carl.line) == ("carl", False, 3)


def test_an_early_backup_of_2fas_has_totp_tokens() -> None:
    (found,) = parsed("2fas", dumped(TWOFAS_OLD))
    assert (found.user, found.type, found.secret, found.digits, found.period) == ("alice", "totp", KEY, 6, 30)


def test_bitwarden_s_items_without_a_key_are_ignored() -> None:
    found = parsed("bitwarden", dumped(BITWARDEN))
    assert [(token.line, token.user) for token in found] == [
        (1, "alice@example.org"),
        (2, "bob"),
        (3, "carl"),
        (6, "erin"),
    ]
    assert found[-1].secret == KEY


def test_freeotp_s_key_may_be_base32() -> None:
    tokens = [{key: value for key, value in token.items() if key != "secret"} for token in FREEOTP["tokens"]]  # type: ignore[attr-defined]
    (found, *_) = parsed("freeotp", dumped(FREEOTP | {"tokens": [tokens[0] | {"secret_base32": "GEZDGNBVGY3TQOJQ"}]}))
    assert found.secret == KEY[:10]


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "yandex"},
        {"info": {"secret": "not base32!"}},
        {"info": {"secret": None}},
        {"info": {"secret": "GEZDGNBVGY3TQOJQ", "digits": 5}},
        {"info": {"secret": "GEZDGNBVGY3TQOJQ", "digits": [6]}},
        {"info": {"secret": "GEZDGNBVGY3TQOJQ", "algo": "MD5"}},
        {"info": {"secret": "GEZDGNBVGY3TQOJQ", "period": 0}},
        {"type": "hotp", "info": {"secret": "GEZDGNBVGY3TQOJQ", "counter": -1}},
    ],
)
def test_an_entry_that_cannot_be_used_is_skipped(changes: dict[str, Any]) -> None:
    entries = [AEGIS["entries"][0], AEGIS["entries"][0] | changes, AEGIS["entries"][1]]
    found = parsed("aegis", dumped({"header": {}, "db": {"entries": entries}}))
    assert [token.unsupported is None for token in found] == [True, False, True]
    assert "GEZDGNBV" not in str(found[1].unsupported)


def test_errors_in_a_backup_name_the_number_of_the_entry() -> None:
    from tests.formats.test_import_tokens import OPTIONS

    for name, (data, *_) in BACKUPS.items():
        assert FORMATS[name].parse(data, OPTIONS).unit == "entry"


@pytest.mark.parametrize("name", BACKUPS)
@pytest.mark.parametrize(
    "damage", ["{}", "[]", "[1]", "1", '{"items": 3, "encrypted": 0}', "[" * 9000, '{"db": 1', "\xff"]
)
def test_a_damaged_backup_is_refused(name: str, damage: str) -> None:
    if name == "andotp" and damage == "[]":
        assert parsed(name, b"[]") == []
        return
    with pytest.raises(FormatError):
        parsed(name, damage.encode("latin-1"))


def test_an_encrypted_backup_is_refused_with_the_remedy() -> None:
    for name, document in (
        ("2fas", TWOFAS | {"services": [], "servicesEncrypted": "AAAA:BBBB:CCCC"}),
        ("bitwarden", {"encrypted": True, "passwordProtected": True, "salt": "x", "data": "2.x"}),
    ):
        data = dumped(document)
        assert sniff(data) == name
        with pytest.raises(FormatError, match=r"it is encrypted \(export it from the app without a password\)"):
            parsed(name, data)


def test_an_encrypted_backup_of_aegis_needs_its_password() -> None:
    data = aegis_encrypted()
    with pytest.raises(FormatError, match="a password is required"):
        parsed("aegis", data)
    with pytest.raises(FormatError, match="wrong password, or the file was changed"):
        parsed("aegis", data, ask_secret=lambda what: "wrong")
    document = json.loads(data)
    document["header"]["params"]["tag"] = "00" * 16
    with pytest.raises(FormatError, match="wrong password, or the file was changed"):
        parsed("aegis", dumped(document), ask_secret=ask)
    document["header"]["slots"].pop()
    with pytest.raises(FormatError, match="cannot be decrypted: it has no password"):
        parsed("aegis", dumped(document), ask_secret=ask)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 1 << 40), ("r", 1 << 40), ("p", 1 << 40), ("n", 3), ("n", 0), ("n", True), ("salt", "x"), ("key", "0")],
)
def test_the_cost_of_a_damaged_aegis_backup_is_bounded(field: str, value: object) -> None:
    document = json.loads(aegis_encrypted())
    document["header"]["slots"][1][field] = value
    with pytest.raises(FormatError, match=r"scrypt must need at most 256 MiB|damaged"):
        parsed("aegis", dumped(document), ask_secret=ask)


def test_an_encrypted_backup_of_aegis_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    FORMATS["aegis"].load()
    with pytest.raises(ImportError):
        parsed("aegis", aegis_encrypted(), ask_secret=ask)
    assert parsed("aegis", BACKUPS["aegis"][0])[0].secret == KEY


SPACED = " ".join(base32(KEY)[i : i + 4] for i in range(0, 32, 4)).lower()
LONG = bytes(range(102))  # 164 letters of base32
REPORTED: dict[str, tuple[str, object, list[tuple[str, bytes]]]] = {  # format, file, users and keys
    "Bubka/2FAuth 277, beemdevelopment/Aegis 1572": (
        "2fas",
        {
            "services": [
                {"name": "Host", "secret": SPACED, "otp": {"account": "alice", "source": "Link"}},
                {"name": "bob", "secret": base32(KEY), "otp": {}},
            ],
            "schemaVersion": 4,
        },
        [("alice", KEY), ("bob", KEY)],
    ),
    "bitwarden/ios 1417, stratumauth/app 97": (
        "bitwarden",
        {
            "encrypted": False,
            "items": [
                {"type": 2, "name": "note", "login": None, "secureNote": {"type": 0}},
                {"type": 3, "name": "card", "card": {"brand": "Visa"}},
                {"type": 1, "name": "x", "login": {"username": "alice", "totp": SPACED, "uris": None}},
                {"type": 1, "name": "y", "login": {"username": "bob", "totp": base32(LONG)}},
            ],
        },
        [("alice", KEY), ("bob", LONG)],
    ),
    "paolostivanin/OTPClient 369": (
        "aegis",
        {"header": {}, "db": {"entries": [{"type": "totp", "name": "al\0ice", "info": {"secret": base32(KEY)}}]}},
        [("al\0ice", KEY)],
    ),
    "beemdevelopment/Aegis 1605": (
        "freeotp",
        {"tokens": [{"label": "alice", "secret_base32": base32(KEY), "type": "TOTP"}], "tokenOrder": []},
        [("alice", KEY)],
    ),
}


@pytest.mark.parametrize(("name", "document", "expected"), REPORTED.values(), ids=REPORTED.keys())
def test_a_backup_that_other_programs_refused_is_read(
    name: str, document: object, expected: list[tuple[str, bytes]]
) -> None:
    data = dumped(document)
    assert sniff(data) == name
    found = parsed(name, data)
    assert [(token.user, token.secret, token.unsupported) for token in found] == [(*each, None) for each in expected]
