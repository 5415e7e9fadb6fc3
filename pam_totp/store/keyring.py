"""The keyring: the keys that seal the secrets of a store, as the content of the file `/etc/pam_totp/seal`.

Rules:
1. The first line is the format. Each further line has a role and a key of 256 bits in base64.
2. The key with the role `key` seals, and all keys open. A rotation adds the next key (`next`) before this key seals a
   secret. The rotation keeps the previous key (`old`) while a secret is sealed with that key.
3. A line with a state names a store (`State`). The keys seal only these stores. All databases have the name
   `postgresql`, because the URL of a database can differ between hosts. A folder is the same store by every path that
   leads to it.
4. A key has an identifier, which reveals nothing about the key.
"""

from __future__ import annotations

import os
from binascii import Error, a2b_base64, b2a_base64
from hmac import digest

from pam_totp.core.fields import Rule, Value
from pam_totp.core.lean import TYPE_CHECKING, Enum
from pam_totp.core.settings import is_database

if TYPE_CHECKING:
    from typing import ClassVar

FORMAT = "pam_totp seal 1"
KEY_SIZE = 32  # bytes: AES-256
MAX_KEYRING = 4096  # bytes of the file
DATABASES = "postgresql"  # the name of all databases
_ROLES = {"key": "current", "next": "following", "old": "previous"}  # role in the file -> field


class State(Enum):
    """The state of a store. `pam-totp seal` seals secrets in steps, because several hosts can use the store."""

    OPENING = "opening"  # sealed secrets are readable, and no secret is sealed
    SEALING = "sealing"  # each write seals, and secrets that are not sealed are accepted
    SEALED = "sealed"  # only sealed secrets are accepted


_STATES = {state.value: state for state in (State.OPENING, State.SEALING, State.SEALED)}


class KeyringError(ValueError):
    """The error for an invalid keyring. The text contains no key."""


def name_of(location: str) -> str:
    """Return the name of a store in a keyring, for the path of a folder or the URL of a database."""
    return DATABASES if is_database(location) else os.path.normpath(location)


def is_same(name: str, location: str) -> bool:
    """Return True if `name` in a keyring means the store at `location`, also by another path of the folder."""
    if name == name_of(location):
        return True
    if DATABASES in (name, name_of(location)):
        return False
    try:
        return os.path.samefile(name, location)  # also through a symbolic link or a bind mount
    except OSError:
        return False


def _key(v: object) -> str | None:
    return None if type(v) is bytes and len(v) == KEY_SIZE else f"must be {KEY_SIZE} bytes"


def _key_or_none(v: object) -> str | None:
    return None if v is None else _key(v)


class Keyring(Value):
    """The keys: `current` seals. `following` is the next key, or None. `previous` is the last key before `current`, or
    None.
    """

    current: bytes
    following: bytes | None = None
    previous: bytes | None = None
    stores: tuple[tuple[str, State], ...] = ()

    ERROR = KeyringError
    RULES: ClassVar[dict[str, Rule]] = {
        "current": _key,
        "following": _key_or_none,
        "previous": _key_or_none,
    }

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Return all keys, the current key first."""
        return tuple(key for key in (self.current, self.following, self.previous) if key is not None)

    def with_following(self, key: bytes) -> Keyring:
        """Return the keyring with `key` as the next key."""
        return self._replace(following=key)

    def advanced(self) -> Keyring:
        """Return the keyring in which the next key seals."""
        assert self.following is not None
        return self._replace(current=self.following, following=None, previous=self.current)

    def without_previous(self) -> Keyring:
        return self._replace(previous=None)

    def state_of(self, location: str) -> State | None:
        """Return the state of the store at `location`, or None if the keyring does not seal this store."""
        states = dict(self.stores)
        if (state := states.get(name_of(location))) is not None:
            return state
        return next((state for name, state in self.stores if is_same(name, location)), None)

    def with_store(self, location: str, state: State) -> Keyring:
        """Return the keyring with the state `state` of the store at `location`."""
        name = next((name for name, _ in self.stores if is_same(name, location)), name_of(location))
        return self._replace(stores=tuple((dict(self.stores) | {name: state}).items()))

    def without_store(self, name: str) -> Keyring:
        """Return the keyring without the store `name`."""
        return self._replace(stores=tuple(item for item in self.stores if item[0] != name))

    def __repr__(self) -> str:
        return f"<keyring of {', '.join(key_id(key) for key in self.keys)}>"


def key_id(key: bytes) -> str:
    """Return the identifier of a key: 8 hexadecimal digits."""
    return derived(key, b"id").hex()[:8]


def derived(key: bytes, purpose: bytes) -> bytes:
    """Return a key of 256 bits for one purpose: HMAC-SHA256 as a pseudorandom function (NIST SP 800-108)."""
    return digest(key, FORMAT.encode("ascii") + b"\0" + purpose, "sha256")


def parse_keyring(data: bytes) -> Keyring:
    """Return the keyring that `data` encodes. Raise KeyringError."""
    if len(data) > MAX_KEYRING:
        raise KeyringError(f"must be at most {MAX_KEYRING} bytes")
    lines = data.decode("utf-8", "surrogateescape").split("\n")
    if lines[0] != FORMAT or lines.pop() != "":
        raise KeyringError(f"line 1: must be '{FORMAT}', and the last line must be complete")
    keys: dict[str, bytes] = {}
    stores: dict[str, State] = {}
    for number, line in enumerate(lines[1:], 2):
        word, _, rest = line.partition(" ")
        if word in _ROLES and _ROLES[word] not in keys:
            keys[_ROLES[word]] = _decoded(rest, number)
        elif word in _STATES and rest and rest not in stores:
            stores[rest] = _STATES[word]
        else:
            raise KeyringError(f"line {number}: must be a key or a store, each once")
    if "current" not in keys:
        raise KeyringError("must have a line 'key'")
    if len(set(keys.values())) < len(keys):
        raise KeyringError("must have different keys")
    return Keyring(current=keys.pop("current"), stores=tuple(stores.items()), **keys)


def _decoded(text: str, number: int) -> bytes:
    try:
        key = a2b_base64(text, strict_mode=True)
    except (Error, ValueError):
        key = b""
    if len(key) != KEY_SIZE:
        raise KeyringError(f"line {number}: the key must be {KEY_SIZE} bytes in base64")
    return key


def serialize_keyring(keyring: Keyring) -> bytes:
    """Return the content of a file with `keyring`."""
    keys = ((role, getattr(keyring, field)) for role, field in _ROLES.items())
    lines = [f"{role} {b2a_base64(key, newline=False).decode('ascii')}" for role, key in keys if key is not None]
    lines += [f"{state.value} {name}" for name, state in keyring.stores]
    return "\n".join([FORMAT, *lines, ""]).encode("utf-8", "surrogateescape")
