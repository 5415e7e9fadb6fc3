"""libpam through ctypes: the calls of a PAM application, with a callback that answers the prompts.

Rules:
- libpam runs the real modules of the stack. A refused login has no delay.
- An exception in the callback ends the login. `authenticate` or `account` raises the exception again.
- The same applies to a KeyboardInterrupt or SystemExit that a signal handler raises during a call of libpam.
- The modules of the stack run in this process. A caller that must survive a crash of a module uses a child process.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from pam_totp.system.pamd.stack import RESULTS

PROMPT_ECHO_OFF, PROMPT_ECHO_ON, ERROR_MSG, TEXT_INFO = 1, 2, 3, 4  # _pam_types.h
PROMPTS = (PROMPT_ECHO_OFF, PROMPT_ECHO_ON)
_CONV_ERR = RESULTS.index("conv_err")
_ITEMS = {"tty": 3, "rhost": 4, "ruser": 8}
_FAIL_DELAY = 10
_MAX_MESSAGES = 32  # PAM_MAX_NUM_MSG

# A callback that shows a message (the arguments: style and text). The callback returns the answer to a prompt, or None
# to end the login.
Converse = Callable[[int, str], bytes | None]


class LibpamError(Exception):
    """The error for a libpam that is missing, or did not start a login. The message gives the reason."""


class _Message(ctypes.Structure):
    _fields_ = (("style", c_int), ("text", c_char_p))


class _Response(ctypes.Structure):
    _fields_ = (("text", c_void_p), ("unused", c_int))


_CONVERSE = CFUNCTYPE(c_int, c_int, POINTER(POINTER(_Message)), POINTER(POINTER(_Response)), c_void_p)
_DELAY = CFUNCTYPE(None, c_int, c_uint, c_void_p)


class _Conversation(ctypes.Structure):
    _fields_ = (("converse", _CONVERSE), ("data", c_void_p))


@dataclass(frozen=True, slots=True)
class _Library:
    """The C functions that this module calls, with their types."""

    calloc: Any
    strdup: Any
    free: Any
    start: Any
    start_confdir: Any
    end: Any
    authenticate: Any
    acct_mgmt: Any
    setcred: Any
    set_item: Any
    putenv: Any


def _load() -> _Library:
    try:
        libpam, libc = ctypes.CDLL("libpam.so.0"), ctypes.CDLL(None)
    except OSError as e:
        raise LibpamError(f"libpam cannot be loaded: {e}") from None

    def typed(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
        try:
            function = getattr(library, name)
        except AttributeError:
            raise LibpamError(f"libpam has no {name}: Linux-PAM 1.4 or newer is required") from None
        function.restype, function.argtypes = result, arguments
        return function

    names = c_char_p, c_char_p, POINTER(_Conversation)
    return _Library(
        calloc=typed(libc, "calloc", c_void_p, ctypes.c_size_t, ctypes.c_size_t),
        strdup=typed(libc, "strdup", c_void_p, c_char_p),
        free=typed(libc, "free", None, c_void_p),
        start=typed(libpam, "pam_start", c_int, *names, POINTER(c_void_p)),
        start_confdir=typed(libpam, "pam_start_confdir", c_int, *names, c_char_p, POINTER(c_void_p)),
        end=typed(libpam, "pam_end", c_int, c_void_p, c_int),
        authenticate=typed(libpam, "pam_authenticate", c_int, c_void_p, c_int),
        acct_mgmt=typed(libpam, "pam_acct_mgmt", c_int, c_void_p, c_int),
        setcred=typed(libpam, "pam_setcred", c_int, c_void_p, c_int),
        set_item=typed(libpam, "pam_set_item", c_int, c_void_p, c_int, c_void_p),
        putenv=typed(libpam, "pam_putenv", c_int, c_void_p, c_char_p),
    )


class Login:
    """One PAM handle: `with Login("sudo", "alice", converse) as login: login.authenticate()`.

    `folder` replaces /etc/pam.d as the folder of the service files. `items` may set tty, rhost and ruser.
    `environment` has the variables for pam_putenv(3). Raise LibpamError if libpam does not start the login.
    """

    def __init__(
        self,
        service: str,
        user: str,
        converse: Converse,
        *,
        folder: str | None = None,
        items: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._lib = _load()
        self._answer = converse
        self._error: BaseException | None = None
        self._result = 0
        self._handle = c_void_p()
        # libpam keeps pointers to these objects, so they must exist as long as the handle.
        self._conversation = _Conversation(_CONVERSE(self._converse), None)
        self._no_delay = _DELAY(lambda _result, _microseconds, _data: None)
        names = service.encode(), user.encode("utf-8", "surrogateescape"), byref(self._conversation)
        if folder is None:
            result = self._lib.start(*names, byref(self._handle))
        else:
            result = self._lib.start_confdir(*names, folder.encode(), byref(self._handle))
        if result != 0:
            raise LibpamError(f"libpam cannot start a login to {service}: {name_of(result)}")
        self._lib.set_item(self._handle, _FAIL_DELAY, ctypes.cast(self._no_delay, c_void_p))
        for item, value in (items or {}).items():
            self._lib.set_item(self._handle, _ITEMS[item], value.encode("utf-8", "surrogateescape"))
        for name, value in (environment or {}).items():
            self._lib.putenv(self._handle, f"{name}={value}".encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lib.end(self._handle, self._result)
        self._handle = c_void_p()

    def authenticate(self) -> str:
        """Call pam_authenticate. Return the name of the result, such as "success"."""
        return self._call(self._lib.authenticate)

    def account(self) -> str:
        """Call pam_acct_mgmt. Return the name of the result: "success" if the account may be used now."""
        return self._call(self._lib.acct_mgmt)

    def _call(self, function: Any) -> str:
        # A signal handler can run at the first instruction of a callback, before the callback's `try`. ctypes passes
        # the handler's exception to this hook, and continues.
        before = sys.unraisablehook

        def keep(unraisable: sys.UnraisableHookArgs) -> None:
            if isinstance(unraisable.exc_value, Exception):  # the exception of a finalizer
                before(unraisable)
            else:
                self._error = unraisable.exc_value

        sys.unraisablehook = keep
        try:
            self._result = function(self._handle, 0)
        finally:
            sys.unraisablehook = before
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return name_of(self._result)

    def _converse(self, count: int, messages: Any, responses: Any, _data: object) -> int:
        """Answer one call from libpam. libpam frees the array and its texts, so malloc must allocate them."""
        if not 0 < count <= _MAX_MESSAGES:
            return _CONV_ERR
        array = ctypes.cast(self._lib.calloc(count, ctypes.sizeof(_Response)), POINTER(_Response))
        try:
            for i in range(count):
                message = messages[i][0]
                answer = self._answer(message.style, (message.text or b"").decode("utf-8", "replace"))
                if message.style in PROMPTS:
                    if answer is None or b"\0" in answer:
                        raise _NoAnswer
                    array[i].text = self._lib.strdup(answer)
        except BaseException as e:  # ctypes would print the exception and continue
            self._error = None if isinstance(e, _NoAnswer) else e
            for i in range(count):
                self._lib.free(array[i].text)
            self._lib.free(array)
            return _CONV_ERR
        responses[0] = array
        return 0


class _NoAnswer(Exception):
    """The error for a callback that gave no answer to a prompt."""


def name_of(result: int) -> str:
    """Return the name of a PAM result in lower case, as in pam.conf(5)."""
    return RESULTS[result] if 0 <= result < len(RESULTS) else f"result {result}"
