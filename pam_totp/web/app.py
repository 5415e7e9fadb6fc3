"""The portal as a WSGI application.

Rules:
- A GET request never changes a token. Every POST request must carry the CSRF token of its own session.
- A browser does not cache a page, and hides the page's address from other sites. Other sites cannot frame a page. A
  page loads scripts and styles only from the portal.
- A request counts against the limits of `request_limits`, except for requests for files, requests of monitors, and
  requests that `_refuse_foreign_requests` refuses.
- The code chooses the target of every redirect; a request cannot choose it.
- Every error page names the next step for the user or states that nothing was changed, and hides internal
  details.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import cast

import werkzeug
from flask import Flask, Response, abort, current_app, render_template, request
from flask_wtf.csrf import CSRFError, CSRFProtect
from werkzeug.exceptions import HTTPException, TooManyRequests

from pam_totp.client import DEFAULT_SOCKET, ClientError
from pam_totp.operations import audit_log
from pam_totp.operations.self_service import Factors
from pam_totp.store import StoreError
from pam_totp.system.passwords import TooManyChecks
from pam_totp.web import (
    filters,
    health,
    host_header,
    pages_desk,
    pages_guided,
    pages_signin,
    pages_site,
    pages_tokens,
    request_limits,
    texts,
    url_path,
)
from pam_totp.web.headers import FILES, HEADERS, HEALTH, NO_STORE
from pam_totp.web.limits import Limits
from pam_totp.web.portal import SERVICE, Config, FirstToken, Portal, current_portal, redirect_to
from pam_totp.web.second_factor import ServiceFactor, StoreFactor
from pam_totp.web.session_cookie import Cookies, current_session
from pam_totp.web.sessions import Sessions, Step
from pam_totp.web.texts import gettext, lazy_gettext

FORM = "application/x-www-form-urlencoded"
MAX_REQUEST = 16 * 1024  # bytes, more than the longest form

A_MINUTE = 60  # seconds
HSTS = "max-age=31536000"  # one year, in seconds


def create_app(config: Config) -> Flask:
    """Return the application, for one process only: the sessions are in the memory of the process."""
    app = Flask("pam_totp.web", static_url_path="/static")
    app.wsgi_app = host_header.checking(url_path.below(app.wsgi_app, config.path))  # type: ignore[method-assign, assignment]
    app.url_map.merge_slashes = False  # werkzeug would redirect to the host name of the request
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_REQUEST,
        PREFERRED_URL_SCHEME="https" if config.tls else "http",
        SECRET_KEY=secrets.token_bytes(32),
        # The strict check needs a Referer, which the Referrer-Policy suppresses. See `_refuse_foreign_requests`.
        WTF_CSRF_SSL_STRICT=False,
        WTF_CSRF_TIME_LIMIT=None,  # the CSRF token is valid as long as its session
    )
    sessions = Sessions(config.clock)
    app.extensions["pam_totp"] = _build_portal(config, sessions)
    app.session_interface = Cookies(sessions, tls=config.tls, path=config.path)
    app.before_request(_refuse_foreign_requests)
    if config.rate_limits:
        app.before_request(request_limits.refuse_too_many_requests)
    app.before_request(_refuse_other_bodies)
    CSRFProtect(app)
    if config.rate_limits:  # after the check of the form, so that another site's form cannot use up attempts
        app.before_request(request_limits.refuse_too_many_attempts)
    app.register_blueprint(pages_signin.pages)
    app.register_blueprint(pages_tokens.pages)
    app.register_blueprint(pages_site.pages)
    health.add_to(app, config)
    app.register_blueprint(pages_guided.pages)
    app.register_blueprint(pages_desk.pages)
    filters.add_to(app)
    texts.add_to(app)
    app.context_processor(
        lambda: {
            "sign_in": current_session().state,
            "Step": Step,
            "issuer": config.issuer,
            "portal_service": SERVICE,
            "site": config.appearance,
            "site_help": config.appearance.help_in(texts.current_language()),
            "has_store": config.store is not None,
            "today": pages_tokens.today,
            "seconds_left": pages_tokens.seconds_left,
            "is_at_the_desk": pages_desk.is_at_the_desk,
        }
    )
    app.after_request(_add_headers)
    _add_error_pages(app)
    return app


def _build_portal(config: Config, sessions: Sessions) -> Portal:
    limits = Limits(config.clock)
    if config.store is None:
        return Portal(config, ServiceFactor(SERVICE, config.socket or DEFAULT_SOCKET), sessions, limits, None)
    factors = Factors(
        config.store,
        policy=config.policy,
        service=SERVICE,
        sink=config.sink,
        now=config.now,
        first_token=config.first_token is FirstToken.PASSWORD,
        tickets=config.first_token is not FirstToken.OFF,
    )
    return Portal(config, StoreFactor(factors), sessions, limits, factors)


def _refuse_foreign_requests() -> Response | None:
    """Refuse requests that the portal's pages never send: to another host name, by plain http, or from another site.

    These requests do not count, because a page of another site could use up the limits of its visitor. Monitors can use
    any host name, and plain http, because the response to a monitor contains no secret.
    """
    if request.endpoint == HEALTH:
        return None
    config = current_portal().config
    if config.hosts and not host_header.is_listed(request.host, config.hosts):  # prevents DNS rebinding
        text = gettext("This server does not answer to that host name. Check the address.")
        return _message_page(gettext("Unknown host name"), text, status=400)
    if config.tls and not request.is_secure:
        text = gettext("This page requires https. Check the address.")
        return _message_page(gettext("https is required"), text, status=400)
    if request.method == "POST" and _is_from_another_site():
        text = gettext("This form was sent from another site. Nothing was changed.")
        return _message_page(gettext("Form of another site"), text, status=403)
    if _is_embedded_elsewhere():
        text = gettext("This page cannot be part of another site. Open the page by its address.")
        return _message_page(gettext("Part of another site"), text, status=403)
    return None


def _is_from_another_site() -> bool:
    return request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none")


def _is_embedded_elsewhere() -> bool:
    """Return True if a page of another site embeds this address, instead of linking to it."""
    link = request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")
    return _is_from_another_site() and link != ("navigate", "document")


def _refuse_other_bodies() -> None:
    """Abort with status 415 if the content type of a POST is not FORM. Flask-WTF would also read JSON and files."""
    if request.method == "POST" and request.mimetype != FORM:
        abort(415)


def _add_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    response.headers["Cache-Control"] = "max-age=3600" if request.endpoint in FILES else NO_STORE
    if current_portal().config.tls:
        response.headers["Strict-Transport-Security"] = HSTS
    return response


HTTP_ERRORS = {
    404: (
        lazy_gettext("Page not found"),
        lazy_gettext("This address has no page. Check the address for a typing error."),
    ),
    405: (
        lazy_gettext("Request not supported"),
        lazy_gettext("This page does not accept that request. Nothing was changed."),
    ),
    413: (lazy_gettext("The form is too long"), lazy_gettext("The form is too long. Nothing was changed.")),
    429: (lazy_gettext("Too many attempts"), lazy_gettext("Too many attempts. Try again later.")),
}
OTHER_HTTP_ERROR = lazy_gettext("The request failed"), lazy_gettext("The request failed. Nothing was changed.")
SIGN_OUT = "signin.sign_out"  # an endpoint
NO_COOKIE = lazy_gettext(
    "Your browser sent no cookie with this form. Nothing was changed. Allow cookies for this site, then open the page"
    " again and fill in the form."
)


def _add_error_pages(app: Flask) -> None:
    def form_expired(_: CSRFError) -> werkzeug.Response:
        if request.endpoint == SIGN_OUT and current_session().state.step is Step.ANONYMOUS:  # ended in another tab
            return redirect_to("signin.signed_out")
        # Other forms are on pages that need the cookie. They expire, for example after a sign-out in another tab.
        if request.endpoint == request_limits.SIGN_IN and not cast(Cookies, app.session_interface).was_sent(request):
            return _message_page(gettext("Your browser blocks cookies"), gettext(NO_COOKIE), status=400)
        text = gettext("This form has expired and was ignored. Nothing was changed.")
        return _message_page(gettext("The form has expired"), text, status=400)

    def out_of_reach(error: StoreError | ClientError) -> Response:
        sink, user = current_portal().config.sink, current_session().state.user
        audit_log.write(sink, SERVICE, "error", user=user, problem=str(error))
        text = gettext("Your tokens are not available now. Wait a minute, then try again.")
        return _message_page(gettext("Not available now"), text, status=503, retry_after=A_MINUTE)

    def too_many_checks(_: TooManyChecks) -> Response:
        text = gettext("Too many users are signing in now. Wait a minute, then try again.")
        return _message_page(gettext("Too many sign-ins"), text, status=503, retry_after=A_MINUTE)

    def http_error(error: HTTPException) -> Response:
        title, text = map(gettext, HTTP_ERRORS.get(error.code or 0, OTHER_HTTP_ERROR))
        seconds = error.retry_after if isinstance(error, TooManyRequests) else None
        if isinstance(seconds, int):
            text = gettext("Too many attempts. Try again in %(time)s.", time=filters.duration(seconds))
        return _message_page(title, text, status=error.code or 500, retry_after=seconds)

    def internal_error(error: Exception) -> Response:
        app.logger.exception("internal error", exc_info=error)
        text = gettext("Check whether your last change was made, and tell your administrator.")
        return _message_page(gettext("Internal error"), text, status=500)

    app.register_error_handler(CSRFError, form_expired)
    app.register_error_handler(StoreError, out_of_reach)
    app.register_error_handler(ClientError, out_of_reach)
    app.register_error_handler(TooManyChecks, too_many_checks)
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Exception, internal_error)


def _message_page(title: str, text: str, *, status: int, retry_after: int | datetime | None = None) -> Response:
    """Return a page with one message. `retry_after` is the time after which the client may try again, in seconds."""
    response = current_app.make_response((render_template("message.html", heading=title, text=text), status))
    response.retry_after = retry_after
    return response
