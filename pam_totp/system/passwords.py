"""The first factor: the system password, asked of PAM (python-pam).

The law:
- the PAM service is one of its own that asks for nothing but the password, and no blank one is ever tried;
- unknown user, wrong password, blank password: the same answer after the same time, and a hash is computed for each;
- no more than a few checks at once, in the order of asking, and whoever cannot be served soon is told so.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import pwd
import time
from collections.abc import Callable

from pam_totp.operations import audit_log
from pam_totp.system.extras import how_to_get
from pam_totp.system.fair_semaphore import Turns

PAM_FOLDER = "/etc/pam.d"
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
EXAMPLE = os.path.join(_PACKAGE, "web", "pam_totp-portal")
SLOTS = 4  # checks at once: each may take as long as the slowest module
SLOT_WAIT = 10.0  # seconds until somebody is told that it is busy
REFUSAL_DELAY = 1.0  # seconds: longer than a hash takes, and than pam_unix does for a user it does not know
MOST_BYTES = 511  # of a name or password: PAM_MAX_RESP_SIZE less its end
_DECOY = b"$y$j9T$F5Jx5fExrKuPp53xLKQ..1$X3DX6M94c7o.9agCG9G317fhZg9SqC.5i5rd.RhAtQ7"  # crypt(5): yescrypt, as Debian's
_SERVICE_ERROR, _SYSTEM_ERROR, _UNAVAILABLE = 3, 4, 9  # Linux-PAM, _pam_types.h
_TROUBLE = (_SERVICE_ERROR, _SYSTEM_ERROR, _UNAVAILABLE)  # not the fault of whoever typed a password
_CRYPT_DATA = 32_768  # bytes: struct crypt_data of crypt_r(3)


class Busy(Exception):
    """Too many checks are under way."""


class Missing(Exception):
    """The check cannot be made at all; the text says what to do."""


class SystemPasswords:
    """Checks passwords against the PAM service `service`."""

    def __init__(
        self, service: str, sink: audit_log.Sink, *, slots: int = SLOTS, refusal_delay: float = REFUSAL_DELAY
    ) -> None:
        # Without a file of its own, libpam would go by `other`, which may ask for more than a password, or for less.
        if not os.path.exists(os.path.join(PAM_FOLDER, service)):
            raise Missing(f"no PAM service {service}: put a file into {PAM_FOLDER}, such as {EXAMPLE}")
        self._service = service
        self._sink = sink
        self._slots = Turns(slots)
        self._refusal_delay = refusal_delay
        self._authenticate = _python_pam()

    def right(self, user: str, password: str) -> bool:
        """Whether this is the user's password, and their account may be used. Raises Busy."""
        begun = time.monotonic()
        if not self._slots.take(SLOT_WAIT):
            raise Busy
        try:
            good = self._try(user, password)
        finally:
            self._slots.give_back()
        if not good:
            time.sleep(max(0.0, begun + self._refusal_delay - time.monotonic()))
        return good

    def _try(self, user: str, password: str) -> bool:
        if not (_possible(user) and _possible(password) and is_account(user)):
            compute_decoy(password)
            return False
        code, reason = self._authenticate(user, password, self._service)
        if code in _TROUBLE:  # the person is told what everybody is told; the admin is not
            audit_log.write(self._sink, self._service, "error", problem=f"PAM: {reason} (is it in the group shadow?)")
        return code == 0


def _possible(text: str) -> bool:
    try:
        return 0 < len(text.encode()) <= MOST_BYTES and "\0" not in text
    except UnicodeEncodeError:
        return False


def is_account(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def compute_decoy(password: str) -> None:
    """What a wrong password costs, for whom there is no password to compare with."""
    crypt = _crypt()
    if crypt is not None:
        data = ctypes.create_string_buffer(_CRYPT_DATA)
        crypt(password.encode("utf-8", "replace").replace(b"\0", b"")[:MOST_BYTES], _DECOY, data)


def _crypt() -> Callable[[bytes, bytes, object], object] | None:
    """crypt_r(3), as pam_unix has it; None where it is not there: then only the time limit is left to hide behind."""
    name = ctypes.util.find_library("crypt")
    if name is None:
        return None
    function = ctypes.CDLL(name).crypt_r
    function.restype, function.argtypes = ctypes.c_char_p, (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p)
    return function


def _python_pam() -> Callable[[str, str, str], tuple[int, str]]:
    try:
        import pam  # an extra
    except ImportError:
        raise Missing(f"checking passwords needs python-pam ({how_to_get('python-pam')})") from None

    def authenticate(user: str, password: str, service: str) -> tuple[int, str]:
        asking = pam.pam()
        # Credentials are for sessions, of which there are none here.
        good = asking.authenticate(user, password, service=service, resetcreds=False)
        reason = asking.reason.decode("utf-8", "replace") if isinstance(asking.reason, bytes) else str(asking.reason)
        return (0 if good else int(asking.code) or _SYSTEM_ERROR), reason

    return authenticate
