"""The dialogue of `enroll --ticket`: a user redeems a ticket through the service, without access to the store.

Rules:
- The service decides, and shows the key and the recovery codes. This module only relays prompts and answers.
- The service accepts only a ticket here. A code that the user enters by mistake is not used up.
- A user redeems only a ticket of their own account. Root can redeem the ticket of every user.
"""

from __future__ import annotations

import argparse
import os
import socket

from pam_totp.cli.command_line import DONE, OUT_OF_REACH, REFUSED, WRONG_USAGE, CommandError
from pam_totp.cli.printing import print_json
from pam_totp.cli.prompts import NO_ANSWER, answer_pam
from pam_totp.cli.store_access import caller_name
from pam_totp.client import DEFAULT_SOCKET
from pam_totp.core.answer import MAX_ANSWER
from pam_totp.core.settings import REDEEM_SERVICE
from pam_totp.pam.names import passwd_name
from pam_totp.pam.protocol import (
    MAX_PACKET,
    PAM_AUTH_ERR,
    PAM_CONV_ERR,
    PAM_SUCCESS,
    PROTOCOL_VERSION,
    TURN_WAIT,
    Hello,
)
from pam_totp.system.libpam import PROMPT_ECHO_OFF, PROMPT_ECHO_ON, TEXT_INFO

PROMPT = "Enrolment ticket: "
STYLES = {b"p": PROMPT_ECHO_OFF, b"P": PROMPT_ECHO_ON, b"i": TEXT_INFO, b"e": TEXT_INFO}
START = "start the service: 'systemctl start pam_totp.socket'"
WRONG_TICKET = "refused: the ticket is wrong, used or expired (ask for a new ticket)"
NOT_CONFIRMED = "enrolment failed; nothing was changed"


def redeem(args: argparse.Namespace) -> int:
    """Redeem the caller's ticket. Return the exit status. Raise CommandError."""
    ignored = set(vars(args)) - {"user", "ticket", "json", "run", "parser", "command", "audit", "issuer"}
    given = sorted(name for name in ignored if getattr(args, name) != args.parser.get_default(name))
    if given:
        raise CommandError("--ticket excludes the options of a new token: the ticket already has a token", WRONG_USAGE)
    user = passwd_name(_user(args))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(TURN_WAIT)
        try:
            channel.connect(DEFAULT_SOCKET)
            result, prompts = _converse(channel, user)
        except OSError as e:
            reason = "no answer in time" if isinstance(e, TimeoutError) else (e.strerror or str(e)).lower()
            raise CommandError(f"{DEFAULT_SOCKET}: {reason} ({START})", OUT_OF_REACH) from None
    _check(result, prompts, user)
    if args.json:
        print_json({"user": user, "enrolled": True})
    else:
        print(f"{user} is enrolled; the token of the ticket replaces all earlier tokens")
    return DONE


def _user(args: argparse.Namespace) -> str:
    if args.user is None and os.getuid() == 0:
        raise CommandError(f"missing USER argument (see '{args.parser.prog} --help')", WRONG_USAGE)
    return str(args.user or caller_name())


def _converse(channel: socket.socket, user: str) -> tuple[int | None, int]:
    """Carry out one login. Return the PAM result and the number of prompts. The result is None if the service closed
    the connection early.
    """
    arguments = (f"prompt={PROMPT}", "no_second_prompt")
    channel.send(Hello(version=PROTOCOL_VERSION, service=REDEEM_SERVICE, user=user, arguments=arguments).packet())
    prompts = 0
    while packet := channel.recv(MAX_PACKET + 1):
        kind, body = packet[:1], packet[1:]
        if kind == b"r" and body.isdigit():
            return int(body), prompts
        if kind == b"g":
            channel.send(b"N")
        elif kind in STYLES:
            answer = answer_pam(STYLES[kind], body.decode("utf-8", "replace"))
            if kind in (b"p", b"P"):
                prompts += 1
                channel.send(b"N" if answer is None else b"A" + _sendable(answer))
        else:
            break
    return None, prompts


def _sendable(answer: bytes) -> bytes:
    """Return the answer, or an empty answer if no packet can hold it."""
    return answer if len(answer) <= MAX_ANSWER and b"\0" not in answer else b""


def _check(result: int | None, prompts: int, user: str) -> None:
    """Raise CommandError unless the user is enrolled."""
    if result == PAM_SUCCESS:
        return
    if result == PAM_AUTH_ERR and prompts == 0:
        raise CommandError(f"permission denied: only root can redeem a ticket of {user}", OUT_OF_REACH)
    if result == PAM_AUTH_ERR:
        raise CommandError(WRONG_TICKET if prompts == 1 else NOT_CONFIRMED, REFUSED)
    if result == PAM_CONV_ERR:
        raise CommandError(NO_ANSWER, REFUSED)
    raise CommandError("the service cannot decide (see its log)", OUT_OF_REACH)
