"""The path of a URL below which the portal is, such as `/otp` for https://www.example.org/otp/.

Rules:
- The portal removes its path from each request, if the web server in front has not removed it. All links and redirects
  begin with this path.
- `/` and the empty text mean that the portal uses the whole host name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

App = Callable[[dict[str, Any], Any], Iterable[bytes]]

MAX_LENGTH = 100  # characters; the names of cookies contain the path
# Characters that browsers send unchanged, and that names of cookies may contain (RFC 3986 2.3, RFC 6265 4.1.1).
_SEGMENT = re.compile(r"(?!\.\.?$)[A-Za-z0-9._~-]+")


def canonical(path: str) -> str:
    """Return a configured path with a slash at its beginning only, or "" for the whole host. Raise ValueError."""
    inner = path.removeprefix("/").removesuffix("/")
    if inner and (len(path) > MAX_LENGTH or not all(map(_SEGMENT.fullmatch, inner.split("/")))):
        what = f"must be 1 to {MAX_LENGTH} letters, digits and ._~- between single slashes, but not /./ or /../"
        raise ValueError(f"{path}: the path of the portal {what} (example: /otp)")
    return f"/{inner}" if inner else ""


def inside(path: str, prefix: str) -> str:
    """Return the path `path` of a request without `prefix`, the path of the portal, at its beginning."""
    rest = path.removeprefix(prefix)
    return rest or "/" if prefix and path.startswith(prefix) and rest[:1] in ("", "/") else path


def below(app: App, prefix: str) -> App:
    """Return `app` for requests to URLs below `prefix`."""

    def respond(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = prefix, inside(environ["PATH_INFO"], prefix)
        return app(environ, start_response)

    return respond
