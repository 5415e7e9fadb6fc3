"""The session of one request, as Flask sees it, and the cookie that names it.

The law:
- the cookie is `__Host-` where there is TLS: of this host alone, for all of it, over https only, out of scripts' reach;
- a session begins only when there is something to keep: the error page for an old cookie must not replace a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import flask
from flask.sessions import SessionInterface, SessionMixin
from werkzeug.datastructures import CallbackDict

from pam_totp.core.record import Token
from pam_totp.web.sessions import Session, Sessions, Step

TLS_COOKIE = "__Host-pam_totp"  # RFC 6265bis §4.1.3.2
PLAIN_COOKIE = "pam_totp_plain_http"  # on loopback without TLS, where a browser would not take the other one


class Visit(CallbackDict[str, Any], SessionMixin):
    """The values that Flask and its extensions keep, and whose session it is."""

    def __init__(self, sessions: Sessions, name: str | None) -> None:
        self._sessions = sessions
        found = sessions.get(name) if name else None
        self.state = Session() if found is None else found
        self.name = None if found is None else name
        self.lost = name is not None and self.name is None  # a cookie of a session that has ended
        self.renamed = False
        super().__init__(self.state.values, on_update=_mark)
        self.modified = False

    def move(self, step: Step, user: str | None, *, by_code: bool = False) -> None:
        """A new session, at another step; the one before has ended."""
        self.clear()
        self.state = Session(step=step, user=user, by_code=by_code)
        self.name = self._sessions.begin(self.state, instead_of=self.name)
        self.lost = False
        self.renamed = True

    def end(self) -> None:
        if self.name is not None:
            self._sessions.end(self.name)
        self.name, self.state = None, Session()
        self.clear()

    def end_others(self) -> None:
        """End the same user's other sessions."""
        if self.state.user is not None:
            self._sessions.end_all_of(self.state.user, but=self.name)

    # What waits in the session

    @property
    def waiting(self) -> Token | None:
        return self._sessions.waiting(self.state)

    def wait_for(self, token: Token | None) -> None:
        pending = None if token is None else self._sessions.pending(token)
        self._change(lambda session: replace(session, pending=pending))

    def take_waiting(self) -> Token | None:
        """The token that waits for its first code, for this request alone."""
        pending = self._sessions.take_pending(self.name) if self.name is not None else None
        return None if pending is None else pending.token

    @property
    def recovery(self) -> tuple[str, ...]:
        """Recovery codes that the person has not said to have; another request may have made them just now."""
        now = self._sessions.get(self.name) if self.name is not None else None
        return () if now is None else now.recovery

    def keep_recovery(self, codes: list[str]) -> None:
        """Keep recovery codes until the person says that they have them."""
        self._change(lambda session: replace(session, recovery=tuple(codes)))

    def _change(self, change: Callable[[Session], Session]) -> None:
        if self.name is not None:
            self._sessions.change(self.name, change)

    def save(self) -> None:
        """Keep the values; begins a stranger's session where there is none yet."""
        values = dict(self)
        if self.name is None:
            self.name = self._sessions.begin(Session(values=values))
            self.renamed = True
        else:
            self._change(lambda session: replace(session, values=values))


def _mark(visit: CallbackDict[str, Any]) -> None:
    cast(Visit, visit).modified = True


def current() -> Visit:
    """The session of the request at hand."""
    return cast(Visit, flask.session._get_current_object())  # type: ignore[attr-defined]


class Cookies(SessionInterface):
    """Carries names of sessions to and from browsers."""

    def __init__(self, sessions: Sessions, *, tls: bool) -> None:
        self._sessions = sessions
        self._tls = tls
        self.cookie = TLS_COOKIE if tls else PLAIN_COOKIE

    def open_session(self, app: flask.Flask, request: flask.Request) -> Visit:
        return Visit(self._sessions, request.cookies.get(self.cookie))

    def save_session(self, app: flask.Flask, session: SessionMixin, response: flask.Response) -> None:
        visit = cast(Visit, session)
        if visit.modified and (visit or visit.name is not None):
            visit.save()
        if visit.renamed and visit.name is not None:
            # Lax, not strict: a link to the portal must not begin a second session. Nothing is changed by a GET.
            response.set_cookie(self.cookie, visit.name, secure=self._tls, httponly=True, samesite="Lax", path="/")
        elif visit.name is None and visit.modified:
            response.delete_cookie(self.cookie, secure=self._tls, httponly=True, samesite="Lax", path="/")
