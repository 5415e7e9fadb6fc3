"""Begin one login on this host: from the relay's hello to a dialogue."""

from __future__ import annotations

import time

from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING, partial
from pam_totp.core.settings import Settings, Site, settings
from pam_totp.core.verify import verify
from pam_totp.operations import audit_log, grace
from pam_totp.operations.authenticate import Verify
from pam_totp.operations.dialogue import Dialogue
from pam_totp.operations.verifier import UNKNOWN_ACCOUNT, LocalVerifier, OpenStore
from pam_totp.pam.names import is_member, name_of_uid, passwd_name
from pam_totp.pam.protocol import Hello
from pam_totp.store import NoAccount, NotThere, StoreError
from pam_totp.store.locations import opened
from pam_totp.store.secret_file import LastRead

if TYPE_CHECKING:
    from collections.abc import Callable

SSHD_TTY = "ssh"  # PAM_TTY of every login through sshd, under any name of the PAM service


class Host(Value):
    """The site's settings, the log, the clock (UTC, whole seconds), the lookups of names, and the verification."""

    site: Site
    log: audit_log.Sink = staticmethod(audit_log.to_syslog)
    now: Callable[[], int] = staticmethod(lambda: int(time.time()))
    passwd_name: Callable[[str], str] = staticmethod(passwd_name)
    name_of_uid: Callable[[str], str | None] = staticmethod(name_of_uid)
    is_member: Callable[[str, str], bool] = staticmethod(is_member)  # user, group
    search: Verify = staticmethod(verify)  # for answers that need a long search


def begin(hello: Hello, host: Host) -> Dialogue:
    """Return the dialogue of the login that `hello` begins. Raise SettingsError or StoreError."""
    chosen = settings(hello.service, hello.arguments, host.site)
    user = host.passwd_name(chosen.user or hello.user)
    open_store = _store_of(chosen, user, host.site)
    open_store(0.0)  # raise its errors before a prompt
    # If several accounts share one record, the code of one account must not grant grace to another. With
    # `forward_pass`, a missing prompt would show an attacker without the password that the last code was right.
    has_grace = chosen.grace_period > 0 and chosen.user is None and chosen.first_pass != "forward_pass"
    verifier = LocalVerifier(
        chosen,
        user,
        open_store,
        origin=grace.origin(hello.service, hello.rhost) if has_grace else None,
        now=host.now,
        check_account=_check_of(user, hello, chosen, host),
        search=host.search,
    )
    return Dialogue(
        chosen,
        verifier,
        log=lambda verb, **fields: audit_log.write(
            host.log, hello.service, verb, user=user, **fields, rhost=hello.rhost
        ),
        is_sshd=hello.tty == SSHD_TTY,
    )


def _store_of(chosen: Settings, user: str, site: Site) -> OpenStore:
    if chosen.secret is None:
        return partial(opened, chosen.store, last=LastRead(), database=site.database)
    from pam_totp.store.home import home_store  # imported here because few hosts have secrets in home folders

    return partial(home_store, chosen.secret, user)


def _check_of(user: str, hello: Hello, chosen: Settings, host: Host) -> Callable[[float], bool]:
    """Return the check that `nullok` needs before it lets `user` in (law 10). With `nullok`, look up the names now.

    The check raises StoreError if an account is unknown, or if the account of `user` has another name that is enrolled.
    It returns False if the account that logs in is not a member of `nullok_group`.
    """
    name = host.name_of_uid(user) if chosen.nullok else None
    is_known = name is not None and (chosen.user is None or host.name_of_uid(hello.user) is not None)

    def check(lock_wait: float) -> bool:
        if not is_known or name is None:
            raise StoreError(UNKNOWN_ACCOUNT)
        if name != user:
            try:
                is_enrolled = _store_of(chosen, name, host.site)(lock_wait).read(name).enrolled
            except NoAccount:
                raise StoreError(UNKNOWN_ACCOUNT) from None
            except NotThere:
                is_enrolled = False
            if is_enrolled:
                raise StoreError(f"the account is enrolled as {name}: log in with that name")
        return chosen.nullok_group is None or host.is_member(hello.user, chosen.nullok_group)

    return check
