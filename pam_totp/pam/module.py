"""The PAM module in Python: ask for a code, verify it, return a PAM result.

Rules:
1. Only PAM_SUCCESS and PAM_IGNORE let a user pass.
2. Every refusal shows the user the same text, after the same delay.
3. No lock is held while the module waits for a user.
4. If several accounts share one record, the code of one account never grants grace to another.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Iterator, Sequence

from pam_totp.core.answer import CODE_LENGTHS, Answer
from pam_totp.core.fields import Value
from pam_totp.core.record import UNKNOWN_USER, UserRecord
from pam_totp.core.settings import Settings, SettingsError, Site, settings
from pam_totp.core.verify import Decision, Outcome
from pam_totp.operations import audit_log
from pam_totp.operations.authenticate import REFUSED, decide, log, refusal_delay, remarks
from pam_totp.pam import grace
from pam_totp.pam.pam_handle import (
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
from pam_totp.store import NoAccount, NotThere, Store, StoreError
from pam_totp.store.file import FileStore
from pam_totp.store.home import home_store


def passwd_name(user: str) -> str:
    """Return the name in the user's passwd entry, or `user` if there is no entry."""
    try:
        return pwd.getpwnam(user).pw_name
    except (KeyError, ValueError):  # ValueError: a name with NUL
        return user


class Host(Value):
    """The parts of the host that a login uses."""

    site: Site
    now: Callable[[], int]
    log: audit_log.Sink
    passwd_name: Callable[[str], str] = staticmethod(passwd_name)
    open_store: Callable[[str], Store] = FileStore
    open_home_store: Callable[[str, str], Store] = staticmethod(home_store)


def this_host(site: Site, log: audit_log.Sink = audit_log.to_syslog) -> Host:
    """Return this host: the real clock (whole seconds) and the real file store."""
    return Host(site=site, now=lambda: int(time.time()), log=log)


def pam_sm_authenticate(pamh: PamHandle, flags: int, argv: Sequence[str], host: Host | None = None) -> int:
    """Authenticate `pamh.user` by one code, codes in a row, or a recovery code; `argv` are the module's arguments.

    Return a PAM result: PAM_SUCCESS, PAM_AUTH_ERR (refused), PAM_IGNORE (`nullok`), PAM_AUTHINFO_UNAVAIL (the store
    cannot be reached), PAM_CONV_ERR (no answer) or PAM_SERVICE_ERR (invalid settings). Raise ProtocolError.
    """
    if host is None:
        host = this_host(Site.NONE)
    try:
        chosen = settings(pamh.service, argv, host.site)
    except SettingsError as e:
        audit_log.write(host.log, pamh.service, "error", user=pamh.user, rhost=pamh.rhost, problem=str(e))
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
    """Return success, because codes give no credentials. The relay answers this call itself."""
    return PAM_SUCCESS


def _wait_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


class _Login:
    """One call of pam_sm_authenticate."""

    def __init__(self, pamh: PamHandle, silent: bool, chosen: Settings, host: Host) -> None:
        self._pamh = pamh
        self._silent = silent
        self._settings = chosen
        self._host = host
        self._user = host.passwd_name(chosen.user or pamh.user)
        # With `user=`, several accounts share a record: the code of one account must not give grace to another.
        self._grace_at = grace.origin(pamh.service, pamh.rhost) if chosen.grace_period and chosen.user is None else None

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
        for typed in self._answers():
            refused_at = time.monotonic() + refusal_delay(self._settings.policy)
            try:
                decision = self._decide(typed)
            except StoreError:
                _wait_until(refused_at)  # the delay must hide the length of the search, also if the disk is full
                raise
            log(self._host.log, self._pamh.service, self._user, decision, self._pamh.rhost)
            if decision.outcome.accepted:
                for remark in remarks(decision):
                    self._say(PAM_TEXT_INFO, remark)
                return PAM_SUCCESS
            _wait_until(refused_at)
        self._say(PAM_ERROR_MSG, REFUSED)
        return PAM_AUTH_ERR

    def log(self, verb: str, **fields: str | int | None) -> None:
        audit_log.write(self._host.log, self._pamh.service, verb, user=self._user, **fields, rhost=self._pamh.rhost)

    def _known(self) -> UserRecord:
        try:
            return self._store.read(self._user)
        except NoAccount:
            if self._settings.nullok:
                raise StoreError("unknown account: its home folder cannot be located") from None
            return UNKNOWN_USER
        except NotThere:
            return UNKNOWN_USER

    def _has_grace(self, record: UserRecord) -> bool:
        chosen = self._settings
        return self._grace_at is not None and grace.holds(
            record, self._grace_at, self._host.now(), chosen.grace_period, chosen.policy
        )

    def _answers(self) -> Iterator[bytes]:
        """Yield each answer to try: the answer to an earlier module, then the answer to a prompt."""
        if self._settings.first_pass in ("try_first_pass", "use_first_pass"):
            first = self._pamh.authtok
            if first is not None:
                yield first
            if self._settings.first_pass == "use_first_pass":
                if first is None:
                    self.log("refused", reason="no-answer")
                return
        style = PAM_PROMPT_ECHO_ON if self._settings.echo else PAM_PROMPT_ECHO_OFF
        response = self._pamh.conversation(self._pamh.Message(style, self._settings.prompt)).resp
        yield response if response is not None else b""

    def _decide(self, typed: bytes) -> Decision:
        """Verify an answer. With `forward_pass`, give the password before the codes to the next module.

        The next module gets the password after a refusal too. Otherwise the behaviour of that module would show whether
        the codes were right.
        """
        forwarding = self._settings.first_pass == "forward_pass"
        answer = Answer.parse_behind_password(typed) if forwarding else Answer.parse(typed)
        decision = decide(self._store, self._user, answer, self._settings.policy, self._host.now, follow=self._grant)
        record = decision.record
        password = answer.password(record.code_lengths if record.enrolled else CODE_LENGTHS)
        if password:
            self._pamh.authtok = password
        return decision

    def _grant(self, decision: Decision, now: int) -> UserRecord:
        if self._grace_at is None or decision.outcome is Outcome.RECOVERY:
            return decision.record
        return grace.granted(decision.record, self._grace_at, now)

    def _say(self, style: int, text: str) -> None:
        if not self._silent:
            self._pamh.conversation(self._pamh.Message(style, text))
