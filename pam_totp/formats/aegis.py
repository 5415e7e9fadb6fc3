"""Backups of the app Aegis, plain or encrypted with a password.

docs/vault.md in Aegis's repository describes the file: `header` has slots, and `db` has the entries. In an encrypted
file, `db` is AES-256-GCM in base64. Each slot of type 1 has the master key, encrypted with a key that scrypt derives
from the password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pam_totp.formats.app_backup import AppBackup, Entry, JsonObject, json_document
from pam_totp.formats.format import ParseOptions
from pam_totp.formats.parsing import FormatError

_PASSWORD_SLOT = 1
_KEY_SIZE = 32  # bytes
_MAX_MEMORY = 256 * 1024 * 1024  # bytes for scrypt: Aegis uses 32 MiB
_MAX_PARALLEL = 16  # scrypt's p: Aegis uses 1
_MARGIN = 1024 * 1024  # bytes that OpenSSL needs in addition to those of scrypt


class Aegis(AppBackup):
    """The file of Aegis's export as JSON."""

    name = "aegis"
    app = "Aegis"
    package = "cryptography"  # for an encrypted file only
    has_secret = True
    members = ("header", "db")

    def load(self) -> None:
        with suppress(ImportError):
            from cryptography.hazmat.primitives.ciphers import aead  # noqa: F401  an optional package

    def entries(self, document: Any, options: ParseOptions) -> Iterator[Entry]:
        """Yield the entries. Raise ImportError for an encrypted file without the package `cryptography`."""
        content = document["db"]
        if isinstance(content, str):
            content = json_document(_decrypted(document["header"], content, options))
        for number, entry in enumerate(content["entries"], 1):
            info = entry["info"]
            yield Entry(
                number=number,
                kind=entry["type"],
                secret=info["secret"],
                label=entry.get("name"),
                algorithm=info.get("algo"),
                digits=info.get("digits"),
                period=info.get("period"),
                counter=info.get("counter"),
            )


def _decrypted(header: JsonObject, content: str, options: ParseOptions) -> bytes:
    """Return the decrypted `db`. Raise FormatError, or ImportError without `cryptography`."""
    from cryptography.exceptions import InvalidTag  # an optional package
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    slots = [slot for slot in header["slots"] if slot["type"] == _PASSWORD_SLOT]
    if not slots:
        what = "the backup cannot be decrypted: it has no password"
        raise FormatError(None, f"{what} (export it from the app again, with a password or plain)")
    if options.ask_secret is None:
        raise FormatError(None, "a password is required: the file is encrypted")
    password = options.ask_secret("password").encode("utf-8", "surrogateescape")
    try:
        ciphertext = base64.b64decode(content, validate=True)
        for slot in slots:
            with suppress(InvalidTag):
                master = _opened(AESGCM(_derived(password, slot)), slot["key_params"], bytes.fromhex(slot["key"]))
                return _opened(AESGCM(master), header["params"], ciphertext)
    except (binascii.Error, ValueError):
        raise FormatError(None, "the backup cannot be decrypted: the encrypted part is damaged") from None
    raise FormatError(None, "the backup cannot be decrypted: wrong password, or the file was changed")


def _derived(password: bytes, slot: JsonObject) -> bytes:
    n, r, p = slot["n"], slot["r"], slot["p"]
    if not all(type(number) is int and number > 0 for number in (n, r, p)):
        raise ValueError
    if 128 * n * r > _MAX_MEMORY or p > _MAX_PARALLEL:  # RFC 7914 2: scrypt needs 128 * n * r bytes
        limits = f"at most {_MAX_MEMORY // 1024 // 1024} MiB, with p of at most {_MAX_PARALLEL}"
        raise FormatError(None, f"the backup's scrypt must need {limits}")
    salt, maxmem = bytes.fromhex(slot["salt"]), 128 * r * (n + p) + _MARGIN
    return hashlib.scrypt(password, salt=salt, n=n, r=r, p=p, maxmem=maxmem, dklen=_KEY_SIZE)


def _opened(cipher: Any, params: JsonObject, ciphertext: bytes) -> bytes:
    opened: bytes = cipher.decrypt(bytes.fromhex(params["nonce"]), ciphertext + bytes.fromhex(params["tag"]), None)
    return opened
