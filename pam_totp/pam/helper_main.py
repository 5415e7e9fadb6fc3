"""The helper: a process that the relay starts for one login.

Rules:
1. Before it reads a store, the helper drops root's rights: it becomes the store's owner or, with `secret=`, the user.
2. Every module is imported before that, because the new account may not be able to read this package.
3. An error before the login gives PAM_SERVICE_ERR or PAM_AUTHINFO_UNAVAIL. Both deny.
"""

from __future__ import annotations

import os
import socket

from pam_totp.core.settings import DEFAULT_STORE, SITE_FILE, SettingsError, parse_arguments
from pam_totp.operations import audit_log
from pam_totp.pam.login_session import read_site, serve_one
from pam_totp.pam.module import Host, passwd_name, this_host
from pam_totp.pam.pam_handle import PAM_AUTHINFO_UNAVAIL, PAM_SERVICE_ERR, Hello
from pam_totp.pam.privileges import become_owner_of, become_user, lift_limits

CHANNEL = 3  # descriptor


def main() -> None:
    """Serve the login on descriptor 3. Exit without the interpreter's clean-up, because the relay is waiting."""
    with socket.socket(fileno=CHANNEL) as channel:
        serve_one(channel, audit_log.to_syslog, _prepare)
    os._exit(0)


def _prepare(hello: Hello) -> tuple[Hello, Host] | int:
    lift_limits()
    if os.path.exists(SITE_FILE):
        import tomllib  # noqa: F401  for `read_site`, while this process can read any folder
    try:
        arguments = parse_arguments(hello.arguments)
        if "secret" in arguments:
            become_user(passwd_name(str(arguments.get("user", hello.user))))
        else:
            become_owner_of(str(arguments.get("store", DEFAULT_STORE)))
        return hello, this_host(read_site())
    except SettingsError as e:
        audit_log.write(audit_log.to_syslog, hello.service, "error", user=hello.user, problem=str(e))
        return PAM_SERVICE_ERR
    except OSError as e:
        audit_log.write(
            audit_log.to_syslog,
            hello.service,
            "error",
            user=hello.user,
            problem=f"{e.filename or 'helper'}: {e.strerror}",
        )
        return PAM_AUTHINFO_UNAVAIL
