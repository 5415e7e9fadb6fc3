"""The file store: a folder with a file `<user>.record` for each user.

Rules:
1. An update acquires the lock, reads, decides, writes durably and returns, in this order.
2. A login overwrites existing blocks, for every user name and every outcome. On a full disk, users can log in, and
   errors do not reveal enrolled names or right codes.
3. The lock of a user is a byte of the file `.lock`. The process releases the lock before a prompt.
4. The update for an unknown user also acquires a lock, and overwrites a decoy.
5. The folder has mode 0700, and each file has mode 0600. The account of this process owns the folder and the files.
6. Every user name has one file name, and every file name belongs to one user name.
7. A file `<user>.json` has version 1. The first update writes `<user>.record`, then empties `<user>.json`. A service of
   version 1 that still runs reads the empty file as damaged, and denies the login. `nullok` would accept the login if
   the file did not exist. An update also acquires the lock of version 1 while the file has content.
8. A change of tokens or recovery codes writes both slots, so that the file contains no removed key.
9. The token with a serial number belongs to one user only: the folder `.serial` has a claim for each serial number
   (`claims`).
"""

from __future__ import annotations

import os
import stat
import time

from pam_totp.core.lean import TYPE_CHECKING, contextmanager, suppress
from pam_totp.core.record import RecordError, UserRecord
from pam_totp.core.secretfile import MAX_FILE, parse, serialize
from pam_totp.core.slots import Slots, new_file, slot_size
from pam_totp.store import DamagedFile, NotThere, StoreError, decoys
from pam_totp.store.byte_lock import KeptLock, acquire, acquire_as_version_1
from pam_totp.store.seal_key import require_current
from pam_totp.store.secret_file import LastRead, create, empty_file, exists, has_content, read, unlink, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from pam_totp.store import Codec, R

LOCK_WAIT = 5.0  # seconds
LOCK = ".lock"  # the lock file
_SILENCE = 60.0  # seconds
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@-"
_MAX_NAME = 245  # bytes: NAME_MAX minus the prefixes and suffixes of both versions
_SUFFIX, _SUFFIX_1 = ".record", ".json"  # the suffixes of version 2 and version 1
JOURNAL = ".import"  # the folder that `journal` manages


def file_name(user: str) -> str:
    """Return the user name as a file name: a leading dot and all bytes except A-Z a-z 0-9 . _ @ - become %XX.

    Raise StoreError for a name that is empty, too long, or not decoded from bytes: two such names could share a file.
    """
    try:
        raw = user.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raw = b""
    if raw.decode("utf-8", "surrogateescape") != user:
        raise StoreError("the user name must be text")
    if raw.translate(None, _PLAIN) or raw[:1] == b".":
        name = "".join(chr(b) if b in _PLAIN and not (i == 0 and b == 0x2E) else f"%{b:02X}" for i, b in enumerate(raw))
    else:
        name = user
    if not name or len(name) > _MAX_NAME:
        raise StoreError(f"the user name must be 1 to {_MAX_NAME} bytes as a file name")
    return name


def user_of_file(name: str) -> str:
    """Return the user with the record in the file `name`, of either version."""
    from urllib.parse import unquote_to_bytes  # imported here because logins do not need it

    return unquote_to_bytes(name.rpartition(".")[0]).decode("utf-8", "surrogateescape")


class Warnings:
    """A writer of warnings to the system log: at most one per minute, so that many logins cannot fill the log."""

    def __init__(self) -> None:
        self._silent_until = 0.0  # monotonic seconds

    def __call__(self, problem: str) -> None:
        import syslog  # imported here because most processes log no warning

        if time.monotonic() >= self._silent_until:
            self._silent_until = time.monotonic() + _SILENCE
            syslog.openlog("pam_totp", syslog.LOG_PID, syslog.LOG_AUTHPRIV)
            syslog.syslog(syslog.LOG_AUTHPRIV | syslog.LOG_WARNING, f"pam_totp(store): {problem}")


to_syslog = Warnings()


class FileStore:
    """The store in `folder`, an absolute path. The methods of `Store` open, check and close the folder.

    `lock_wait` is in seconds. The store passes to `warn` each problem that does not stop a login. The stores of one
    login share `last`. `codec` seals the secrets. Only this package calls the methods with a parameter `folder`.
    """

    def __init__(
        self,
        folder: str,
        lock_wait: float = LOCK_WAIT,
        warn: Callable[[str], None] = to_syslog,
        last: LastRead | None = None,
        codec: Codec | None = None,
    ) -> None:
        self.folder = folder
        self.codec = codec
        self._lock_wait = lock_wait
        self.warn = warn
        self._last = LastRead() if last is None else last

    def read(self, user: str) -> UserRecord:
        name = self.file_of(user)
        with self.opened() as folder:
            stored = self.peek(folder, name)
            if stored is None:
                raise NotThere
            return self._parse(stored, user, name)

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        name = self.file_of(user)
        with self.opened() as folder:
            if not create:
                self._require(folder, name)  # for an unknown user, `update_decoy` acquires the lock
            with self.locked(folder, name):
                stored = self.load(folder, name)
                if stored is None and not create:
                    raise NotThere
                old = UserRecord(user=user) if stored is None else self._parse(stored, user, name)
                new, result = change(old)
                if new is None:
                    with self._claims(folder, name, old, UserRecord(user=user)):
                        self.remove(folder, name)
                        os.fsync(folder)
                elif stored is None or not stored.size or (new is not old and new != old):
                    with self._claims(folder, name, old, new):
                        self.put(folder, name, stored, old, new)
                elif decoy:
                    self._use_decoy(folder)
                return result

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        with self.opened() as folder, self.locked(folder, self.file_of(user)):
            search()
            self._use_decoy(folder)

    def documents(self) -> Iterator[bytes]:
        """Yield the documents of all records, with their secrets as they are stored, and of both slots of a file.

        Raise StoreError for a damaged file.
        """
        for user in self.users():
            name = self.file_of(user)
            with self.opened() as folder:
                stored = self.peek(folder, name)
            if stored is not None:
                yield stored.document + (stored.other or b"")

    def users(self) -> Iterator[str]:
        with self.opened() as folder, os.scandir(folder) as entries:
            for entry in entries:
                stem, dot, suffix = entry.name.rpartition(".")
                if not stem or stem.startswith("."):
                    continue
                if dot + suffix == _SUFFIX or (dot + suffix == _SUFFIX_1 and not exists(folder, stem + _SUFFIX)):
                    yield user_of_file(entry.name)

    def owner_of_serial(self, serial: str) -> str | None:
        from pam_totp.store import claims  # imported here because logins do not need it

        with self.opened() as folder:
            return claims.owner(self, folder, serial)

    def prepare(self) -> None:
        """Create the lock file, and each decoy that is missing or damaged."""
        with self.opened() as folder:
            self._prepare(folder)

    def file_of(self, user: str) -> str:
        """Return the name of the user's file in the folder. Raise StoreError for an invalid user name."""
        return file_name(user) + _SUFFIX

    def temporary(self, name: str) -> str:
        """Return the name of the temporary file for `name`: it begins with a dot, unlike the file names of users."""
        return f".{name}"

    def peek(self, folder: int, name: str) -> Slots | None:
        """Return the slots of the file `name`, or None if it does not exist. The caller need not hold the lock."""
        try:
            return self.find(folder, name)
        except DamagedFile:  # another process might be writing the file
            with self.locked(folder, name):
                return self.load(folder, name)

    def load(self, folder: int, name: str) -> Slots | None:
        """Return the slots of the file `name`, or None if it does not exist. The caller holds the lock."""
        try:
            stored = self.find(folder, name)
        except DamagedFile:
            if not unlink(folder, self.temporary(name)):  # a killed process can leave a hard link of `name`
                raise
            stored = self.find(folder, name)
        if stored is not None and stored.other is None:
            self.warn(f"{self.folder}/{name}: a slot is damaged (the other slot is used)")
        return stored

    def put(
        self,
        folder: int,
        name: str,
        slots: Slots | None,
        old: UserRecord,
        new: UserRecord,
        *,
        document: bytes | None = None,
        durably: bool = True,
    ) -> None:
        """Replace the record `old`, which is in `slots`, by `new`. The caller has held the lock since `load`.

        `document` is the document of `new`, if the caller has it. The caller flushes the file of a new user if
        `durably` is False.
        """
        require_current(self.folder)
        document = document_of(new, name, self.codec) if document is None else document
        is_login = slots is not None and old.lasting == new.lasting
        if slots is not None and slots.size and is_login:
            while new.recent and not slots.has_room(document):  # a login must not enlarge a file
                new = new.without_oldest_recent()
                document = document_of(new, name, self.codec)
        if slots is not None and is_login and slots.has_room(document):
            if slots.other == b"":
                self._sweep(folder, name)
            write(folder, name, slots, document)
        elif slots is not None and slots.size >= slot_size(new, document):
            self._sweep(folder, name)
            write(folder, name, slots, document)
            write(folder, name, slots.after(document), document)
        else:
            over = slots is not None and exists(folder, name)
            content = new_file(document, slot_size(new, document), 1 if slots is None else slots.sequence + 1)
            create(folder, name, content, self.temporary(name), over=over, durably=durably or slots is not None)
            self._sweep(folder, name)
            self.require_decoys(folder)

    def seal_again(self, user: str) -> bool:
        """Seal the record of `user` with the current key, in both slots. Return False if that is not necessary.

        Raise NotThere. The store must have a codec.
        """
        assert self.codec is not None
        name = self.file_of(user)
        with self.opened() as folder, self.locked(folder, name):
            stored = self.load(folder, name)
            if stored is None:
                raise NotThere
            both = (stored.document, stored.other)
            if stored.size and all(each is not None and self.codec.is_current(each) for each in both):
                return False
            record = self._parse(stored, user, name)
            document = document_of(record, name, self.codec)
            if stored.size and stored.has_room(document):
                write(folder, name, stored, document)
                write(folder, name, stored.after(document), document)
            else:
                self.put(folder, name, stored, UserRecord(user=user), record, document=document)
            return True

    def create(self, folder: int, name: str, document: bytes, size: int) -> bool:
        """Create the file of a user without a record, with slots of `size` bytes. Return False if the user has a file.

        The caller holds the lock of `kept_lock`, and flushes the file afterwards.
        """
        require_current(self.folder)
        if exists(folder, self._version_1(name)):
            return False
        try:
            content = new_file(document, size)
            create(folder, name, content, self.temporary(name), durably=False)
        except FileExistsError:
            return False
        return True

    def require_decoys(self, folder: int) -> None:
        """Create the decoys, unless they exist. Ignore errors, because the first login of an unknown user logs them."""
        if not decoys.are_made(folder):
            with suppress(OSError, StoreError):
                self._prepare(folder)

    def has_version_1(self, folder: int) -> bool:
        """Return True if the folder has files of version 1, or temporary files."""
        with os.scandir(folder) as entries:
            return any(_may_be_version_1(entry.name) for entry in entries)

    def remove(self, folder: int, name: str) -> None:
        """Delete the file `name`. The caller holds the lock, and flushes the folder afterwards."""
        self._sweep(folder, name)
        unlink(folder, self._version_1(name))
        unlink(folder, name)

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Open and check the folder, and yield its descriptor. Raise StoreError for an OSError in the block."""
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._check_folder(os.fstat(folder))
                yield folder
            finally:
                os.close(folder)
        except OSError as e:
            raise StoreError(f"{self.folder}: {e.strerror}") from e

    def lock_of(self, folder: int, name: str, wait: float | None = None) -> int:
        """Lock the name of a claim or of a folder. Return a descriptor, whose closing releases the lock."""
        return acquire(folder, self._lock_name(), name, self._lock_wait if wait is None else wait)

    @contextmanager
    def locked(self, folder: int, name: str) -> Iterator[None]:
        """Hold the lock of the file `name`. Raise StoreError if the lock was not acquired within `lock_wait`."""
        locks = [acquire(folder, self._lock_name(), name, self._lock_wait)]
        try:
            if has_content(folder, self._version_1(name)):
                locks.append(acquire_as_version_1(folder, self._lock_of_version_1(name), name, self._lock_wait))
            yield
        finally:
            for lock in locks:
                os.close(lock)

    def kept_lock(self, folder: int) -> KeptLock:
        """Return the lock file, for new users of a folder without files of version 1 (`has_version_1`)."""
        return KeptLock(folder, self._lock_name(), self._lock_wait)

    def _check_folder(self, status: os.stat_result) -> None:
        if status.st_uid != os.geteuid():
            raise StoreError(f"{self.folder}: must be owned by uid {os.geteuid()}")
        if stat.S_IMODE(status.st_mode) & 0o777 != 0o700:
            raise StoreError(f"{self.folder}: its mode must be 0700")

    def find(self, folder: int, name: str, *, may_have_links: bool = False) -> Slots | None:
        """Read the file `name` without its lock, and return the slots, or None if the file does not exist. Raise
        DamagedFile, for example if another process is writing the file.

        A new file has two hard links for a moment (`secret_file.create`). Accept such a file if `may_have_links` is
        True. Try `name` twice, because another process might convert version 1 meanwhile.
        """
        for candidate in (name, self._version_1(name), name):
            with suppress(NotThere):
                return read(folder, candidate, may_have_links=may_have_links, last=self._last)
        return None

    def _parse(self, stored: Slots, user: str, name: str) -> UserRecord:
        last = self._last
        if stored is not last.slots or last.record is None or last.record.user != user:
            last.record = parse_record(stored.document, user, name, self.codec)
        return last.record

    def _claims(self, folder: int, name: str, old: UserRecord, new: UserRecord) -> AbstractContextManager[None]:
        """Return the context of a write of `new` in place of `old`.

        The context claims serial numbers, or raises SerialTaken.
        """
        before, after = [t.serial for t in old.tokens], [t.serial for t in new.tokens]
        if before == after or not any(before + after):
            return suppress()
        from pam_totp.store import claims  # imported here because logins do not need it

        return claims.moved(self, folder, name, claims.of_record(old), claims.of_record(new))

    def _use_decoy(self, folder: int) -> None:
        require_current(self.folder)
        if self.codec is not None:
            self.codec.exercise()
        if not decoys.use(folder):
            self.warn(f"{self.folder}/{decoys.FOLDER}: decoys are missing or damaged (run 'pam-totp doctor --repair')")

    def _require(self, folder: int, name: str) -> None:
        if not (exists(folder, name) or exists(folder, self._version_1(name)) or exists(folder, name)):
            raise NotThere

    def _sweep(self, folder: int, name: str) -> None:
        """Empty the file of version 1. Delete temporary files, and the lock file of version 1."""
        if self._version_1(name) != name:
            empty_file(folder, self._version_1(name))
        if sum(unlink(folder, leftover) for leftover in self._leftovers(name)):
            os.fsync(folder)

    def _prepare(self, folder: int) -> None:
        with self.locked(folder, decoys.FOLDER):
            decoys.make(folder)

    def _lock_name(self) -> str:
        return LOCK

    def _version_1(self, name: str) -> str:
        return name.removesuffix(_SUFFIX) + _SUFFIX_1

    def _lock_of_version_1(self, name: str) -> str:
        return f"{name.removesuffix(_SUFFIX)}.lock"

    def _leftovers(self, name: str) -> list[str]:
        stem = name.removesuffix(_SUFFIX)
        return [self.temporary(name), f".{stem}{_SUFFIX_1}.tmp", self._lock_of_version_1(name)]


def _short_enough(name: str, document: bytes) -> bytes:
    if len(document) > MAX_FILE:
        raise StoreError(f"{name}: the record must be at most {MAX_FILE} bytes")
    return document


def _may_be_version_1(name: str) -> bool:
    """Return True if `name` is a file of version 1, its lock file, or a temporary file."""
    is_temporary = name.startswith(".") and name.endswith(_SUFFIX)
    return is_temporary or (name != LOCK and name.endswith((_SUFFIX_1, ".lock", ".tmp")))


def document_of(record: UserRecord, name: str, codec: Codec | None = None) -> bytes:
    """Return the document of a record, sealed by `codec`. Raise StoreError if the document is larger than MAX_FILE."""
    document = serialize(record)
    return _short_enough(name, document if codec is None else codec.seal(document, record.user))


def parse_record(data: bytes, user: str, name: str, codec: Codec | None = None) -> UserRecord:
    """Return the record of `user` in the document `data`. Raise StoreError with a message that begins with `name`."""
    try:
        record = parse(data if codec is None else codec.open(data, user, name))
    except RecordError as e:
        raise StoreError(f"{name}: {e}") from None
    if record.user != user:
        raise StoreError(f"{name}: the field 'user' must match the file name")
    return record
