"""Joining a fleet, and the renewal of the certificate.

Rules:
1. The member generates its key by openssl, which writes and reads the key through pipes. Only the file of the key
   stores the key.
2. The join line contains the fingerprint of the CA's certificate. The member fetches that certificate without
   verification, and checks its fingerprint. The member sends the join token only over a verified connection.
3. openssl runs with a fixed path, a clean environment and a time limit.
"""

from __future__ import annotations

import hmac
import os
import ssl
import subprocess
import time
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from pam_totp.member.client import OK, reason
from pam_totp.member.connection import Connection
from pam_totp.member.credentials import Credentials, client_context
from pam_totp.member.errors import FORBIDDEN, UNAUTHORIZED, Failed, failure
from pam_totp.member.wire import (
    CA_PATH,
    HEALTH_PATH,
    JOIN_PATH,
    RENEW_PATH,
    Authority,
    Health,
    Join,
    Joined,
    JoinLine,
    Renew,
    Renewed,
    WireError,
)
from pam_totp.store import StoreError

if TYPE_CHECKING:
    from pam_totp.core.settings import MemberSettings

OPENSSL = "/usr/bin/openssl"
STEP_WAIT = 10.0  # seconds for one request, or one run of openssl
DAY = 86_400
RENEWED_BEFORE = 30 * DAY  # seconds before the end of a certificate: day 60 of 90
_MAX_ERROR = 300  # characters of openssl's error, which contains no key
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "OPENSSL_CONF": "/dev/null"}


class JoinError(StoreError):
    """The error for a host that failed to join, or to renew its certificate. The host is unchanged."""


class JoinRefused(JoinError):
    """The error for a join line that the authority refuses, or for an authority with another CA than the line."""


class Request(NamedTuple):
    """A new key and a certificate request for it, in PEM."""

    key: str
    csr: str


class Validity(NamedTuple):
    """The time in which a certificate is valid, in Unix seconds."""

    begin: int
    end: int

    def is_due(self, now: int) -> bool:
        """Return True if the certificate has to be renewed: in its last third, and at most 30 days before its end."""
        return self.end - now <= min(RENEWED_BEFORE, (self.end - self.begin) // 3)


def new_request() -> Request:
    """Return a new key with a certificate request. Raise JoinError. An authority chooses all names."""
    key = _openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    csr = _openssl("req", "-new", "-config", "/dev/null", "-subj", "/CN=member", "-key", "/proc/self/fd/0", stdin=key)
    return Request(key, csr)


def validity(path: str) -> Validity:
    """Return the time in which the certificate in a file is valid. Raise JoinError."""
    lines = _openssl("x509", "-in", path, "-noout", "-startdate", "-enddate").splitlines()
    dates = [ssl.cert_time_to_seconds(line.partition("=")[2]) for line in lines]
    return Validity(*dates)


def _openssl(*arguments: str, stdin: str = "") -> str:
    """Return the output of openssl. `stdin` is the text on the standard input of openssl."""
    try:
        done = subprocess.run(
            [OPENSSL, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env=_ENVIRONMENT,
            cwd="/",
            user=os.geteuid(),  # as the real id too: under NoNewPrivileges, Linux 6.1 would restore root
            group=os.getegid(),
            timeout=STEP_WAIT,
            check=False,
        )
    except FileNotFoundError:
        raise JoinError(f"{OPENSSL}: not found (install the package openssl)") from None
    except (OSError, subprocess.TimeoutExpired) as e:
        raise JoinError(f"{OPENSSL}: {getattr(e, 'strerror', None) or 'no result in time'}") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise JoinError(f"{OPENSSL} {arguments[0]} failed: {'; '.join(lines)[:_MAX_ERROR]}")
    return done.stdout


class Membership(NamedTuple):
    """The result of joining. `ca` is the certificate of the CA in PEM, `authority` the authority that answered."""

    joined: Joined
    key: str
    ca: str
    authority: str


def join(line: JoinLine) -> Membership:
    """Use up the join token of `line`, and return the key and the certificate. Raise JoinError."""
    request = new_request()
    problems = []
    for authority in line.authorities:
        try:
            return _join_at(authority, line, request)
        except (OSError, Failed) as e:
            problems.append(f"{authority}: {failure(e)}")
    raise JoinError(f"no authority answered: {'; '.join(problems)}")


def _join_at(authority: str, line: JoinLine, request: Request) -> Membership:
    """Join at one authority, and return the result. Raise OSError or Failed if another authority might succeed,
    otherwise JoinError.
    """
    ca = _pinned_ca(authority, line.pin)
    context = client_context()
    context.load_verify_locations(cadata=ca)
    status, content = _ask(authority, context, "POST", JOIN_PATH, Join(token=line.token, csr=request.csr).to_json())
    if status == FORBIDDEN:
        why = "the line is wrong, older than an hour, or was used"
        raise JoinRefused(f"{authority} refuses the join line: {why} (run 'pam-totp member add' there again)")
    if status != OK:
        raise Failed(f"status {status}")
    try:
        joined = Joined.from_json(content)
    except WireError:
        raise Failed("the reply must be a valid message") from None
    if _pin(joined.ca) != line.pin:
        raise JoinRefused(f"{authority}: the reply has another CA than the join line; nothing was changed")
    return Membership(joined, request.key, ca, authority)


def _pinned_ca(authority: str, pin: str) -> str:
    """Return the certificate of the CA, fetched without verification, if `pin` is its fingerprint."""
    context = client_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    status, content = _ask(authority, context, "GET", CA_PATH, None)
    if status != OK:
        raise Failed(f"status {status}")
    try:
        pem = Authority.from_json(content).ca
    except WireError:
        raise Failed("the reply must be a valid message") from None
    if not hmac.compare_digest(_pin(pem), pin):
        what = "its CA has another fingerprint than the join line: this authority might be an impostor"
        raise JoinRefused(f"{authority}: {what}; the join token was not sent")
    return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(pem.strip()))


def _pin(pem: str) -> str:
    """Return the SHA-256 of a certificate in DER, or "" if the text is not one certificate in PEM."""
    try:
        return sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest()
    except ValueError:
        return ""


def _ask(authority: str, context: ssl.SSLContext, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    deadline = time.monotonic() + STEP_WAIT
    connection = Connection(authority, context, deadline)
    try:
        return connection.ask(method, path, body, deadline)
    finally:
        connection.close()


def verify(membership: Membership) -> Health:
    """Return the health of the authority. Raise JoinError if the authority does not accept the new certificate."""
    context = client_context()
    context.load_verify_locations(cadata=membership.ca)
    files = [os.memfd_create("pam_totp"), os.memfd_create("pam_totp")]  # the key stays in memory
    try:
        for file, text in zip(files, (membership.joined.certificate, membership.key), strict=True):
            os.write(file, text.encode())
        context.load_cert_chain(*(f"/proc/self/fd/{file}" for file in files))
    except (OSError, ssl.SSLError):
        raise JoinError(f"{membership.authority}: the certificate in the reply does not match the key") from None
    finally:
        for file in files:
            os.close(file)
    return health(membership.authority, context)


def health(authority: str, context: ssl.SSLContext) -> Health:
    """Return the health that `authority` reports to this member. Raise JoinError."""
    try:
        status, content = _ask(authority, context, "GET", HEALTH_PATH, None)
        if status != OK:
            raise Failed(f"status {status}")
        return Health.from_json(content)
    except (OSError, Failed) as e:
        raise JoinError(f"{authority}: {failure(e)}") from None
    except WireError:
        raise JoinError(f"{authority}: the reply must be a valid message") from None


def renew(settings: MemberSettings) -> Validity:
    """Replace the key and the certificate, and return the validity of the new certificate. Raise StoreError.

    The first use of the new certificate makes the old certificate invalid. The new certificate is therefore written to
    its file before its first use.
    """
    credentials = Credentials.of(settings)
    with credentials.replacing():
        request = new_request()
        renewed = _renewed(settings, credentials.context(), Renew(csr=request.csr).to_json())
        credentials.replace(request.key, renewed.certificate)
    return validity(settings.certificate)


def _renewed(settings: MemberSettings, context: ssl.SSLContext, body: bytes) -> Renewed:
    """Return the reply of the first authority that replies. Raise JoinError.

    Stop after a request that was sent but got no reply. The authority of this request could still store its certificate
    as the next certificate of this member. The certificate of another authority would then be invalid.
    """
    problems = []
    for authority in settings.authorities:
        deadline = time.monotonic() + STEP_WAIT
        connection = None
        try:
            connection = Connection(authority, context, min(deadline, time.monotonic() + settings.connect))
            status, content = connection.ask("POST", RENEW_PATH, body, deadline)
            if status in (UNAUTHORIZED, FORBIDDEN):
                raise JoinError(f"{authority}: this host is not a member (run 'pam-totp join')")
            if status == OK:
                return Renewed.from_json(content)
            problems.append(f"{authority}: {reason(status, content)}")
        except (OSError, Failed, WireError) as e:
            problem = Failed("the reply must be a valid message") if isinstance(e, WireError) else failure(e)
            problems.append(f"{authority}: {problem}")
            if connection is not None and not problem.is_lasting:
                break
        finally:
            if connection is not None:
                connection.close()
    raise JoinError(f"no authority answered: {'; '.join(problems)}")
