"""Begin one login on this host: from the relay's hello to a dialogue."""

from __future__ import annotations

import time

from pam_totp.core.fields import Value
from pam_totp.core.lean import TYPE_CHECKING, partial
from pam_totp.core.settings import Site, settings
from pam_totp.core.verify import verify
from pam_totp.operations import audit_log, grace
from pam_totp.operations.authenticate import Verify
from pam_totp.operations.dialogue import Dialogue, OpenStore
from pam_totp.pam.names import passwd_name
from pam_totp.pam.protocol import Hello
from pam_totp.store.file import FileStore
from pam_totp.store.secret_file import LastRead

if TYPE_CHECKING:
    from collections.abc import Callable


class Host(Value):
    """The site's settings, the log, the clock (UTC, whole seconds), the lookup of names, and the verification."""

    site: Site
    log: audit_log.Sink = staticmethod(audit_log.to_syslog)
    now: Callable[[], int] = staticmethod(lambda: int(time.time()))
    passwd_name: Callable[[str], str] = staticmethod(passwd_name)
    search: Verify = staticmethod(verify)  # for answers that need a long search


def begin(hello: Hello, host: Host) -> Dialogue:
    """Return the dialogue of the login that `hello` begins. Raise SettingsError or StoreError."""
    chosen = settings(hello.service, hello.arguments, host.site)
    user = host.passwd_name(chosen.user or hello.user)
    open_store: OpenStore = partial(FileStore, chosen.store, last=LastRead())
    if chosen.secret is not None:
        from pam_totp.store.home import home_store  # imported here because few hosts have secrets in home folders

        home_store(chosen.secret, user)  # raise its errors before a prompt
        open_store = partial(home_store, chosen.secret, user)
    # If several accounts share one record, the code of one account must not grant grace to another.
    has_grace = chosen.grace_period > 0 and chosen.user is None
    return Dialogue(
        chosen,
        user,
        open_store,
        origin=grace.origin(hello.service, hello.rhost) if has_grace else None,
        now=host.now,
        search=host.search,
        log=lambda verb, **fields: audit_log.write(
            host.log, hello.service, verb, user=user, **fields, rhost=hello.rhost
        ),
    )
