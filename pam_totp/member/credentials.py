"""The credentials of a member: its key, its certificate, and the certificate of the CA, in three files.

Rules:
1. The key has mode 0600, in a folder of mode 0700. The account of this process owns both.
2. Other accounts cannot write the certificates. Root or the account of this process owns them.
3. TLS is version 1.3. The member verifies the certificate and the name of each authority against its own CA file, never
   against the CAs of the system.
4. New files get their names in this order: the new key a temporary name, the certificates, the new key its final name.
   One of the two keys therefore always matches the certificate, even after a crash.
5. One process at a time replaces the files.
"""

from __future__ import annotations

import fcntl
import os
import signal
import ssl
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pam_totp.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pam_totp.core.settings import MemberSettings

NEXT = ".next"  # the suffix of a new file until it replaces the old file

Version = tuple[tuple[int, ...], ...]  # of the files


class Credentials:
    """The files of a member."""

    def __init__(self, certificate: str, key: str, ca: str) -> None:
        self.certificate, self.key, self.ca = certificate, key, ca

    @classmethod
    def of(cls, settings: MemberSettings) -> Credentials:
        return cls(settings.certificate, settings.key, settings.ca)

    def version(self) -> Version:
        """Return a value that changes when a certificate is replaced. Raise StoreError if a certificate is missing."""
        try:
            found = [os.stat(path) for path in (self.certificate, self.ca)]
        except OSError as e:
            raise _error(e) from e
        return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in found)

    def context(self) -> ssl.SSLContext:
        """Return the TLS context. Raise StoreError if a file is invalid, or if other accounts have rights to it."""
        self._check()
        context = client_context()
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as e:
            raise _error(e, self.ca) from e
        # The certificate matches the new key between two steps of a renewal. The third attempt is for the last step.
        for key in (self.key, f"{self.key}{NEXT}", self.key):
            try:
                context.load_cert_chain(self.certificate, key)
            except (OSError, ssl.SSLError) as e:  # an SSLError is also an OSError
                problem = e
            else:
                if key != self.key:
                    with suppress(OSError):  # a process that renews the certificate might have renamed the key
                        os.rename(key, self.key)
                return context
        raise _error(problem, self.key) from problem

    @contextmanager
    def replacing(self) -> Iterator[None]:
        """Hold the lock of the files during the block. Raise StoreError if another process holds this lock."""
        with _folder(os.path.dirname(self.key)) as folder:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"{self.key}: another process is replacing this file") from None
            yield

    def replace(self, key: str, certificate: str, ca: str | None = None) -> None:
        """Replace the files by new files with `key`, `certificate` and `ca`, durably.

        Keep the file of the CA if `ca` is None.

        Raise StoreError, for example if the key does not match the certificate. The old files remain if the error
        precedes the first rename.
        """
        if os.path.lexists(self.key):
            with suppress(StoreError):  # a key that matches the certificate must not be lost
                self.context()
        new = {self.key: key, self.certificate: certificate} | ({} if ca is None else {self.ca: ca})
        try:
            for path, content in new.items():
                _write(f"{path}{NEXT}", content)
            context = client_context()
            context.load_verify_locations(f"{self.ca}{NEXT}" if ca is not None else self.ca)
            context.load_cert_chain(f"{self.certificate}{NEXT}", f"{self.key}{NEXT}")
            with _signals_held():
                for path in (*([] if ca is None else [self.ca]), self.certificate, self.key):
                    os.rename(f"{path}{NEXT}", path)
            for folder in {os.path.dirname(path) for path in new}:
                with _folder(folder) as opened:
                    os.fsync(opened)
        except (OSError, ssl.SSLError) as e:
            self._remove_new(new)
            raise _error(e, e.filename or self.certificate) from e
        except BaseException:
            self._remove_new(new)
            raise

    def _remove_new(self, paths: dict[str, str]) -> None:
        """Remove the new files, unless the new certificate has already replaced the old certificate."""
        if os.path.exists(f"{self.certificate}{NEXT}"):
            for path in paths:
                with suppress(OSError):
                    os.unlink(f"{path}{NEXT}")

    def _check(self) -> None:
        """Raise StoreError if another account could read the key or write a certificate."""
        own = os.geteuid()
        folder = os.path.dirname(self.key)
        try:
            places = {path: os.lstat(path) for path in (folder, self.key, self.certificate, self.ca)}
        except OSError as e:
            raise _error(e) from e
        for path, status in places.items():
            mode = stat.S_IMODE(status.st_mode)
            is_secret = path in (folder, self.key)
            if not (stat.S_ISDIR if path == folder else stat.S_ISREG)(status.st_mode):
                raise StoreError(f"{path}: must be a {'folder' if path == folder else 'regular file'}")
            if status.st_uid != own and (is_secret or status.st_uid != 0):
                raise StoreError(f"{path}: must be owned by uid {own}{'' if is_secret else ' or root'}")
            if is_secret and mode != (0o700 if path == folder else 0o600):
                raise StoreError(f"{path}: its mode must be {'0700' if path == folder else '0600'}")
            if mode & 0o022:
                raise StoreError(f"{path}: must be writable by its owner only")


def client_context() -> ssl.SSLContext:
    """Return a context for TLS 1.3 that verifies the server's certificate and name. The caller adds the CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


@contextmanager
def _signals_held() -> Iterator[None]:
    """Delay the signals that end a command until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _folder(path: str) -> Iterator[int]:
    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise _error(e) from e
    try:
        yield folder
    finally:
        os.close(folder)


def _write(path: str, content: str) -> None:
    """Write a new file of mode 0600 durably. Raise OSError."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # left by a process that was killed
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)  # under any umask
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _error(error: OSError, path: str | None = None) -> StoreError:
    """Return the error of a file. The text of an SSLError has no path, and can be long."""
    place = path or error.filename
    if isinstance(error, ssl.SSLError):
        return StoreError(f"{place}: must be a valid certificate or key (run 'pam-totp join')")
    remedy = " (run 'pam-totp join')" if isinstance(error, FileNotFoundError) else ""
    return StoreError(f"{place}: {(error.strerror or str(error)).lower()}{remedy}")
