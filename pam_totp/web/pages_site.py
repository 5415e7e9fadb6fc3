"""The files that show the site's own logo and colours."""

from __future__ import annotations

from flask import Blueprint, Response, abort

from pam_totp.web.portal import current_portal

# Not for print: paper is black and white.
COLOURS = """@media screen {{ :root {{ --accent: {light}; --accent-ink: #ffffff; }} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --accent: {dark}; --accent-ink: #0d1622; }} }}
"""

pages = Blueprint("site", __name__, url_prefix="/site")


@pages.get("/logo")
def logo() -> Response:
    image = current_portal().config.appearance.logo
    if image is None:
        abort(404)
    return Response(image.content, content_type=image.type)


@pages.get("/colours.css")
def colours() -> Response:
    """Return a style sheet with the accent colours.

    Pages link to the style sheet by an address that contains the colours, so that no cache keeps old colours.
    """
    appearance = current_portal().config.appearance
    if appearance.accent is None:
        abort(404)
    css = COLOURS.format(light=appearance.accent, dark=appearance.accent_dark)
    return Response(css, mimetype="text/css")
