"""The delay of a response. A server that can hold responses (`connections`) uses no thread for the delay."""

from __future__ import annotations

import time
from typing import Any

HOLD = "pam_totp.hold"  # the key of the server's function in the WSGI environment


def hold(environ: dict[str, Any], seconds: float) -> None:
    """Delay the response to the request `environ` by `seconds`. Sleep if the server cannot hold a response."""
    environ.get(HOLD, time.sleep)(seconds)
