"""The portal as a WSGI application.

The law:
- nothing is changed by a GET, and every POST carries this session's own token (CSRF);
- no page is kept by a browser, framed by another site, or told to one; no script or style but our own files runs;
- every redirect goes to a page of ours that is named here, never to a place that a request names;
- whatever fails shows a page that says what to do next, and no more.
"""

from __future__ import annotations

import ipaddress
import secrets
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, Response, render_template, request
from flask_limiter import Limiter
from flask_wtf.csrf import CSRFError, CSRFProtect
from werkzeug.exceptions import HTTPException

from pam_totp.client import DEFAULT_SOCKET, ClientError
from pam_totp.operations import audit_log
from pam_totp.operations.self_service import Factors
from pam_totp.store import StoreError
from pam_totp.system.passwords import Busy
from pam_totp.web import filters, pages_signin, pages_tokens
from pam_totp.web.portal import SERVICE, Config, Portal, portal
from pam_totp.web.second_factor import ByService, ByStore
from pam_totp.web.session_cookie import Cookies, current
from pam_totp.web.sessions import Sessions, Step

MAX_REQUEST = 16 * 1024  # bytes: the forms are small

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
HSTS = "max-age=31536000"  # seconds: a year

# What one address, and one address for one user, may try; `many` is the site's. Codes are counted by the store besides,
# whoever asks.
LIMITS = {
    "signin.sign_in": (("{many} per minute", "address"), ("10 per minute; 40 per hour", "address_and_user")),
    "signin.code": (("{many} per minute", "address"),),
    "tokens.scan": (("{many} per minute", "address"),),
    "tokens.add_token": (("20 per minute", "address"),),
    "tokens.resync": (("20 per minute", "address"),),
    "tokens.remove": (("20 per minute", "address"),),
    "tokens.recovery": (("20 per minute", "address"),),
}


def create_app(config: Config) -> Flask:
    """The application; serve it by one process, as the sessions are in its memory."""
    app = Flask("pam_totp.web", static_url_path="/static")
    app.config.update(
        MAX_CONTENT_LENGTH=MAX_REQUEST,
        PREFERRED_URL_SCHEME="https" if config.tls else "http",
        RATELIMIT_ENABLED=config.limited,
        SECRET_KEY=secrets.token_bytes(32),
        WTF_CSRF_SSL_STRICT=False,  # it wants a Referer, which our own pages do not send; `_refuse_strangers` looks
        WTF_CSRF_TIME_LIMIT=None,  # as long as the session
    )
    sessions = Sessions(config.clock)
    app.extensions["pam_totp"] = _portal(config, sessions)
    app.session_interface = Cookies(sessions, tls=config.tls)
    app.before_request(_refuse_strangers)
    CSRFProtect(app)
    app.register_blueprint(pages_signin.pages)
    app.register_blueprint(pages_tokens.pages)
    _limit(app, config.per_address)
    filters.add_to(app)
    app.context_processor(lambda: {"visit": current().state, "Step": Step, "issuer": config.issuer})
    app.after_request(_with_headers)
    _say_what_failed(app)
    return app


def _portal(config: Config, sessions: Sessions) -> Portal:
    if config.store is None:
        return Portal(config, ByService(SERVICE, config.socket or DEFAULT_SOCKET), sessions, None)
    factors = Factors(
        config.store,
        policy=config.policy,
        service=SERVICE,
        sink=config.sink,
        now=config.now,
        first_token=config.first_token,
    )
    return Portal(config, ByStore(factors), sessions, factors)


def address() -> str:
    """Whom the limits count: an IPv4 address, or the /64 that one IPv6 customer has."""
    text = request.remote_addr or "-"
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return text
    return str(ipaddress.ip_network(f"{found}/64", strict=False)) if found.version == 6 else text


def _address_and_user() -> str:
    return f"{address()} {request.form.get('user', '')[:256].casefold()}"


def _limit(app: Flask, many: int) -> None:
    limiter = Limiter(key_func=address, app=app, storage_uri="memory://", strategy="moving-window")
    keys = {"address": address, "address_and_user": _address_and_user}
    for endpoint, limits in LIMITS.items():
        view: Any = app.view_functions[endpoint]
        for text, key in limits:
            view = limiter.limit(text.format(many=many), key_func=keys[key], methods=["POST"])(view)
        app.view_functions[endpoint] = view
    app.extensions["pam_totp_limiter"] = limiter  # its decorators hold on to it by weak references only


def _refuse_strangers() -> tuple[str, int] | None:
    """What no page of ours would send: a form from another site (Fetch Metadata), or anything in the clear where there
    should be TLS."""
    config = portal().config
    if config.hosts and _called_by() not in config.hosts:  # DNS rebinding; a redirect never repeats the name
        return _page("This page is reached by another name.", status=400)
    if config.tls and not request.is_secure:
        return _page("This page is reached by https only.", status=400)
    if request.method == "POST" and request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return _page("That came from another site. Nothing was changed.", status=403)
    return None


def _called_by() -> str | None:
    try:
        return urlsplit(f"//{request.host}").hostname
    except ValueError:
        return None


def _with_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    response.headers["Cache-Control"] = "max-age=3600" if request.endpoint == "static" else "no-store"
    if portal().config.tls:
        response.headers["Strict-Transport-Security"] = HSTS
    return response


def _say_what_failed(app: Flask) -> None:
    def out_of_date(_: CSRFError) -> tuple[str, int]:
        return _page("This form is from an earlier page, and was not used. Nothing was changed.", status=400)

    def out_of_reach(error: StoreError | ClientError) -> tuple[str, int]:
        audit_log.write(portal().config.sink, SERVICE, "error", user=current().state.user, problem=str(error))
        return _page("Your tokens cannot be reached now. Try again later.", status=503)

    def busy(_: Busy) -> tuple[str, int]:
        return _page("Many people are signing in just now. Wait a moment, then try again.", status=503)

    def http(error: HTTPException) -> tuple[str, int] | HTTPException:
        known = {
            404: "There is no such page.",
            405: "This page is not reached that way.",
            413: "That was too long.",
            429: "Too many tries. Wait a minute, then try again.",
        }
        return _page(known.get(error.code or 0, "That did not work. Nothing was changed."), status=error.code or 500)

    def defect(error: Exception) -> tuple[str, int]:
        app.logger.exception("a defect", exc_info=error)
        return _page("Something is wrong here. Nothing was changed; tell your administrator.", status=500)

    app.register_error_handler(CSRFError, out_of_date)
    app.register_error_handler(StoreError, out_of_reach)
    app.register_error_handler(ClientError, out_of_reach)
    app.register_error_handler(Busy, busy)
    app.register_error_handler(HTTPException, http)
    app.register_error_handler(Exception, defect)


def _page(text: str, *, status: int) -> tuple[str, int]:
    return render_template("message.html", text=text), status
