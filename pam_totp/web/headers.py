"""The headers of every response, including responses of the server itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self';"
    " connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}
FILES = {"static", "site.logo", "site.colours"}  # endpoints: the same for all users, cached, and not limited
HEALTH = "health.health"  # the endpoint for monitors
WITHOUT_USER = FILES | {HEALTH}  # endpoints whose responses are the same for all sessions and languages
NO_STORE = "no-store"  # Cache-Control of all responses except files


def refuse(start_response: Any, text: str) -> Iterable[bytes]:
    """Answer a request with status 400 and one line of text, without the application."""
    body = f"{text}\n".encode()
    headers = {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body)), **HEADERS}
    start_response("400 Bad Request", [*headers.items(), ("Cache-Control", NO_STORE)])
    return [body]
