"""The page for monitors: it states whether the portal can check codes.

Rules:
- The page has one line, without session, language or secret: "ok" with status 200, or a reason with status 503.
- One request at a time uses the store, at most once in `RESULT_LASTS` seconds. Other requests get the last result
  at once. Therefore a flood of requests cannot slow sign-ins, even if the store hangs.
- The portal logs one line when the checks begin to fail.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import cast

from flask import Blueprint, Flask, Response, current_app

from pam_totp.client import DEFAULT_SOCKET
from pam_totp.operations import audit_log
from pam_totp.store import NotThere, StoreError
from pam_totp.system import probe
from pam_totp.web.portal import SERVICE, Config

RESULT_LASTS = 2.0  # seconds
RETRY_AFTER = 10  # seconds
_EXTENSION = "pam_totp.health"

pages = Blueprint("health", __name__)


class Health:
    """The last known state of the store, or of the service that checks codes in its place."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._until = config.clock()
        self._problem: str | None = None

    def problem(self) -> str | None:
        """Return the reason why every check of a code would fail, or None. The reason is for the log only."""
        if self._lock.acquire(blocking=False):
            try:
                if self._config.clock() >= self._until:
                    self._check()
            finally:
                self._lock.release()
        return self._problem

    def _check(self) -> None:
        before, self._problem = self._problem, _problem_of(self._config)
        self._until = self._config.clock() + RESULT_LASTS
        if self._problem is not None and before is None:
            audit_log.write(self._config.sink, SERVICE, "error", problem=self._problem)


def _problem_of(config: Config) -> str | None:
    if config.store is None:
        return _problem_of_service(config.socket or DEFAULT_SOCKET)
    try:
        with suppress(NotThere):
            config.store.read(SERVICE)  # a name without a record, normally
    except StoreError as e:
        return str(e)
    return None


def _problem_of_service(path: str) -> str | None:
    try:
        problem = probe.service(path)
    except FileNotFoundError:
        return f"{path}: not found"
    return None if problem is None else f"{path}: {problem.text}"


@pages.get("/health")
def health() -> Response:
    if cast(Health, current_app.extensions[_EXTENSION]).problem() is None:
        return Response("ok\n", mimetype="text/plain")
    response = Response("the store is not reachable\n", 503, mimetype="text/plain")
    response.retry_after = RETRY_AFTER
    return response


def add_to(app: Flask, config: Config) -> None:
    """Add the page to `app`."""
    app.extensions[_EXTENSION] = Health(config)
    app.register_blueprint(pages)
