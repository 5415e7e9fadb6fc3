"""pam_totp as an ordinary PAM module, in Python: ask for a code, look at it, say yes or no.

The law: only SUCCESS and IGNORE let anybody pass; the person is told the same whatever the reason of a refusal was;
no lock is held while a person is being asked.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Iterator, Sequence

from pam_totp import answer as answers
from pam_totp import audit
from pam_totp.pam import grace
from pam_totp.pam.handle import (
    PAM_AUTH_ERR,
    PAM_AUTHINFO_UNAVAIL,
    PAM_CONV_ERR,
    PAM_ERROR_MSG,
    PAM_IGNORE,
    PAM_PROMPT_ECHO_OFF,
    PAM_PROMPT_ECHO_ON,
    PAM_SERVICE_ERR,
    PAM_SILENT,
    PAM_SUCCESS,
    PAM_TEXT_INFO,
    ConversationError,
    PamHandle,
)
from pam_totp.record import UserRecord
from pam_totp.settings import Settings, SettingsError, Site, settings
from pam_totp.store import NotThere, Store, StoreError
from pam_totp.store.file import FileStore
from pam_totp.store.home import home_store
from pam_totp.values import Value
from pam_totp.verify import Decision, Outcome, verify

REFUSED = "refused; if the code was right, enter two codes in a row, or three"
REFUSAL_TAKES = 0.1  # seconds after the answer: longer than any disk that is in order, so that its time says nothing
_ANY_LENGTH = {6, 7, 8}  # digits
_NOBODY = UserRecord(user="nobody")


def passwd_name(user: str) -> str:
    """The name as the user's passwd entry spells it, or the given one where there is no entry."""
    try:
        return pwd.getpwnam(user).pw_name
    except (KeyError, ValueError):  # no such entry; a name that cannot be one
        return user


class Host(Value):
    """What a login takes from the machine it runs on."""

    site: Site
    now: Callable[[], int]
    log: audit.Sink
    passwd_name: Callable[[str], str] = staticmethod(passwd_name)
    open_store: Callable[[str], Store] = FileStore
    open_home_store: Callable[[str, str], Store] = staticmethod(home_store)


def this_host(site: Site, log: audit.Sink = audit.to_syslog) -> Host:
    """The real clock (UTC, whole seconds) and the real file store."""
    return Host(site=site, now=lambda: int(time.time()), log=log)


def pam_sm_authenticate(pamh: PamHandle, flags: int, argv: Sequence[str], host: Host | None = None) -> int:
    """Authenticate `pamh.user` by one code, codes in a row, or a recovery code; `argv` are the module's arguments.

    Returns a PAM result (see DESIGN's table); raises nothing that a caller must know about but ProtocolError.
    """
    if host is None:
        host = this_host(Site.NONE)
    try:
        chosen = settings(pamh.service, argv, host.site)
    except SettingsError as e:
        audit.write(host.log, pamh.service, "error", user=pamh.user, rhost=pamh.rhost, problem=str(e))
        return PAM_SERVICE_ERR
    login = _Login(pamh, bool(flags & PAM_SILENT), chosen, host)
    try:
        return login.run()
    except StoreError as e:
        login.log("error", problem=str(e))
        return PAM_AUTHINFO_UNAVAIL
    except ConversationError:
        login.log("refused", reason="no-answer")
        return PAM_CONV_ERR


def pam_sm_setcred(pamh: PamHandle, flags: int, argv: Sequence[str]) -> int:
    """Codes give no credentials. The relay answers this by itself."""
    return PAM_SUCCESS


class _Login:
    """One call of pam_sm_authenticate."""

    def __init__(self, pamh: PamHandle, silent: bool, chosen: Settings, host: Host) -> None:
        self._pamh = pamh
        self._silent = silent
        self._settings = chosen
        self._host = host
        self._user = host.passwd_name(chosen.user or pamh.user)
        # Where several accounts share the record of `user=`, one's code must not let another one in.
        self._grace_at = grace.place(pamh.service, pamh.rhost) if chosen.grace_period and chosen.user is None else None

    def run(self) -> int:
        if self._settings.debug:
            facts = self._settings.facts().items()
            self.log("debug", **{n: "yes" if v is True else v for n, v in facts if v is not False and n != "user"})
        template = self._settings.secret
        if template is None:
            self._store = self._host.open_store(self._settings.store)
        else:
            self._store = self._host.open_home_store(template, self._user)
        if self._settings.nullok or self._grace_at is not None:
            known = self._known()
            if self._settings.nullok and not known.enrolled:
                self.log("ignored", reason=Outcome.NOT_ENROLLED.value)
                return PAM_IGNORE
            if self._has_grace(known):
                self.log("accepted", by="grace")
                return PAM_SUCCESS
        for answer in self._answers():
            answered = time.monotonic()
            decision = self._decide(answer)
            if decision.outcome.accepted:
                self._welcome(decision)
                return PAM_SUCCESS
            self.log("refused", reason=decision.outcome.value, token=decision.token)
            time.sleep(max(0.0, answered + REFUSAL_TAKES - time.monotonic()))
        self._say(PAM_ERROR_MSG, REFUSED)
        return PAM_AUTH_ERR

    def log(self, verb: str, **fields: str | int | None) -> None:
        audit.write(self._host.log, self._pamh.service, verb, user=self._user, **fields, rhost=self._pamh.rhost)

    def _known(self) -> UserRecord:
        try:
            return self._store.read(self._user)
        except NotThere:
            return _NOBODY

    def _has_grace(self, record: UserRecord) -> bool:
        chosen = self._settings
        return self._grace_at is not None and grace.holds(
            record, self._grace_at, self._host.now(), chosen.grace_period, chosen.policy
        )

    def _answers(self) -> Iterator[bytes]:
        """What there is to try: the first pass, then what the person says."""
        if self._settings.first_pass in ("try_first_pass", "use_first_pass"):
            first = self._pamh.authtok
            if first is not None:
                yield first
            if self._settings.first_pass == "use_first_pass":
                return
        style = PAM_PROMPT_ECHO_ON if self._settings.echo else PAM_PROMPT_ECHO_OFF
        response = self._pamh.conversation(self._pamh.Message(style, self._settings.prompt)).resp
        yield response if response is not None else b""

    def _decide(self, answer: bytes) -> Decision:
        """Verify; what was decided is durable before anybody knows of it. A password in front of the code is handed on,
        whatever the code is worth: what the next module does must not tell."""
        forwarding = self._settings.first_pass == "forward_pass"
        password, code = answers.behind_password(answer, _ANY_LENGTH) if forwarding else (b"", answer)

        def change(record: UserRecord) -> tuple[UserRecord, Decision]:
            nonlocal password, code
            if forwarding and record.enrolled:
                password, code = answers.behind_password(answer, {t.digits for t in record.tokens if t.active})
            now = self._host.now()
            decision = verify(record, code, now, self._settings.policy, recovery_codes=not forwarding)
            after = decision.record
            if self._grace_at is not None and decision.outcome in (Outcome.CODE, Outcome.ROW):
                after = grace.granted(after, self._grace_at, now)
            return after, decision

        try:
            decision = self._store.update(self._user, change)
        except NotThere:
            decision = Decision(outcome=Outcome.NOT_ENROLLED, record=_NOBODY)
        if decision.outcome is Outcome.NOT_ENROLLED and answers.codes(code, _ANY_LENGTH) is not None:
            self._store.update_nobody()
        if password:
            self._pamh.authtok = password
        return decision

    def _welcome(self, decision: Decision) -> None:
        record, refused = decision.record, decision.refused_before
        recovery_left = len(record.recovery) if decision.outcome is Outcome.RECOVERY else None
        self.log(
            "accepted",
            by=decision.outcome.value,
            token=decision.token,
            recovery_left=recovery_left,
            refused_before=refused or None,
        )
        if recovery_left is not None:
            self._say(PAM_TEXT_INFO, f"recovery code used, {recovery_left} left")
        if refused:
            what = "1 answer was" if refused == 1 else f"{refused} answers were"
            self._say(PAM_TEXT_INFO, f"{what} refused since the last login")

    def _say(self, style: int, text: str) -> None:
        if not self._silent:
            self._pamh.conversation(self._pamh.Message(style, text))
