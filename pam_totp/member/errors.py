"""The errors of questions to authorities, and their reasons in words.

Rules:
1. A reason is one line without a secret. A reason states the remedy if a remedy is known.
2. The number or the name of an error selects its reason.
"""

from __future__ import annotations

import errno
import os
import ssl
from socket import gaierror
from typing import TYPE_CHECKING

from pam_totp.store import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping

UNAUTHORIZED, FORBIDDEN = 401, 403  # HTTP statuses: not a member, not this member's user or service

# X509_V_ERR_... of OpenSSL: x509_vfy.h
_VERIFICATION = {
    9: "its certificate is not valid yet (check the clock of this host)",
    10: "its certificate has expired, or the clock of this host is wrong",
    18: "its certificate is self-signed",
    19: "its certificate was issued by another CA: self-signed certificate in the chain",
    20: "its certificate was issued by an unknown CA",
    21: "its certificate was issued by an unknown CA",
    62: "its certificate is for another host name",
    64: "its certificate is for another address",
}
# Alerts (RFC 8446, 6.2), as OpenSSL names them, with which an authority rejects the certificate of this member.
_ALERTS = {
    "CERTIFICATE_EXPIRED": "the certificate of this host has expired (run 'pam-totp join'), or a clock is wrong",
    "CERTIFICATE_REQUIRED": "the authority requires a certificate of this host (run 'pam-totp join')",
    "UNKNOWN_CA": "the certificate of this host was issued by another CA (run 'pam-totp join')",
    "BAD_CERTIFICATE": "the authority rejects the certificate of this host (run 'pam-totp join')",
    "CERTIFICATE_UNKNOWN": "the authority rejects the certificate of this host (run 'pam-totp join')",
    "UNSUPPORTED_CERTIFICATE": "the authority rejects the certificate of this host (run 'pam-totp join')",
    "CERTIFICATE_REVOKED": "the certificate of this host was revoked",
    "PROTOCOL_VERSION": "the authority does not support TLS 1.3",
}
_NAMES: Mapping[int, str] = {errno.ECONNREFUSED: "connection refused", errno.ECONNRESET: "connection closed"}


class OutOfReach(StoreError):
    """The error for a question that no authority has answered."""


class NotAllowed(Exception):
    """The error for an authority that refuses to answer this member. `status` is UNAUTHORIZED or FORBIDDEN."""

    def __init__(self, status: int, authority: str) -> None:
        super().__init__(f"{authority}: status {status}")
        self.status, self.authority = status, authority


class Failed(Exception):
    """The error for one authority without an answer. `is_lasting` is True if the same question would fail again."""

    def __init__(self, reason: str, *, is_lasting: bool = False) -> None:
        super().__init__(reason)
        self.is_lasting = is_lasting


def failure(error: Exception) -> Failed:
    """Return the Failed of one authority for an error of the connection."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        known = _VERIFICATION.get(error.verify_code)
        return Failed(known or f"its certificate is not valid: {error.verify_message}", is_lasting=True)
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        kind = (error.reason or "").rpartition("ALERT_")[2]
        known = _ALERTS.get(kind)
        unknown = f"TLS error: {kind.lower().replace('_', ' ') or 'unknown'}"
        return Failed(known or unknown, is_lasting=known is not None)
    if isinstance(error, TimeoutError):
        return Failed("no answer in time")
    if isinstance(error, gaierror):
        return Failed("host name not found")
    if isinstance(error, OSError) and error.errno is not None:
        return Failed(_NAMES.get(error.errno) or os.strerror(error.errno).lower())
    return Failed("connection closed")
