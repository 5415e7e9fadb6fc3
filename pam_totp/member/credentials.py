"""The credentials of a member: its key, its certificate, and the certificate of the CA, in three files.

Rules:
1. The key has mode 0600, in a folder of mode 0700. The account of this process owns both.
2. Other accounts cannot write the certificates. Root or the account of this process owns them.
3. TLS is version 1.3. The member verifies the certificate and the name of each authority against its own CA file, never
   against the CAs of the system.
4. A renewal first writes the new key beside the old one, then the certificate, and then gives the key its name. So one
   of the two keys always fits the certificate, also after a crash.
"""

from __future__ import annotations

import os
import ssl
import stat
from typing import TYPE_CHECKING

from pam_totp.store import StoreError

if TYPE_CHECKING:
    from pam_totp.core.settings import MemberSettings

NEXT = ".next"  # the suffix of a new key until it replaces the old one

Version = tuple[tuple[int, ...], ...]  # of the files


class Credentials:
    """The files of a member."""

    def __init__(self, certificate: str, key: str, ca: str) -> None:
        self.certificate, self.key, self.ca = certificate, key, ca

    @classmethod
    def of(cls, settings: MemberSettings) -> Credentials:
        return cls(settings.certificate, settings.key, settings.ca)

    def version(self) -> Version:
        """Return a value that changes when a file is replaced. Raise StoreError if a file is missing."""
        try:
            found = [os.stat(path) for path in (self.certificate, self.ca)]
        except OSError as e:
            raise _error(e) from e
        return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for s in found)

    def context(self) -> ssl.SSLContext:
        """Return the settings of TLS. Raise StoreError if a file is not safe or not valid."""
        self._check()
        context = client_context()
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as e:
            raise _error(e, self.ca) from e
        # Between two steps of a renewal, the certificate fits the new key. The third attempt is for its last step.
        for key in (self.key, f"{self.key}{NEXT}", self.key):
            try:
                context.load_cert_chain(self.certificate, key)
            except (OSError, ssl.SSLError) as e:  # an SSLError is also an OSError
                problem = e
            else:
                return context
        raise _error(problem, self.key) from problem

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
                raise StoreError(f"{path}: must be owned by uid {own}")
            if is_secret and mode != (0o700 if path == folder else 0o600):
                raise StoreError(f"{path}: its mode must be {'0700' if path == folder else '0600'}")
            if mode & 0o022:
                raise StoreError(f"{path}: only its owner may write it")


def client_context() -> ssl.SSLContext:
    """Return settings of TLS 1.3 that verify the server's certificate and name, with no CA yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _error(error: OSError, path: str | None = None) -> StoreError:
    """Return the error of a file. The text of an SSLError has no path, and may be long."""
    place = path or error.filename
    if isinstance(error, ssl.SSLError):
        return StoreError(f"{place}: not a valid certificate or key (run 'pam-totp join')")
    remedy = " (run 'pam-totp join')" if isinstance(error, FileNotFoundError) else ""
    return StoreError(f"{place}: {(error.strerror or str(error)).lower()}{remedy}")
