"""The keyring of this host: the keys that seal its stores, and the search for the keyring.

Rules:
1. The keyring is the first of: the credential `seal` that systemd gives a service, the file `/etc/pam_totp/seal`, the
   file `/etc/pam_totp/seal.cred`. systemd-creds decrypts `seal.cred` with the key of the host or of its TPM2.
2. Only root can read the two files. A process calls `hold` as root, before it changes to another account. The process
   then has a descriptor of the keyring, and no other right.
3. A process loads cryptography and `keyring` only if this host has a keyring. Otherwise, no store is sealed.
4. A process that cannot read the keyring of a sealed store refuses to read or write a record with a secret
   (`MissingKey`). The file `/etc/pam_totp/seal.json`, which every account can read, names the sealed stores.
5. A process reads the keyring once. The commands of `pam-totp seal` restart the services. A process whose keyring is
   older than the note writes no record (`require_current`), because only that process could open the record.
"""

from __future__ import annotations

import os
import stat
import sys

from pam_totp.core.lean import TYPE_CHECKING, suppress
from pam_totp.core.secretfile import SEALED
from pam_totp.core.slots import MAX_SLOT
from pam_totp.store import StoreError

if TYPE_CHECKING:
    from types import ModuleType

    from pam_totp.store import Codec
    from pam_totp.store.keyring import Keyring, State

NAME = "seal"  # the name of the credential
FOLDER = "/etc/pam_totp"
FILE, CREDENTIAL, NOTE = f"{FOLDER}/seal", f"{FOLDER}/seal.cred", f"{FOLDER}/seal.json"
CREDENTIALS = "CREDENTIALS_DIRECTORY"  # the environment variable of systemd.exec(5)
DECRYPT = "/usr/bin/systemd-creds"
_SOME = 20  # records of a copied folder that are examined
NO_KEY = "is sealed, and this process has no key (see 'pam-totp seal status')"
_MAX_REASON = 4096  # bytes of the errors of systemd-creds
_UNREADABLE = "is sealed, and the key cannot be read: {0}"
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TREE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The folders of optional packages, as in the installed commands. The helper starts without these folders.
_PACKAGES = (
    f"{_TREE}-extras/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages",
    "/usr/lib/python3/dist-packages",
)


class MissingKey:
    """The codec of a sealed store for a process without the keyring. The codec refuses each document with a secret."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    def open(self, document: bytes, owner: str, source: str) -> bytes:
        if b'\n   "secret": "' in document:
            raise StoreError(f"{source}: {self._problem}")
        return document

    def seal(self, document: bytes, owner: str) -> bytes:
        return self.open(document, owner, "a new secret")

    def is_current(self, document: bytes) -> bool:
        return SEALED.encode("ascii") not in document

    def exercise(self) -> None:
        """Raise StoreError: an unknown user is refused like an enrolled user."""
        raise StoreError(self._problem)


class _Process:
    """The keyring of this process: its descriptor, then its content and the codecs by the states of stores."""

    descriptor: int | None = None
    is_read = False
    keyring: Keyring | None = None
    problem: str | None = None  # the reason if the keyring cannot be read
    noted_at: tuple[int, int] | None = None  # the inode and the time of the note when the keyring was read
    codecs: dict[State, Codec]


_process = _Process()
_process.codecs = {}


def hold() -> None:
    """As root, open the keyring, and load cryptography, for `codec_of` after the change to another account."""
    if _process.is_read or _process.descriptor is not None or os.geteuid() != 0:
        return
    try:
        _process.descriptor = _descriptor()
    except StoreError as e:
        _process.problem, _process.is_read = _UNREADABLE.format(e), True
    if _process.descriptor is not None:
        with suppress(StoreError):  # `codec_of` raises the error again
            sealer()


def codec_of(location: str) -> Codec | None:
    """Return the codec of the store at `location`, or None if the store is not sealed. Raise StoreError."""
    if not _process.is_read:
        _read()
    if _process.keyring is None:
        if _process.problem is None or not _is_noted(location):
            return None
        return MissingKey(_process.problem)
    state = _process.keyring.state_of(location)
    if state is not None and state not in _process.codecs:
        _process.codecs[state] = sealer().Sealer(_process.keyring, state)
    return None if state is None else _process.codecs[state]


def codec_of_copy(folder: str) -> Codec | None:
    """Return the codec of a folder with sealed records that the keyring does not name, such as a restored backup.

    Return None if no sealed record is among the first records of the folder. Skip a file that cannot be read, because
    the use of the file reports the error. Raise StoreError.
    """
    from itertools import islice

    with suppress(OSError), os.scandir(folder) as entries:
        names = (entry.name for entry in entries if entry.name.endswith(".record") and not entry.name.startswith("."))
        for name in islice(names, _SOME):
            content = b""
            with suppress(OSError), open(os.open(os.path.join(folder, name), _FLAGS), "rb") as file:
                content = file.read(2 * MAX_SLOT)
            if (codec := codec_of_document(content)) is not None:
                return codec
    return None


def codec_of_document(content: bytes) -> Codec | None:
    """Return the codec for the `content` of a file, in a store that the keyring does not name. Raise StoreError.

    Return None if `content` has no sealed secret.

    The codec accepts sealed secrets only: otherwise the next change would seal a key that an attacker put into a
    backup.
    """
    if b'"secret": "' + SEALED.encode("ascii") not in content:
        return None
    if not _process.is_read:
        _read()
    if _process.keyring is None:
        return MissingKey(NO_KEY)
    from pam_totp.store.keyring import State

    found: Codec = sealer().Sealer(_process.keyring, State.SEALED)
    return found


def require_current(location: str) -> None:
    """Raise StoreError if the keys have changed, so that no other process could open the records of this process."""
    if _process.is_read and _noted_at() != _process.noted_at and not _is_current(location):
        raise StoreError("the keys of the seal have changed (run the command again, or restart the service)")


def forget() -> None:
    """Discard the keyring of this process, so that the next use reads the changed keyring."""
    if _process.descriptor is not None:
        os.close(_process.descriptor)
    _process.descriptor, _process.is_read, _process.codecs = None, False, {}
    _process.problem = None


def keyring() -> Keyring | None:
    """Return the keyring of this host, or None. Raise StoreError if the keyring cannot be read."""
    descriptor = _descriptor()
    if descriptor is None:
        return None
    try:
        return _parsed(descriptor)
    finally:
        os.close(descriptor)


def sealer() -> ModuleType:
    """Return the module `seal`. Raise StoreError if cryptography is missing."""
    for path in (*_PACKAGES, None):
        try:
            from pam_totp.store import seal
        except ImportError as e:
            if path is None:
                raise StoreError(f"a sealed store needs cryptography: {str(e).splitlines()[0].lower()}") from None
            if path not in sys.path:
                sys.path.append(path)
        else:
            return seal
    raise AssertionError("the last path raises StoreError")


def _read() -> None:
    """Read the keyring. Other threads can call this function at the same time."""
    found, problem, noted_at = None, None, _noted_at()
    try:
        found = keyring() if _process.descriptor is None else _parsed(_process.descriptor)
        if found is None and os.path.exists(NOTE):
            problem = NO_KEY
    except StoreError as e:
        problem = _UNREADABLE.format(e)
    _process.keyring, _process.problem, _process.noted_at = found, problem, noted_at
    _process.is_read = True


def _parsed(descriptor: int) -> Keyring:
    from pam_totp.store.keyring import MAX_KEYRING, KeyringError, parse_keyring  # imported here because it loads hmac

    try:
        return parse_keyring(os.pread(descriptor, MAX_KEYRING + 1, 0))
    except KeyringError as e:
        raise StoreError(f"{FILE}: {e}") from None
    except OSError as e:
        raise StoreError(f"{FILE}: {e.strerror}") from None


def _descriptor() -> int | None:
    """Open the keyring, and return its descriptor, or None if there is no keyring that this process can read.

    Raise StoreError.
    """
    folder = os.environ.get(CREDENTIALS)
    if folder is not None:
        try:
            return os.open(f"{folder}/{NAME}", _FLAGS)
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as e:
            raise StoreError(f"{folder}/{NAME}: {e.strerror}") from None
    try:
        file = os.open(FILE, _FLAGS)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return _decrypted() if os.geteuid() == 0 and os.path.exists(CREDENTIAL) else None
    except OSError as e:
        raise StoreError(f"{FILE}: {e.strerror}") from None
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o077:
        os.close(file)
        raise StoreError(f"{FILE}: must be a regular file of root, which no other account can access")
    return file


def _decrypted() -> int:
    """Decrypt the keyring with systemd-creds, and return the descriptor of a memfd. Raise StoreError."""
    content, errors = os.memfd_create(NAME), os.memfd_create("errors")
    words = [DECRYPT, f"--name={NAME}", "decrypt", CREDENTIAL, "-"]
    actions = [(os.POSIX_SPAWN_DUP2, content, 1), (os.POSIX_SPAWN_DUP2, errors, 2)]
    try:
        child = os.posix_spawn(DECRYPT, words, {"PATH": "/usr/bin"}, file_actions=actions)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        lines = os.pread(errors, _MAX_REASON, 0).decode("utf-8", "replace").split("\n")
    except OSError as e:
        os.close(content)
        raise StoreError(f"{DECRYPT}: {e.strerror}") from None
    finally:
        os.close(errors)
    if status != 0:
        os.close(content)
        reason = f": {lines[-2]}" if len(lines) > 1 else ""
        raise StoreError(f"{CREDENTIAL}: systemd-creds cannot decrypt it on this host{reason}")
    return content


def _noted_at() -> tuple[int, int] | None:
    """Return the inode and the time of the note, or None without a note."""
    try:
        status = os.stat(NOTE)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _is_current(location: str) -> bool:
    """Return True if the note agrees with the keyring of this process about the store and the current key."""
    from pam_totp.store.keyring import key_id

    keyring = _process.keyring
    if keyring is None or keyring.state_of(location) is None:
        return not os.path.exists(NOTE) or not _is_noted(location)
    keys = _noted("keys")
    return keys is None or key_id(keyring.current) in keys


def _is_noted(location: str) -> bool:
    """Return True if the note names the store, or if the note cannot be read."""
    from pam_totp.store.keyring import is_same

    stores = _noted("stores")
    return stores is None or any(is_same(name, location) for name in stores)


def _noted(field: str) -> list[str] | None:
    """Return the list `field` of the note, or None if the note cannot be read."""
    import json  # imported here because logins do not need it

    try:
        with open(NOTE, encoding="utf-8", errors="surrogateescape") as file:
            return [str(item) for item in json.load(file)[field]]
    except (OSError, ValueError, TypeError, KeyError):
        return None
