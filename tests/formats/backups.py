"""Backups of phone apps with test keys, in the structure of the apps' files."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pam_totp.core.secretfile import base32
from tests.support.site import KEY

B32 = base32(KEY)
OTHER = bytes(range(200, 220))
PASSWORD = "correct horse"

AEGIS: dict[str, Any] = {
    "version": 3,
    "entries": [
        {
            "type": "totp",
            "uuid": "00000000-0000-4000-8000-000000000001",
            "name": "alice@example.org",
            "issuer": "Example",
            "note": 'a note with "header": {} and "services": []',
            "favorite": False,
            "icon": None,
            "info": {"secret": B32, "algo": "SHA256", "digits": 7, "period": 20},
            "groups": [],
        },
        {
            "type": "hotp",
            "uuid": "00000000-0000-4000-8000-000000000002",
            "name": "bob",
            "issuer": "",
            "icon": None,
            "info": {"secret": base32(OTHER), "algo": "SHA1", "digits": 6, "counter": 50},
        },
        {
            "type": "steam",
            "uuid": "00000000-0000-4000-8000-000000000003",
            "name": "carl",
            "issuer": "Steam",
            "icon": None,
            "info": {"secret": B32, "algo": "SHA1", "digits": 5, "period": 30},
        },
    ],
}


def dumped(document: object, **options: Any) -> bytes:
    return json.dumps(document, **options).encode()


def aegis_encrypted(password: str = PASSWORD, n: int = 1024) -> bytes:
    """Return a backup of Aegis with a biometric slot and a password slot. The app uses `n` = 32768."""
    master, nonce, salt = bytes(range(32)), b"n" * 12, b"s" * 32
    derived = hashlib.scrypt(password.encode(), salt=salt, n=n, r=8, p=1, maxmem=1 << 28, dklen=32)

    def sealed(key: bytes, content: bytes) -> tuple[bytes, dict[str, str]]:
        whole = AESGCM(key).encrypt(nonce, content, None)
        return whole[:-16], {"nonce": nonce.hex(), "tag": whole[-16:].hex()}

    wrapped, key_params = sealed(derived, master)
    content, params = sealed(master, dumped(AEGIS))
    slots = [
        {"type": 2, "uuid": "1", "key": wrapped.hex(), "key_params": key_params},
        {"type": 1, "uuid": "2", "key": wrapped.hex(), "key_params": key_params}
        | {"n": n, "r": 8, "p": 1, "salt": salt.hex(), "repaired": True, "is_backup": False},
    ]
    header = {"slots": slots, "params": params}
    return dumped({"version": 1, "header": header, "db": base64.b64encode(content).decode()}, indent=4)


def _andotp(kind: str, label: str, **fields: Any) -> dict[str, Any]:
    common = {"secret": f"{B32}======", "issuer": "Example", "label": label, "digits": 6, "type": kind}
    return common | {"algorithm": "SHA1", "thumbnail": "Default", "last_used": 1608146844162, "tags": []} | fields


ANDOTP = [
    _andotp("TOTP", "Example:alice@example.org", algorithm="SHA256", digits=7, period=20),
    _andotp("HOTP", "bob", secret=base32(OTHER), counter=50),
    _andotp("STEAM", "carl", digits=5),
]


def _freeotp(kind: str, label: str, key: bytes, **fields: Any) -> dict[str, Any]:
    signed = [octet - 256 if octet > 127 else octet for octet in key]
    common = {"algo": "SHA1", "counter": 0, "digits": 6, "issuerExt": "Example", "issuerInt": "Example"}
    return common | {"label": label, "period": 30, "secret": signed, "type": kind} | fields


FREEOTP = {
    "tokenOrder": ["Example:alice@example.org", "Example:bob"],
    "tokens": [
        _freeotp("TOTP", "alice@example.org", KEY, algo="SHA256", digits=7, period=20),
        _freeotp("HOTP", "bob", OTHER, counter=49),
        _freeotp("TOTP", "carl", KEY, digits=5),
    ],
}


def _twofas(label: str, key: bytes, **fields: Any) -> dict[str, Any]:
    otp = {
        "label": f"Example:{label}",
        "account": label,
        "issuer": "Example",
        "digits": 6,
        "algorithm": "SHA1",
    } | fields
    return {"name": "Example", "secret": base32(key), "updatedAt": 1702934567518, "otp": otp, "order": {"position": 0}}


TWOFAS: dict[str, Any] = {
    "services": [
        _twofas("alice@example.org", KEY, algorithm="SHA256", digits=7, period=20, tokenType="TOTP"),
        _twofas("bob", OTHER, counter=50, tokenType="HOTP"),
        _twofas("carl", KEY, digits=5, tokenType="STEAM"),
    ],
    "groups": [],
    "updatedAt": 1702934732299,
    "schemaVersion": 4,
    "appVersionCode": 5000009,
    "appOrigin": "android",
}
TWOFAS_OLD = {
    "appOrigin": "android",
    "schemaVersion": 1,
    "services": [
        {"name": "Example", "otp": {"account": "alice", "issuer": "Example"}, "secret": B32, "type": "Unknown"},
    ],
}


def _bitwarden(totp: str | None, username: str | None = None) -> dict[str, Any]:
    login = {"uris": None, "username": username, "password": "a password", "totp": totp}
    return {"id": "1", "folderId": None, "type": 1, "name": "Example", "notes": None, "login": login}


BITWARDEN: dict[str, Any] = {
    "encrypted": False,
    "folders": [],
    "items": [
        _bitwarden(f"otpauth://totp/Example:alice@example.org?secret={B32}&algorithm=SHA256&digits=7&period=20"),
        _bitwarden(f"otpauth://hotp/?secret={base32(OTHER)}&counter=50", "bob"),
        _bitwarden(f"steam://{B32}", "carl"),
        _bitwarden(None, "dora"),
        {"id": "2", "type": 2, "name": "a note", "notes": "", "secureNote": {"type": 0}},
        _bitwarden(B32.lower(), "erin"),
    ],
}

BACKUPS = {
    "aegis": [
        dumped({"version": 1, "header": {"slots": None, "params": None}, "db": AEGIS}, indent=4),
        aegis_encrypted(),
    ],
    "andotp": [dumped(ANDOTP)],
    "freeotp": [dumped(FREEOTP)],
    "2fas": [dumped(TWOFAS), dumped(TWOFAS_OLD, indent=2)],
    "bitwarden": [dumped(BITWARDEN, indent=2)],
}
