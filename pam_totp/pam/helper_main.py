"""The helper: a process that the relay starts for one login.

Rules:
1. The helper drops root's rights before it reads a store: it becomes the store's owner or, with `secret=`, the user.
   On a member, the helper becomes the owner of the credentials before it reads the credentials. As root, the helper
   only opens the keyring of a sealed store (`seal_key`).
2. The helper imports all modules of this package before it drops these rights, because the new account might be unable
   to read them.
3. The helper imports slow modules of the standard library only if it uses them, because the user waits for every
   import.
4. Only a child process opens a file in a home folder, so that the host process can reap this process at any time.
5. An error before the login gives PAM_SERVICE_ERR or PAM_AUTHINFO_UNAVAIL. Both deny.
"""

from __future__ import annotations

import os
from _socket import socket

from pam_totp.core.settings import DEFAULT_STORE, SITE_FILE, is_database, parse_arguments
from pam_totp.operations import audit_log
from pam_totp.operations.dialogue import Dialogue
from pam_totp.pam import login
from pam_totp.pam.inheritance import callers_cgroup
from pam_totp.pam.login_session import drive_over, read_site
from pam_totp.pam.names import passwd_name
from pam_totp.pam.privileges import act_as_owner_of, act_as_root, become_owner_of, become_user
from pam_totp.pam.protocol import Hello
from pam_totp.store import StoreError, seal_key

CHANNEL = 3  # descriptor
NEEDS_SERVICE = "a store in a database needs the service (run 'systemctl start pam_totp.socket')"


def main() -> None:
    """Serve the login on descriptor 3. Exit without the interpreter's clean-up, because the relay is waiting."""
    channel = socket(fileno=CHANNEL)
    os.set_inheritable(CHANNEL, False)  # systemd-creds, which decrypts the seal's key, must not hold the channel open
    drive_over(channel, audit_log.to_syslog, _begin)
    os._exit(0)


def _begin(hello: Hello) -> Dialogue:
    """Drop root's rights, and return the dialogue. Raise SettingsError or StoreError."""
    if os.geteuid() != 0:  # this import may be late, because this process has no rights to drop
        from pam_totp.pam.admission import only_with_second_prompt

        hello = only_with_second_prompt(hello)
    if os.path.exists(SITE_FILE):
        import tomllib  # noqa: F401  for `read_site`, while this process can read any folder
    arguments = parse_arguments(hello.arguments)
    if "debug" in arguments and os.geteuid() == 0 and (cgroup := callers_cgroup()) is not None:
        audit_log.write(audit_log.to_syslog, hello.service, "debug", user=hello.user, callers_cgroup=cgroup)
    try:
        if "secret" in arguments:
            import pam_totp.store.home  # noqa: F401  for `login.begin`

            _continue_in_child()
            become_user(passwd_name(str(arguments.get("user", hello.user))))
        elif is_database(store := str(arguments.get("store", DEFAULT_STORE))):
            raise StoreError(NEEDS_SERVICE)
        else:
            seal_key.hold()
            if "store" in arguments or not os.path.exists(SITE_FILE):
                become_owner_of(store)
            else:
                _become_owner()
    except OSError as e:
        raise StoreError(f"{e.filename or 'helper'}: {e.strerror}") from e
    site = read_site()
    if site.database is not None and arguments.keys().isdisjoint({"store", "secret"}):
        raise StoreError(NEEDS_SERVICE)
    return login.begin(hello, login.Host(site=site))


def _become_owner() -> None:
    """Become the owner of the default store or, on a member (see the site file), of the credentials. Read the site file
    with the rights of the owner of the default store. Raise OSError or SettingsError.
    """
    act_as_owner_of(DEFAULT_STORE)
    member = read_site().member
    act_as_root()
    if member is None:
        become_owner_of(DEFAULT_STORE)
    else:
        import pam_totp.member.decisions  # noqa: F401  for `login.begin`

        become_owner_of(os.path.dirname(member.key))


def _continue_in_child() -> None:
    """Continue the login in a child process. This process waits until the child has ended, and exits.

    A signal cannot kill the child while the child waits for a hung file system. Init reaps the child, so that the host
    process need not wait.
    """
    child = os.fork()
    if child == 0:
        return
    os.close(CHANNEL)
    os.waitpid(child, 0)
    os._exit(0)
