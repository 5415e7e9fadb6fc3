"""A client of the real libpam through ctypes: scripted logins with a private folder of service files.

Rules:
- libpam, the stack and the modules are real. Only the user at the prompt is scripted.
- libpam reads the services from `confdir`, and the modules from the host (pam_start_confdir, which also works without
  root).
- Each login has a separate handle, so any number of threads can log in at the same time.
- Logins do not wait for the fail delay: `Login.delay` records the requested delay.

    service(confdir, "demo", "auth required /abs/build/pam_totp.so nodelay")
    done = login("demo", "alice", ["123456"], confdir, items={"rhost": "192.0.2.7"})
    assert done.result is Result.SUCCESS and done.prompts[0].text == "One-time code: "
"""

from __future__ import annotations

import ctypes
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

StrPath = str | os.PathLike[str]


class Result(IntEnum):
    """Results of libpam, with the numbers of security/_pam_types.h."""

    SUCCESS = 0
    OPEN_ERR = 1
    SYMBOL_ERR = 2
    SERVICE_ERR = 3
    SYSTEM_ERR = 4
    BUF_ERR = 5
    PERM_DENIED = 6
    AUTH_ERR = 7
    CRED_INSUFFICIENT = 8
    AUTHINFO_UNAVAIL = 9
    USER_UNKNOWN = 10
    MAXTRIES = 11
    NEW_AUTHTOK_REQD = 12
    ACCT_EXPIRED = 13
    SESSION_ERR = 14
    CRED_UNAVAIL = 15
    CRED_EXPIRED = 16
    CRED_ERR = 17
    NO_MODULE_DATA = 18
    CONV_ERR = 19
    AUTHTOK_ERR = 20
    IGNORE = 25
    ABORT = 26
    MODULE_UNKNOWN = 28
    BAD_ITEM = 29


class Style(IntEnum):
    """The styles of a module's messages (security/_pam_types.h)."""

    PROMPT_ECHO_OFF = 1
    PROMPT_ECHO_ON = 2
    ERROR_MSG = 3
    TEXT_INFO = 4


class Shown(NamedTuple):
    """A message to the user."""

    style: Style
    text: str


@dataclass(frozen=True)
class Login:
    """The result of a call of pam_authenticate."""

    result: Result
    prompts: tuple[Shown, ...]  # in order
    messages: tuple[Shown, ...]  # information and errors, in order
    authtok: str | None  # PAM_AUTHTOK after the last module, for services written with `carry_authtok`
    seconds: float
    delay: float  # seconds: the fail delay that the modules requested, randomised by libpam (±50 %); 0 after success
    left: int  # the number of unused answers


# An answer at a prompt: text, bytes without a NUL, None (the conversation fails, as on Ctrl-C), or a function. The
# session calls the function with the message during the prompt. The function returns text, bytes or None.
Answer = str | bytes | None | Callable[[Shown], str | bytes | None]

_ITEMS = {"service": 1, "user": 2, "tty": 3, "rhost": 4, "authtok": 6, "ruser": 8, "user_prompt": 9}
_ITEM_FAIL_DELAY = 10
_BEFORE, _AFTER = "pamconf-before", "pamconf-after"  # printed by pam_echo around a stack: see `service`


class _Message(ctypes.Structure):
    _fields_ = (("style", c_int), ("text", c_char_p))


class _Response(ctypes.Structure):
    _fields_ = (("text", c_void_p), ("unused", c_int))


_Converse = CFUNCTYPE(c_int, c_int, POINTER(POINTER(_Message)), POINTER(POINTER(_Response)), c_void_p)
_FailDelay = CFUNCTYPE(None, c_int, c_uint, c_void_p)


class _Conversation(ctypes.Structure):
    _fields_ = (("converse", _Converse), ("data", c_void_p))


def _prototype(library: ctypes.CDLL, name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


_libc, _libpam = ctypes.CDLL(None), ctypes.CDLL("libpam.so.0")
_calloc = _prototype(_libc, "calloc", c_void_p, ctypes.c_size_t, ctypes.c_size_t)
_strdup = _prototype(_libc, "strdup", c_void_p, c_char_p)
_start = _prototype(
    _libpam, "pam_start_confdir", c_int, c_char_p, c_char_p, POINTER(_Conversation), c_char_p, POINTER(c_void_p)
)
_end = _prototype(_libpam, "pam_end", c_int, c_void_p, c_int)
_authenticate = _prototype(_libpam, "pam_authenticate", c_int, c_void_p, c_int)
_setcred = _prototype(_libpam, "pam_setcred", c_int, c_void_p, c_int)
_set_item = _prototype(_libpam, "pam_set_item", c_int, c_void_p, c_int, c_void_p)
_get_item = _prototype(_libpam, "pam_get_item", c_int, c_void_p, c_int, POINTER(c_void_p))


class PamError(Exception):
    """A failed call of libpam: pam_start_confdir, pam_set_item or pam_get_item."""


def service(confdir: StrPath, name: str, *lines: str, carry_authtok: bool = False) -> None:
    """Write the service file `name` (in lower case, which libpam requires) into the folder `confdir`.

    Only modules may access PAM_AUTHTOK. With `carry_authtok`, pam_echo prints a message before and after `lines`.
    During such a message, libpam treats the conversation as a part of the module, so `items={"authtok": …}` and
    `Login.authtok` work. `Login.authtok` is None if `requisite` or `die` ends the stack earlier. `Login.messages`
    omits the two messages.
    """
    if carry_authtok:
        lines = (f"auth optional pam_echo.so {_BEFORE}", *lines, f"auth optional pam_echo.so {_AFTER}")
    Path(confdir, name).write_text("".join(f"{line}\n" for line in lines))


def login(
    service: str,
    user: str | None,
    answers: Iterable[Answer] | Callable[[Shown], str | bytes | None],
    confdir: StrPath,
    *,
    items: Mapping[str, str] | None = None,
    flags: int = 0,
) -> Login:
    """Log `user` in at `service` once, and return the result. libpam asks for the name if `user` is None.

    Each prompt uses the next answer. The conversation fails at a prompt after the last answer. `answers` can also be a
    function, which `login` calls at every prompt. The conversation fails if a function raises an exception, and `login`
    raises the exception again. `items` are PAM items by lower-case name: rhost, ruser, tty, authtok …
    """
    with Session(service, user, answers, confdir, items=items) as session:
        return session.authenticate(flags)


class Session:
    """A PAM handle for repeated authentication (as in sudo), for credentials, and for items."""

    def __init__(
        self,
        service: str,
        user: str | None,
        answers: Iterable[Answer] | Callable[[Shown], str | bytes | None],
        confdir: StrPath,
        *,
        items: Mapping[str, str] | None = None,
    ) -> None:
        self._script = answers if callable(answers) else deque(answers)
        self._authtok_before = (items or {}).get("authtok")
        self._handle = c_void_p()
        self._result = 0
        self._failed: BaseException | None = None
        self._reset()
        # libpam keeps pointers to these two objects, so they must exist as long as the handle.
        self._conversation = _Conversation(_Converse(self._converse), None)
        self._fail_delay = _FailDelay(self._note_delay)
        result = _start(
            service.encode(),
            None if user is None else _bytes(user),
            byref(self._conversation),
            os.fsencode(confdir),
            byref(self._handle),
        )
        if result != Result.SUCCESS:
            raise PamError(f"pam_start_confdir failed: {result}")
        _set_item(self._handle, _ITEM_FAIL_DELAY, ctypes.cast(self._fail_delay, c_void_p))
        for name, value in (items or {}).items():
            if name != "authtok":
                self.set(name, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _end(self._handle, self._result)
        self._handle = c_void_p()

    def authenticate(self, flags: int = 0) -> Login:
        """Call pam_authenticate with `flags`. Return the result, with the prompts and messages."""
        self._reset()
        begun = time.monotonic()
        self._result = _authenticate(self._handle, flags)
        seconds = time.monotonic() - begun
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        return Login(
            result=Result(self._result),
            prompts=tuple(s for s in self._shown if s.style in (Style.PROMPT_ECHO_OFF, Style.PROMPT_ECHO_ON)),
            messages=tuple(s for s in self._shown if s.style in (Style.ERROR_MSG, Style.TEXT_INFO)),
            authtok=self._authtok,
            seconds=seconds,
            delay=self._delay,
            left=0 if callable(self._script) else len(self._script),
        )

    def setcred(self, flags: int = 0) -> Result:
        """Call pam_setcred with `flags`, and return the result."""
        self._result = _setcred(self._handle, flags)
        return Result(self._result)

    def set(self, name: str, value: str) -> None:
        """Set an item by its lower-case name. Applications set items between pam_start and pam_authenticate."""
        result = _set_item(self._handle, _ITEMS[name], _bytes(value))
        if result != Result.SUCCESS:
            raise PamError(f"pam_set_item failed for {name}: {Result(result).name}")

    def get(self, name: str) -> str | None:
        """Return an item by its lower-case name."""
        value = c_void_p()
        result = _get_item(self._handle, _ITEMS[name], byref(value))
        if result != Result.SUCCESS:
            raise PamError(f"pam_get_item failed for {name}: {Result(result).name}")
        return None if value.value is None else _text(ctypes.string_at(value.value))

    def _reset(self) -> None:
        self._shown: list[Shown] = []
        self._authtok: str | None = None
        self._delay = 0.0

    def _note_delay(self, result: int, microseconds: int, _data: object) -> None:
        self._delay = microseconds / 1e6 if result != Result.SUCCESS else 0.0

    def _converse(self, count: int, messages: Any, responses: Any, _data: object) -> int:
        """Answer the messages. calloc and strdup allocate the array and the texts, because libpam frees them."""
        try:
            shown = [Shown(Style(messages[i][0].style), _text(messages[i][0].text)) for i in range(count)]
            answers = [self._answer(message) for message in shown]
        except _NoAnswer:
            return Result.CONV_ERR
        except BaseException as error:  # ctypes would print the exception and continue
            self._failed = error
            return Result.CONV_ERR
        array = ctypes.cast(_calloc(count, ctypes.sizeof(_Response)), POINTER(_Response))
        for i, answer in enumerate(answers):
            array[i].text = None if answer is None else _strdup(answer)
        responses[0] = array
        return Result.SUCCESS

    def _answer(self, shown: Shown) -> bytes | None:
        """Return the answer to a prompt, or None for a message."""
        if shown == (Style.TEXT_INFO, _BEFORE):
            if self._authtok_before is not None:
                self.set("authtok", self._authtok_before)
            return None
        if shown == (Style.TEXT_INFO, _AFTER):
            self._authtok = self.get("authtok")
            return None
        self._shown.append(shown)
        if shown.style in (Style.ERROR_MSG, Style.TEXT_INFO):
            return None
        script = self._script
        answer: Answer = script if not isinstance(script, deque) else script.popleft() if script else None
        if callable(answer):
            answer = answer(shown)
        if answer is None:
            raise _NoAnswer
        return _bytes(answer)


class _NoAnswer(Exception):
    """The exception for a prompt without an answer. The conversation fails."""


def _bytes(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else os.fsencode(text)
    if b"\0" in raw:
        raise ValueError("text for libpam must not contain a NUL byte")
    return raw


def _text(raw: bytes) -> str:
    return os.fsdecode(raw)
