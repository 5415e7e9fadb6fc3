"""The PAM module for hosts that load modules in Python, such as pam_python: `relay.c` in Python, without a service."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from pam_totp.core.settings import Site
from pam_totp.operations.dialogue import Dialogue
from pam_totp.pam.admission import only_with_second_prompt
from pam_totp.pam.login import Host, begin
from pam_totp.pam.login_session import Session, drive
from pam_totp.pam.protocol import PAM_AUTHINFO_UNAVAIL, PAM_SUCCESS, PROTOCOL_VERSION, Hello


def pam_sm_authenticate(pamh: Any, flags: int, argv: Sequence[str], host: Host | None = None) -> int:
    """Authenticate the user of `pamh`. `argv` are the module's arguments.

    Return a PAM result: PAM_SUCCESS, PAM_AUTH_ERR (refused), PAM_IGNORE (`nullok`), PAM_AUTHINFO_UNAVAIL (the store
    cannot be reached), PAM_CONV_ERR (no answer) or PAM_SERVICE_ERR (invalid settings).
    """
    here = host or Host(site=Site.NONE)
    relay = _Relay(pamh, flags, argv)

    def begin_here(hello: Hello) -> Dialogue:
        return begin(hello if os.geteuid() == 0 else only_with_second_prompt(hello), here)

    drive(Session(relay.send, here.log, begin_here), relay.receive)
    return relay.result


def pam_sm_setcred(pamh: Any, flags: int, argv: Sequence[str]) -> int:
    """Return PAM_SUCCESS, because codes give no credentials."""
    return PAM_SUCCESS


class _Relay:
    """The relay in Python. `pamh` replaces libpam's handle."""

    def __init__(self, pamh: Any, flags: int, argv: Sequence[str]) -> None:
        items = {name: getattr(pamh, name) for name in ("service", "rhost", "ruser", "tty")}
        hello = Hello(version=PROTOCOL_VERSION, user=pamh.get_user(None), flags=flags, arguments=tuple(argv), **items)
        self._pamh = pamh
        self._reply = hello.packet()
        self.result = PAM_AUTHINFO_UNAVAIL  # until the session sends the result

    def receive(self, _: float) -> bytearray:
        reply, self._reply = self._reply, b""
        return bytearray(reply)

    def send(self, kind: bytes, body: bytes | memoryview = b"") -> None:
        pamh, text = self._pamh, str(body, "utf-8", "surrogateescape")
        styles = {
            b"p": pamh.PAM_PROMPT_ECHO_OFF,
            b"P": pamh.PAM_PROMPT_ECHO_ON,
            b"e": pamh.PAM_ERROR_MSG,
            b"i": pamh.PAM_TEXT_INFO,
        }
        if kind == b"r":
            self.result = int(text)
        elif kind == b"s":
            pamh.authtok = text
        else:
            answer = pamh.authtok if kind == b"g" else pamh.conversation(pamh.Message(styles[kind], text)).resp
            self._reply = b"N" if answer is None else b"A" + answer.encode("utf-8", "surrogateescape")
