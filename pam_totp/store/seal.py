"""The seal: the encryption of the secrets in a document with AES-256-GCM (NIST SP 800-38D).

Rules:
1. The keys of tokens and the picture of a ticket, which shows a key, are sealed. The rest of a document remains
   readable. Recovery codes, tickets and temporary codes have 80 random bits, and the document has only their salted
   digests.
2. A sealed text is bound to the format, to the kind of the secret, to its owner, and to the creation of the token. The
   owner is a user name, or a serial number in stock. A secret in another user's record cannot be decrypted. The name of
   a token is not bound, because the user may rename the token.
3. A secret has one sealed text for each key, so a document has one encoding, and a login that changes only counters
   keeps the text. The nonce is derived from the bound data and from the secret (as in RFC 8452). Two different secrets
   have different nonces, even if the process lacks randomness.
4. A login never makes a document longer, because all sealed texts of a secret have the same length.
5. An error names the document and the field, and never shows a secret.
"""

from __future__ import annotations

from binascii import Error, a2b_base64, b2a_base64
from collections.abc import Callable, Iterator
from hmac import compare_digest, digest
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from pam_totp.core.secretfile import SEALED, base32, unbase32
from pam_totp.store import StoreError
from pam_totp.store.keyring import FORMAT, Keyring, State, derived, key_id

_MARK = SEALED.encode("ascii")
_NONCE, _ID = 12, 8  # bytes of the nonce, characters of the identifier of a key
_SECRET, _PICTURE, _CREATED = b'\n   "secret": "', b'\n  "picture": "', b'\n   "created": '
_WORK = b'{\n   "secret": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ",\n   "created": 0,\n}'  # the key of RFC 4226 appendix D


class _Key(NamedTuple):
    """A key, and the two keys that are derived from it."""

    id: bytes
    cipher: AESGCM
    nonces: bytes

    @staticmethod
    def of(key: bytes) -> _Key:
        return _Key(key_id(key).encode("ascii"), AESGCM(derived(key, b"aes-256-gcm")), derived(key, b"nonce"))


class Sealer:
    """The seal of a store in the state `state`, with the keys of `keyring`. The class implements `Codec`."""

    def __init__(self, keyring: Keyring, state: State = State.SEALED) -> None:
        keys = [_Key.of(key) for key in keyring.keys]
        self._current, self._keys = keys[0], {key.id: key for key in keys}
        self._state = state

    def open(self, document: bytes, owner: str, source: str) -> bytes:
        return _changed(document, lambda secret: self._opened(secret, owner, source))

    def seal(self, document: bytes, owner: str) -> bytes:
        if self._state is State.OPENING:
            return document
        return _changed(document, lambda secret: self._sealed(secret, owner))

    def is_current(self, document: bytes) -> bool:
        prefix = _MARK + self._current.id + b":"
        return all(secret.text.startswith(prefix) for secret in _secrets(document))

    def exercise(self) -> None:
        self.open(self.seal(_WORK, ""), "", "")

    def _sealed(self, secret: _Secret, owner: str) -> bytes:
        return _MARK + self._current.id + b":" + _text(self._current, _bound(secret, owner), secret.content())

    def _opened(self, secret: _Secret, owner: str, source: str) -> bytes:
        if not secret.text.startswith(_MARK):
            if self._state is not State.SEALED:
                return secret.text
            raise StoreError(f"{source}: {secret.where}: must be sealed (see 'pam-totp seal --help')")
        identifier, _, text = secret.text[len(_MARK) :].partition(b":")
        key = self._keys.get(identifier)
        if key is None:
            which = identifier[:_ID].decode("ascii", "replace")
            remedy = "see 'pam-totp seal status'"
            raise StoreError(f"{source}: {secret.where}: is sealed with the key {which}, which is missing ({remedy})")
        bound = _bound(secret, owner)
        try:
            sealed = a2b_base64(text, strict_mode=True)
            content = key.cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], bound)
        except (InvalidTag, Error, ValueError):
            content = None
        if content is None or not compare_digest(text, _text(key, bound, content)):  # rule 3
            raise StoreError(f"{source}: {secret.where}: was sealed for another user or token, or is damaged")
        return secret.restored(content)


def key_ids(document: bytes) -> Iterator[str | None]:
    """Yield the identifier of the key of each secret in a document, or None for a secret that is not sealed."""
    for secret in _secrets(document):
        is_sealed = secret.text.startswith(_MARK)
        rest = secret.text[len(_MARK) :].partition(b":")[0]
        yield rest[:_ID].decode("ascii", "replace") if is_sealed else None


class _Secret(NamedTuple):
    """A secret in a document: its text there, the path of its field, and its creation (empty for a picture)."""

    text: bytes
    where: str
    created: bytes

    def content(self) -> bytes:
        """Return the content to seal: the raw key, or the text of the picture."""
        return unbase32(self.text.decode("ascii")) if self.created else self.text

    def restored(self, content: bytes) -> bytes:
        """Return the text in a document for the parameter `content`. The method `content` does the reverse."""
        return base32(content).encode("ascii") if self.created else content


def _bound(secret: _Secret, owner: str) -> bytes:
    kind = b"token" if secret.created else b"picture"
    return b"\0".join((FORMAT.encode("ascii"), kind, owner.encode("utf-8", "surrogateescape"), secret.created))


def _text(key: _Key, bound: bytes, content: bytes) -> bytes:
    """Return the sealed text of a secret, in base64."""
    nonce = digest(key.nonces, len(bound).to_bytes(8, "big") + bound + content, "sha256")[:_NONCE]
    return b2a_base64(nonce + key.cipher.encrypt(nonce, content, bound), newline=False)


def _secrets(document: bytes) -> list[_Secret]:
    """Return the secrets of a document, in order. No value in a document contains a line end."""
    created = [_line(part) for part in document.split(_CREATED)[1:]]
    texts = [_line(part) for part in document.split(_SECRET)[1:]]
    created += [b"-"] * (len(texts) - len(created))  # the parser refuses such a document
    pairs = enumerate(zip(texts, created, strict=False))
    tokens = [_Secret(text, f"tokens[{i}].secret", since or b"-") for i, (text, since) in pairs]
    pictures = [_line(part) for part in document.split(_PICTURE)[1:]]
    return tokens + [_Secret(text, "ticket.picture", b"") for text in pictures]


def _line(part: bytes) -> bytes:
    """Return the value at the start of `part`, without the comma and the quotation mark after the value."""
    return part.partition(b"\n")[0].removesuffix(b",").removesuffix(b'"')


def _changed(document: bytes, change: Callable[[_Secret], bytes]) -> bytes:
    """Return the document with the text of each secret replaced by the result of `change`."""
    secrets = _secrets(document)
    for mark, some in ((_SECRET, [s for s in secrets if s.created]), (_PICTURE, [s for s in secrets if not s.created])):
        first, *parts = document.split(mark)
        pieces = [first]
        for secret, part in zip(some, parts, strict=True):
            pieces += [mark, change(secret), part[len(secret.text) :]]
        document = b"".join(pieces)
    return document
