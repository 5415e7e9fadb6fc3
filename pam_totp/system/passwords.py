"""The first factor: the system password, checked by PAM through python-pam.

Rules:
- A separate PAM service, which asks for the password only, checks passwords. `verify` refuses a blank password without
  a call of libpam.
- An unknown user, a wrong password and a blank password get the same answer after the same time. Each of these checks
  computes a hash. A refusal takes `refusal_delay` seconds, or the next multiple if the check takes longer.
- At most `SLOTS` checks run at once, in the order of the requests. A request that waits longer than `SLOT_WAIT` fails
  with `TooManyChecks`.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import pwd
import time
from collections.abc import Callable

from pam_totp.operations import audit_log
from pam_totp.store.fair_semaphore import FairSemaphore
from pam_totp.system.extras import how_to_get

PAM_FOLDER = "/etc/pam.d"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXAMPLE = os.path.join(_PACKAGE, "web", "pam_totp-portal")
SLOTS = 4  # checks at once; a check takes as long as the modules of the PAM service
SLOT_WAIT = 10.0  # seconds: the longest wait of a request until its check starts
REFUSAL_DELAY = 1.0  # seconds: more than a hash takes, and more than pam_unix takes for an unknown user
MAX_BYTES = 511  # of a user name or a password: PAM_MAX_RESP_SIZE without the final NUL
# A hash in the default format of Debian, yescrypt (crypt(5)).
_DECOY = b"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"
_SERVICE_ERROR, _SYSTEM_ERROR, _UNAVAILABLE = 3, 4, 9  # from _pam_types.h of Linux-PAM
_PAM_FAILURES = (_SERVICE_ERROR, _SYSTEM_ERROR, _UNAVAILABLE)  # PAM could not check the password
_REMEDY = "the account that runs this process must be in the group shadow"
_CRYPT_DATA = 32_768  # bytes: the size of struct crypt_data in crypt_r(3)


class TooManyChecks(Exception):
    """The check did not start within `SLOT_WAIT` seconds. The user can try again later."""


class PasswordsUnavailable(Exception):
    """Passwords cannot be checked on this host. The message gives the reason and the remedy."""


class SystemPasswords:
    """A check of passwords by the PAM service `service`, for at most `slots` requests at once.

    A refusal takes `refusal_delay` seconds or a multiple. `sink` gets a log line if PAM cannot check a password.
    Raise PasswordsUnavailable if the file of the PAM service or the package python-pam is missing.
    """

    def __init__(
        self, service: str, sink: audit_log.Sink, *, slots: int = SLOTS, refusal_delay: float = REFUSAL_DELAY
    ) -> None:
        # Without this file, libpam uses the service `other`, which may accept a blank password.
        file = os.path.join(PAM_FOLDER, service)
        if not os.path.exists(file):
            raise PasswordsUnavailable(f"PAM service not found: {file} (create it; an example is {EXAMPLE})")
        self._service = service
        self._sink = sink
        self._slots = FairSemaphore(slots)
        self._refusal_delay = refusal_delay
        self._authenticate = _python_pam()
        _crypt()  # load libcrypt before the first request

    def verify(self, user: str, password: str, delay: Callable[[float], None] = time.sleep) -> bool:
        """Return True if the password is right and the account may be used. Raise TooManyChecks.

        Call `delay` with the seconds to wait before a refusal: a server can pass a function that blocks no thread.
        """
        started = time.monotonic()
        if not self._slots.acquire(SLOT_WAIT):
            raise TooManyChecks
        try:
            correct = self._check(user, password)
        finally:
            self._slots.release()
        if not correct:
            delay(self._rest(time.monotonic() - started))
        return correct

    def _rest(self, took: float) -> float:
        """Return the seconds to wait before a refusal, after a check that took `took` seconds."""
        return -took % self._refusal_delay if self._refusal_delay > 0 else 0.0

    def _check(self, user: str, password: str) -> bool:
        if not (_is_valid_text(user) and _is_valid_text(password) and is_account(user)):
            compute_decoy(password)
            return False
        code, reason = self._authenticate(user, password, self._service)
        if code in _PAM_FAILURES:  # the user sees the usual refusal; the log has the reason
            problem = f"PAM could not check the password: {reason} ({_REMEDY})"
            audit_log.write(self._sink, self._service, "error", problem=problem)
        return code == 0


def _is_valid_text(text: str) -> bool:
    """Return True if `text` can be a name or a password: UTF-8 of 1 to MAX_BYTES bytes, without NUL."""
    try:
        return 0 < len(text.encode()) <= MAX_BYTES and "\0" not in text
    except UnicodeEncodeError:
        return False


def is_account(user: str) -> bool:
    """Return True if `user` has a passwd entry."""
    try:
        pwd.getpwnam(user)
    except (KeyError, ValueError):  # ValueError: a name with NUL
        return False
    return True


def compute_decoy(password: str) -> None:
    """Compute one password hash, so that the answer takes as long as a check against a stored hash."""
    crypt = _crypt()
    if crypt is not None:
        data = ctypes.create_string_buffer(_CRYPT_DATA)
        crypt(password.encode("utf-8", "replace").replace(b"\0", b"")[:MAX_BYTES], _DECOY, data)


@functools.cache  # find_library starts a process
def _crypt() -> Callable[[bytes, bytes, object], object] | None:
    """Return crypt_r(3), which pam_unix uses too, or None if libcrypt is missing.

    Without libcrypt, only `refusal_delay` makes the answer times for known and unknown users equal.
    """
    name = ctypes.util.find_library("crypt")
    if name is None:
        return None
    function = ctypes.CDLL(name).crypt_r
    function.restype, function.argtypes = ctypes.c_char_p, (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p)
    return function


def _python_pam() -> Callable[[str, str, str], tuple[int, str]]:
    """Return a function that checks a user's password by a PAM service, and returns PAM's result and its text."""
    try:
        import pam  # an optional package
    except ImportError:
        raise PasswordsUnavailable(f"python-pam is missing ({how_to_get('python-pam')})") from None

    def authenticate(user: str, password: str, service: str) -> tuple[int, str]:
        handle = pam.pam()
        # resetcreds=False: only a session needs credentials, and this check opens no session.
        correct = handle.authenticate(user, password, service=service, resetcreds=False)
        reason = handle.reason.decode("utf-8", "replace") if isinstance(handle.reason, bytes) else str(handle.reason)
        return (0 if correct else int(handle.code) or _SYSTEM_ERROR), reason

    return authenticate
