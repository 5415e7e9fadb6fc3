"""One login over one channel: hello, dialogue, result. The service and the helper both use it.

Rules:
1. Every error ends the login without a result, and the relay then denies.
2. An unexpected exception is a bug. The log names its type and place only, because its text could contain a secret.
3. A site file is used only if root and this process's account alone can write it.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable

from pam_totp.core.settings import SITE_FILE, SettingsError, Site, parse_site
from pam_totp.operations import audit_log
from pam_totp.pam.module import Host, pam_sm_authenticate
from pam_totp.pam.pam_handle import (
    HELLO_WAIT,
    PAM_SERVICE_ERR,
    PROTOCOL_VERSION,
    Channel,
    Hello,
    PamHandle,
    ProtocolError,
    parse_hello,
)

MAX_SITE_FILE = 256 * 1024  # bytes


def read_site(path: str = SITE_FILE) -> Site:
    """Return the content of the site file; `Site.NONE` if there is no file.

    Raise SettingsError if the file is not valid, cannot be read, or could have been written by an untrusted account.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return Site.NONE
    except OSError as e:
        raise SettingsError(f"{path}: {(e.strerror or str(e)).lower()}") from e
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise SettingsError(f"{path}: must be a regular file that only root can write")
        with open(file, "rb", closefd=False) as opened:  # a file object continues after a short read
            text = opened.read(MAX_SITE_FILE + 1)
        if len(text) > MAX_SITE_FILE:
            raise SettingsError(f"{path}: must be at most {MAX_SITE_FILE} bytes")
        return parse_site(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: must be UTF-8") from None
    except OSError as e:
        raise SettingsError(f"{path}: {(e.strerror or str(e)).lower()}") from e
    finally:
        os.close(file)


def serve_one(sock: socket.socket, log: audit_log.Sink, prepare: Callable[[Hello], tuple[Hello, Host] | int]) -> None:
    """Serve one login over `sock`.

    `prepare` returns the admitted hello and its host, or the PAM result of a refused login. Any error ends the login
    without a result, and the relay then denies it.
    """
    channel = Channel(sock)
    service = "?"
    try:
        hello = parse_hello(*channel.receive(HELLO_WAIT))
        service = hello.service
        result = _result(channel, hello, prepare)
        channel.send(b"r", str(result).encode("ascii"))
    except ProtocolError as e:
        audit_log.write(log, service, "error", problem=str(e))
    except Exception as e:  # a bug (rule 2): deny, and log its place
        place = e.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else "?"
        audit_log.write(log, service, "error", problem=f"{type(e).__name__} at {where}")


def _result(channel: Channel, hello: Hello, prepare: Callable[[Hello], tuple[Hello, Host] | int]) -> int:
    if hello.version != PROTOCOL_VERSION:
        return PAM_SERVICE_ERR
    prepared = prepare(hello)
    if isinstance(prepared, int):
        return prepared
    admitted, host = prepared
    return pam_sm_authenticate(PamHandle(channel, admitted), admitted.flags, admitted.arguments, host)
