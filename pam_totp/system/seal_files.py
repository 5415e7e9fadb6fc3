"""The files of the seal on this host: the keyring, the note, which every account can read, and the units' drop-ins.

Rules:
1. The file of the keyring is replaced durably, before a secret is sealed with a new key.
2. The note contains no key. It has the sealed stores, and the date and the digest of the last exported copy.
3. systemd gives the keyring to the services as a credential. The services lack root's privileges, and cannot read the
   file.
4. A command that changes these files reads and writes them in a block of `changing`. Two rotations at once would
   lose a key.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256

from pam_totp.store import StoreError, seal_key
from pam_totp.store.keyring import Keyring, KeyringError, State, key_id, parse_keyring, serialize_keyring
from pam_totp.system.extras import how_to_get
from pam_totp.system.sshd import SYSTEMD

__all__ = [
    "EXTRA",
    "HOW_TO_GET",
    "KEYRING",
    "PLACES",
    "Keyring",
    "Note",
    "State",
    "changing",
    "has_keyring",
    "key_id",
    "keyring",
    "lacks_key",
    "missing_drop_ins",
    "missing_library",
    "note",
    "note_export",
    "restart",
    "write",
]

KEYRING = seal_key.FILE
EXTRA = "seal"  # in setup.cfg
HOW_TO_GET = how_to_get("cryptography", EXTRA)
SOCKET = "pam_totp.socket"
UNITS = ("pam_totp.service", "pam_totp-authority.service", "pam_totp-portal.service")
DROP_IN = "/etc/systemd/system/{0}.d/10-pam_totp-seal.conf"
LOCK = f"{seal_key.FOLDER}/seal.lock"  # only root can open it
FILE, HOST, TPM2, HOST_AND_TPM2 = "file", "host", "tpm2", "host+tpm2"
PLACES = (FILE, HOST, TPM2, HOST_AND_TPM2)  # the readable file, or a credential encrypted with these keys
_TIMEOUT = 60.0  # seconds: a TPM2 may be slow


@dataclass(frozen=True, slots=True)
class Note:
    """The public facts: the sealed stores, the form of the stored keyring, and the last exported copy."""

    stores: tuple[str, ...] = ()
    place: str = FILE
    keys: tuple[str, ...] = ()
    exported: tuple[str, ...] = ()  # the identifiers of the keys in the copy
    exported_at: int | None = None
    digest: str | None = None  # the SHA-256 of the copy

    @property
    def is_exported(self) -> bool:
        """Return True if the last exported copy has all keys."""
        return bool(self.keys) and set(self.keys) <= set(self.exported)

    @property
    def exported_on(self) -> str:
        """Return the date of the last exported copy in UTC."""
        return time.strftime("%Y-%m-%d", time.gmtime(self.exported_at or 0))


def note() -> Note:
    """Return the note of this host, or an empty note if the file is missing or damaged."""
    try:
        with open(seal_key.NOTE, encoding="utf-8", errors="surrogateescape") as file:
            fields = json.load(file)
        for name in ("stores", "keys", "exported"):
            fields[name] = tuple(str(item) for item in fields[name])
        return Note(**fields)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Note()


def has_keyring() -> bool:
    """Return True if a file with the keyring exists."""
    return os.path.lexists(seal_key.FILE) or os.path.lexists(seal_key.CREDENTIAL)


def keyring() -> tuple[Keyring | None, str]:
    """Return the keyring, or None and the reason."""
    try:
        found = seal_key.keyring()
    except StoreError as e:
        return None, str(e)
    return found, f"{KEYRING}: not found"


def lacks_key(folder: str) -> bool:
    """Return True if the store in `folder` is sealed, and this process cannot read the keyring."""
    return folder in note().stores and keyring()[0] is None


def missing_library() -> str | None:
    """Return the reason if cryptography is missing, or None."""
    try:
        seal_key.sealer()
    except StoreError as e:
        return str(e)
    return None


@contextmanager
def changing() -> Iterator[None]:
    """Prevent changes of the files by other processes during a block. Raise StoreError during another change."""
    _make_folder()
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError("another command changes the keys of the seal (try again when it has ended)") from None
        yield
    finally:
        os.close(lock)


def write(keyring: Keyring, place: str | None = None) -> None:
    """Replace the keyring durably, then its note. Raise StoreError or OSError.

    `place` is one of PLACES; with None, the place is unchanged. This order is required: without the key, a store in
    the note refuses all records.
    """
    _require_readable(keyring)
    old = note()
    place = place or old.place
    ids = tuple(key_id(key) for key in keyring.keys)
    stores = tuple(name for name, _ in keyring.stores)
    _make_folder()
    content = serialize_keyring(keyring)
    path, other = seal_key.FILE, seal_key.CREDENTIAL
    if place != FILE:
        content, path, other = _encrypted(content, place), other, path
    _replace(path, content, 0o400)
    if os.path.lexists(other):
        os.unlink(other)
    _write_note(Note(stores, place, ids, old.exported, old.exported_at, old.digest))
    _flush(seal_key.FOLDER)
    seal_key.forget()
    _write_drop_ins(place)


def note_export(keyring: Keyring, content: bytes, now: int) -> None:
    """Write the time `now` (Unix seconds), the digest of the exported copy `content`, and the keys' ids to the note."""
    old, ids = note(), tuple(key_id(key) for key in keyring.keys)
    _write_note(Note(old.stores, old.place, old.keys, ids, now, sha256(content).hexdigest()))


def missing_drop_ins() -> list[str]:
    """Return the units that systemd would start without the keyring."""
    place = note().place
    return [unit for unit in UNITS if _content_of(DROP_IN.format(unit)) != _drop_in(place)]


def restart() -> bool:
    """Let systemd read its units again, and restart the services that run. Return True if all of these restarted.

    systemd starts no service without its credential, and stops the socket after some attempts. So start failed units.
    Return False if systemd does not run.
    """
    if not os.path.isdir(SYSTEMD):
        return False
    try:
        running = [unit for unit in UNITS if _systemctl("is-active", unit)]
        failed = [unit for unit in (SOCKET, *UNITS) if _systemctl("is-failed", unit)]
        done = _systemctl("daemon-reload") and (not running or _systemctl("try-restart", *running))
        if failed:
            _systemctl("reset-failed", *failed)
            done = _systemctl("start", *failed) and done
    except (OSError, subprocess.SubprocessError):
        return False
    return done


def _systemctl(*arguments: str) -> bool:
    """Return True if the command succeeds. Raise OSError or SubprocessError."""
    words = ["/usr/bin/systemctl", *arguments]
    return subprocess.run(words, capture_output=True, timeout=_TIMEOUT, check=False).returncode == 0


def _require_readable(keyring: Keyring) -> None:
    """Raise StoreError if no process could read this keyring: all users would be refused."""
    try:
        problem = None if parse_keyring(serialize_keyring(keyring)) == keyring else "a line end in its name"
    except KeyringError as e:
        problem = str(e)
    if problem is not None:
        raise StoreError(f"{keyring.stores[-1][0]!r} cannot be in the keyring: {problem}")


def _make_folder() -> None:
    """Create the folder of the keyring, which every account can enter to read the note, under any umask."""
    if not os.path.isdir(seal_key.FOLDER):
        os.makedirs(seal_key.FOLDER, 0o755, exist_ok=True)
        os.chmod(seal_key.FOLDER, 0o755)  # noqa: S103  only root's files in it have secrets


def _encrypted(content: bytes, place: str) -> bytes:
    words = [seal_key.DECRYPT, f"--with-key={place}", f"--name={seal_key.NAME}", "encrypt", "-", "-"]
    try:
        done = subprocess.run(words, input=content, capture_output=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.SubprocessError) as e:
        raise StoreError(f"{seal_key.DECRYPT}: {getattr(e, 'strerror', None) or 'no answer'}") from None
    if done.returncode != 0:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise StoreError(f"systemd-creds cannot encrypt with the key '{place}': {lines[-1] if lines else 'no reason'}")
    return done.stdout


def _write_note(new: Note) -> None:
    content = json.dumps(asdict(new), indent=1).encode("utf-8", "surrogateescape") + b"\n"
    _replace(seal_key.NOTE, content, 0o644)


def _write_drop_ins(place: str) -> None:
    for unit in UNITS:
        path, content = DROP_IN.format(unit), _drop_in(place)
        if _content_of(path) != content:
            os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
            _replace(path, content.encode("utf-8"), 0o644)


def _drop_in(place: str) -> str:
    path, option = (
        (seal_key.FILE, "LoadCredential") if place == FILE else (seal_key.CREDENTIAL, "LoadCredentialEncrypted")
    )
    return (
        f"# Written by pam-totp seal: the keys that seal the secrets of the store.\n[Service]\n{option}=seal:{path}\n"
    )


def _content_of(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def _replace(path: str, content: bytes, mode: int) -> None:
    temporary = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600), "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def _flush(folder: str) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
