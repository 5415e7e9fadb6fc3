"""The start of a login on this host: from the relay's hello to a dialogue."""

from __future__ import annotations

import time

from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING, partial
from pam_totp.core.settings import DEFAULT_STORE, REDEEM_SERVICE, MemberSettings, Settings, Site, settings
from pam_totp.core.verify import verify
from pam_totp.operations import audit_log, grace
from pam_totp.operations.authenticate import Origin, Verify
from pam_totp.operations.conversation import Log
from pam_totp.operations.dialogue import Dialogue
from pam_totp.operations.tickets import tickets_of
from pam_totp.operations.verifier import UNKNOWN_ACCOUNT, LocalVerifier, OpenStore, Verifier
from pam_totp.pam.names import is_member, name_of_uid, passwd_name
from pam_totp.pam.protocol import Hello
from pam_totp.store import NoAccount, NotThere, StoreError
from pam_totp.store.locations import opened
from pam_totp.store.secret_file import LastRead

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SSHD_TTY = "ssh"  # PAM_TTY of every login through sshd, for all names of the PAM service


class Host(Value):
    """The site's settings, the log, the clock (UTC, whole seconds), the lookups of names, and the verification.

    `count` gets the verb and the fields of each line about an answer, and raises no exception.

    `store` has the records for break-glass if the host is a member.
    """

    site: Site
    store: str = DEFAULT_STORE
    log: audit_log.Sink = staticmethod(audit_log.to_syslog)
    now: Callable[[], int] = staticmethod(lambda: int(time.time()))
    passwd_name: Callable[[str], str] = staticmethod(passwd_name)
    name_of_uid: Callable[[str], str | None] = staticmethod(name_of_uid)
    is_member: Callable[[str, str], bool] = staticmethod(is_member)  # user, group
    search: Verify = staticmethod(verify)  # for answers that need a long search
    count: Callable[[str, Mapping[str, object]], None] = staticmethod(lambda verb, fields: None)


class _Login(Value):
    """One login: its settings, the name in the passwd entry, its key of grace, and its log."""

    chosen: Settings
    user: str
    hello: Hello
    host: Host
    origin: tuple[str, str] | None
    log: Log

    @property
    def came_from(self) -> Origin:
        return Origin(service=self.hello.service, rhost=self.hello.rhost)


def begin(hello: Hello, host: Host) -> Dialogue:
    """Return the dialogue of the login that `hello` begins. Raise SettingsError or StoreError."""
    chosen = settings(hello.service, hello.arguments, host.site)
    if hello.service == REDEEM_SERVICE:
        chosen = chosen._replace(nullok=False, grace_period=0, first_pass=None)
    user = host.passwd_name(chosen.user or hello.user)
    # The code of one account must not grant grace to another account with the same record. With `forward_pass`, a
    # missing prompt would show an attacker without the password that the last code was right.
    has_grace = chosen.grace_period > 0 and chosen.user is None and chosen.first_pass != "forward_pass"
    origin = grace.origin(hello.service, hello.rhost) if has_grace else None

    def log(verb: str, **fields: str | int | None) -> None:
        audit_log.write(host.log, hello.service, verb, user=user, **fields, rhost=hello.rhost)
        host.count(verb, fields)

    login = _Login(chosen=chosen, user=user, hello=hello, host=host, origin=origin, log=log)
    verifier = _local(login) if chosen.member is None else _remote(login, chosen.member)
    return Dialogue(chosen, verifier, log=log, is_sshd=hello.tty == SSHD_TTY)


def _local(login: _Login) -> Verifier:
    """Return a verifier over the store of this login. Raise StoreError before a prompt."""
    chosen, site = login.chosen, login.host.site
    open_store = _store_of(chosen, login.user, site)
    open_store(0.0)

    def is_enrolled(name: str, lock_wait: float) -> bool:
        try:
            return _store_of(chosen, name, site)(lock_wait).read(name).enrolled
        except NoAccount:
            raise StoreError(UNKNOWN_ACCOUNT) from None
        except NotThere:
            return False

    return LocalVerifier(
        chosen,
        login.user,
        open_store,
        origin=login.origin,
        came_from=login.came_from,
        now=login.host.now,
        check_account=_check_of(login, is_enrolled),
        search=login.host.search,
        tickets=tickets_of(login.chosen, login.hello.service),
    )


def _remote(login: _Login, member: MemberSettings) -> Verifier:
    """Return a verifier that asks the authorities."""
    from pam_totp.member.decisions import Asked, RemoteVerifier  # imported here because it loads ssl

    chosen, hello, host = login.chosen, login.hello, login.host
    verifier: RemoteVerifier = RemoteVerifier(
        chosen,
        member,
        Asked(user=login.user, service=hello.service, rhost=hello.rhost, tty=hello.tty),
        partial(opened, host.store, last=LastRead()),
        nullok=chosen.nullok_at(host.now()),
        asks_grace=login.origin is not None,
        came_from=login.came_from,
        now=host.now,
        check_account=_check_of(login, lambda name, _: verifier.is_enrolled(name)),
        log=login.log,
        tickets=tickets_of(login.chosen, login.hello.service),
    )
    return verifier


def _store_of(chosen: Settings, user: str, site: Site) -> OpenStore:
    if chosen.secret is None:
        return partial(opened, chosen.store, last=LastRead(), database=site.database)
    from pam_totp.store.home import home_store  # imported here because few hosts have secrets in home folders

    return partial(home_store, chosen.secret, user)


def _check_of(login: _Login, is_enrolled: Callable[[str, float], bool]) -> Callable[[float], bool]:
    """Return the check that `nullok` requires before a login without a code (law 10). Look up the names if `nullok` is
    set.

    The check raises StoreError if an account is unknown, or if the user's account has another name that is enrolled.
    The check returns False if `nullok_group` does not contain the account that logs in. The arguments of `is_enrolled`
    are a name, and the longest wait for a lock in seconds.
    """
    chosen, user, hello, host = login.chosen, login.user, login.hello, login.host
    name = host.name_of_uid(user) if chosen.nullok else None
    is_known = name is not None and (chosen.user is None or host.name_of_uid(hello.user) is not None)

    def check(lock_wait: float) -> bool:
        if not is_known or name is None:
            raise StoreError(UNKNOWN_ACCOUNT)
        if name != user and is_enrolled(name, lock_wait):
            raise StoreError(f"the account is enrolled as {name} (log in with that name)")
        return chosen.nullok_group is None or host.is_member(hello.user, chosen.nullok_group)

    return check
