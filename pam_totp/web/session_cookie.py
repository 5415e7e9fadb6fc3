"""The session object that Flask uses in a request, and the cookie with the session id or the signed session.

Rules:
- The cookie has the prefix `__Host-` with TLS: browsers send it to this host only, over https only. Scripts cannot read
  the cookie.
- The name of the cookie contains the port, unless it is the default port, and the path of the portal. Cookies of
  several portals on one host name are therefore separate. `__Host-` requires the path `/`, and no cookie is bound to a
  port.
- A session starts only when the application stores a value. Therefore, the error page for an expired cookie cannot
  replace a newer session's cookie.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import flask
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.datastructures import CallbackDict

from pam_totp.core.record import Token
from pam_totp.core.verify import Earlier
from pam_totp.operations.desk import Handed
from pam_totp.web.sessions import Enrolment, Session, Sessions, Step, having, is_signed, new_form, without

TLS_COOKIE = "__Host-pam_totp"  # RFC 6265bis §4.1.3.2
_PORT = re.compile(r":([0-9]+)$", re.ASCII)  # of a valid Host header, from which werkzeug has removed the default port
PLAIN_COOKIE = "pam_totp_plain_http"  # on loopback without TLS, where a browser rejects a __Host- cookie


class RequestSession(CallbackDict[str, Any], SessionMixin):
    """The session of one request: values of Flask and its extensions, and the server's session that stores them.

    `state` is the state of the session at the start of the request. `session_id` is None before the session starts.
    `has_expired` is True if the browser sent the id of a session on the server that has ended. `is_new` is True if the
    browser needs a new cookie.
    """

    def __init__(self, sessions: Sessions, session_id: str | None) -> None:
        self._sessions = sessions
        stored = sessions.get(session_id) if session_id else None
        self.state = Session() if stored is None else stored
        self.session_id = None if stored is None else session_id
        self.has_expired = session_id is not None and stored is None and not is_signed(session_id)
        self.is_new = False
        super().__init__(self.state.values, on_update=_mark_as_modified)
        self.modified = False

    def start(self, step: Step, user: str | None, *, by_code: bool = False, enrolment: Enrolment | None = None) -> None:
        """Start a new session at `step`, and end the previous session."""
        self.clear()
        self.state = Session(step=step, user=user, by_code=by_code, enrolment=enrolment)
        self.session_id = self._sessions.create(self.state, instead_of=self.session_id)
        self.has_expired = False
        self.is_new = True

    def prolong(self) -> float:
        """Prolong the session at the user's request. Return the remaining seconds."""
        return 0.0 if self.session_id is None else self._sessions.prolong(self.session_id)

    def seconds_left(self, *, form: str | None) -> int:
        """Return the seconds that the user has for the page. The page needs the pending token of `form`, if any."""
        return int(self._sessions.seconds_left(self.state, form=form))

    @property
    def is_current(self) -> bool:
        """Return True if this session has started, and no other request has ended it."""
        return self.session_id is not None and self._sessions.get(self.session_id) is not None

    def end(self) -> None:
        if self.session_id is not None:
            self._sessions.end(self.session_id)
        self.session_id, self.state = None, Session()
        self.clear()

    def end_others(self) -> None:
        """End the user's other sessions."""
        if self.state.user is not None:
            self._sessions.end_all_of(self.state.user, except_id=self.session_id)

    # Values kept between two requests: a token, or recovery codes

    def pending_token(self, form: str) -> Token | None:
        return self._sessions.pending_token(self.state, form)

    def add_pending(self, token: Token, form: str | None = None) -> str:
        """Keep a token that waits for its first code. Return the id of its form, which is new by default."""
        kept, pending = form or new_form(), self._sessions.new_pending(token)
        self._change(lambda session: replace(session, pending=having(session.pending, kept, pending)))
        return kept

    def drop_pending(self, form: str | None = None) -> None:
        """Drop the token of `form`, or of all forms."""
        self._change(lambda session: replace(session, pending={} if form is None else without(session.pending, form)))

    def take_pending(self, form: str) -> Token | None:
        """Remove and return the token of `form` that waits for its first code. Only one request gets the token."""
        return None if self.session_id is None else self._sessions.take_pending(self.session_id, form)

    def set_enrolment(self, enrolment: Enrolment) -> None:
        self._change(lambda session: replace(session, enrolment=enrolment))

    def take_earlier(self) -> Earlier:
        """Remove and return the refused answers of this sign-in. Only one request gets them."""
        before = self._change(lambda session: replace(session, earlier=Earlier.NONE))
        return Earlier.NONE if before is None else before.earlier

    def set_earlier(self, earlier: Earlier) -> None:
        self._change(lambda session: replace(session, earlier=earlier))

    def take_first_code(self, form: str) -> dict[str, str] | None:
        """Remove and return the fields of `form` with the first code, or None. Only one request gets them."""
        before = self._change(lambda session: replace(session, first_codes=without(session.first_codes, form)))
        return None if before is None else before.first_codes.get(form)

    def set_first_code(self, form: str, fields: dict[str, str]) -> None:
        self._change(lambda session: replace(session, first_codes=having(session.first_codes, form, fields)))

    @property
    def recovery_codes(self) -> tuple[str, ...]:
        """Return the new recovery codes that the user must still save, including codes from another request."""
        stored = self._sessions.get(self.session_id) if self.session_id is not None else None
        return () if stored is None else stored.recovery_codes

    def set_recovery_codes(self, codes: list[str]) -> None:
        """Keep new recovery codes until the user confirms that they are saved."""
        self._change(lambda session: replace(session, recovery_codes=tuple(codes)))

    @property
    def to_hand_over(self) -> Handed | None:
        """Return the temporary code or ticket that a desk member must still hand over, even from another request."""
        stored = self._sessions.get(self.session_id) if self.session_id is not None else None
        return None if stored is None else stored.to_hand_over

    def set_to_hand_over(self, made: Handed | None) -> None:
        """Keep a temporary code or a ticket until the desk member confirms that the user has it."""
        self._change(lambda session: replace(session, to_hand_over=made))

    def _change(self, change: Callable[[Session], Session]) -> Session | None:
        """Change the stored session. Return the session before the change, or None if it has ended."""
        return None if self.session_id is None else self._sessions.change(self.session_id, change)

    def save(self) -> None:
        """Store the values, before the sign-in in a new cookie."""
        values = dict(self)
        if self.state.step is Step.ANONYMOUS:
            self.session_id = self._sessions.create(Session(values=values))
            self.is_new = True
        else:
            self._change(lambda session: replace(session, values=values))


def _mark_as_modified(session: CallbackDict[str, Any]) -> None:
    cast(RequestSession, session).modified = True


def current_session() -> RequestSession:
    """Return the session of the current request."""
    return cast(RequestSession, flask.session._get_current_object())  # type: ignore[attr-defined]


class Cookies(SessionInterface):
    """Flask's interface to the sessions, which reads session ids from cookies, and sets cookies."""

    def __init__(self, sessions: Sessions, *, tls: bool, path: str) -> None:
        self._sessions = sessions
        self._tls = tls
        self._suffix = path.replace("/", "+")

    def name_for(self, request: flask.Request) -> str:
        """Return the name of the cookie. A Host header without a port means the default port."""
        port = _PORT.search(request.host)
        return (TLS_COOKIE if self._tls else PLAIN_COOKIE) + (f"_{port[1]}" if port else "") + self._suffix

    def was_sent(self, request: flask.Request) -> bool:
        """Return True if the browser sent the portal's cookie, which may have expired."""
        return self.name_for(request) in request.cookies

    def open_session(self, app: flask.Flask, request: flask.Request) -> RequestSession:
        return RequestSession(self._sessions, request.cookies.get(self.name_for(request)))

    def save_session(self, app: flask.Flask, session: SessionMixin, response: flask.Response) -> None:
        request_session, name = cast(RequestSession, session), self.name_for(flask.request)
        if request_session.modified and (request_session or request_session.session_id is not None):
            request_session.save()
        if request_session.is_new and request_session.session_id is not None:
            # Lax instead of Strict: a link to the portal must not start a second session. A GET request never changes a
            # token.
            response.set_cookie(
                name, request_session.session_id, secure=self._tls, httponly=True, samesite="Lax", path="/"
            )
        elif request_session.session_id is None and request_session.modified:
            response.delete_cookie(name, secure=self._tls, httponly=True, samesite="Lax", path="/")
