"""The state of this host as a member of a fleet, read by the owner of its credentials, for `pam-totp doctor`.

Rules:
1. A child process with the account that owns the files, not root, opens the connections and reads the key.
2. The only change is the completion of an interrupted renewal.
"""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from pam_totp.core.settings import MemberSettings
from pam_totp.member import health, joining
from pam_totp.member.credentials import Credentials
from pam_totp.member.health import Seen
from pam_totp.store import NotThere, Store, StoreError
from pam_totp.store.file import file_name
from pam_totp.system.store_owner import BROKEN, Report, as_owner, as_owner_of

__all__ = ["WAIT", "Codes", "Local", "Seen", "State", "local_of", "state_of"]

WAIT = 5.0  # seconds for the answers of all authorities together
_MISFIT = "KEY_VALUES_MISMATCH"  # of OpenSSL
_SEEN, _ENDS, _TOKENS, _CODES = "seen", "ends", "tokens", "codes"  # kinds of reports


class State(NamedTuple):
    """The answers of the authorities, and the end of the certificate in Unix seconds.

    `problem` is the reason if the credentials cannot be used. `answers` is then empty, also after the end of the
    certificate. `ends` is None if the end is unknown.
    """

    answers: tuple[Seen, ...] = ()
    ends: int | None = None
    problem: str | None = None


class Codes(NamedTuple):
    """The recovery codes of a user for break-glass: their number, and the last change in Unix seconds."""

    user: str
    left: int
    changed: int


class Local(NamedTuple):
    """The content of a member's store: codes for break-glass, and the users with tokens.

    `problem` is the reason if the store cannot be read.
    """

    codes: tuple[Codes, ...] = ()
    with_tokens: tuple[str, ...] = ()
    problem: str | None = None


def state_of(settings: MemberSettings) -> State:
    """Return the state of the member with `settings`."""

    def read() -> Iterator[Report]:
        ends = None
        with suppress(StoreError, ValueError):  # openssl is missing, or the file is invalid
            ends = joining.validity(settings.certificate).end
            yield _ENDS, str(ends)
        try:
            context = Credentials.of(settings).context()
        except StoreError as e:
            cause = e.__cause__
            is_misfit = isinstance(cause, ssl.SSLError) and cause.reason == _MISFIT
            yield BROKEN, f"{settings.key}: must be the key of {settings.certificate}" if is_misfit else str(e)
            return
        if ends is not None and ends <= time.time():
            return
        for seen in health.look(settings.authorities, context, WAIT):
            yield _SEEN, json.dumps(seen)

    seen, ends, problem = [], None, None
    for kind, text in as_owner_of(os.path.dirname(settings.key), read):
        if kind == BROKEN:
            problem = text
        elif kind == _ENDS:
            ends = int(text)
        else:
            seen.append(Seen(*json.loads(text)))
    return State(tuple(seen), ends, problem)


def local_of(folder: str) -> Local:
    """Return the content of the store in `folder`."""

    def read(store: Store) -> Iterator[Report]:
        for user in store.users():
            try:
                record = store.read(user)
            except (NotThere, StoreError):  # another check reports the error
                continue
            if record.tokens:
                yield _TOKENS, user
            elif record.salt is not None:  # without a token, a record with a salt has codes for break-glass
                changed = os.stat(os.path.join(folder, f"{file_name(user)}.record")).st_mtime
                yield _CODES, json.dumps((user, len(record.recovery), int(changed)))

    codes, tokens, problem = [], [], None
    for kind, text in as_owner(folder, read):
        if kind == BROKEN:
            problem = text
        elif kind == _TOKENS:
            tokens.append(text)
        else:
            codes.append(Codes(*json.loads(text)))
    return Local(tuple(sorted(codes)), tuple(sorted(tokens)), problem)
