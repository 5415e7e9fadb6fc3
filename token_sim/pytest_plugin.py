"""Fixtures for tests that need a hardware token: see docs/token_sim.md.

Rules:
- This module imports only pytest. The fixtures import the simulator.
- A fixture closes its tokens at the end of the test or, with the session's scope, at the end of the session.
- A test with an unknown option fails, with an error of one line.
- The tokens and pyserial use the real file system while a test uses the fake file system of pyfakefs.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from token_sim.testing.live_token import LiveToken

# pyfakefs replaces `os` in every module that it does not skip. These modules use real ports and files.
_REAL = (
    "client",
    "run.control",
    "run.loop",
    "run.simulation",
    "run.token_file",
    "testing.live_token",
    "wire.pty",
    "wire.tcp",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "token_sim(profile, type=…, digits=…, key=…): options of the token_sim fixture; marks of class and test add up",
    )


def pytest_collection_finish() -> None:
    fakes = _pyfakefs()
    if fakes is None:
        return
    fakes.Patcher.SKIPMODULES.update(importlib.import_module(f"token_sim.{name}") for name in _REAL)
    with suppress(ImportError):  # pyserial is optional
        fakes.Patcher.SKIPMODULES.add(importlib.import_module("serial.serialposix"))


@pytest.fixture
def token_sim_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LiveToken]]:
    """Return a function that creates a token on a new port: `token_sim_factory("c200", digits=8)`."""
    with ExitStack() as tokens:
        yield _factory(tmp_path_factory, tokens)


@pytest.fixture(scope="session")
def token_sim_session_factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., LiveToken]]:
    """Return a function like that of `token_sim_factory`. Its tokens run until the end of the session."""
    with ExitStack() as tokens:
        yield _factory(tmp_path_factory, tokens)


@pytest.fixture
def token_sim(request: pytest.FixtureRequest, token_sim_factory: Callable[..., LiveToken]) -> LiveToken:
    """Return a LiveToken on a new port. Its attributes include `port`, `key` and `serial`."""
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("token_sim"))):  # the test's mark is last
        options |= _named(*marker.args, **marker.kwargs)
    if hasattr(request, "param"):  # the parameter of an indirect parametrisation
        options |= _named(**request.param) if isinstance(request.param, dict) else _named(request.param)
    return token_sim_factory(**options)


@pytest.fixture(scope="session")
def token_sim_session(token_sim_session_factory: Callable[..., LiveToken]) -> LiveToken:
    """Return a generic LiveToken that all tests of the session share."""
    return token_sim_session_factory()


def _factory(folders: pytest.TempPathFactory, tokens: ExitStack) -> Callable[..., LiveToken]:
    def make(*profile: str, **options: Any) -> LiveToken:
        with _real_file_system():
            from token_sim.testing.live_token import LiveToken

            link = folders.mktemp("token_sim") / "port"
            try:
                token = LiveToken(str(link), **_named(*profile, **options))
            except (TypeError, ValueError) as error:
                pytest.fail(f"token_sim: {error}", pytrace=False)
            return tokens.enter_context(token)

    return make


def _named(*profile: Any, **options: Any) -> dict[str, Any]:
    """Return the options by their names. Only the profile can be positional."""
    if len(profile) > 1 or (profile and "profile" in options):
        pytest.fail("token_sim: at most one profile is allowed, as the first argument or as profile=", pytrace=False)
    if "type" in options and "kind" not in options:  # so that a test's `kind` replaces its class's `type`
        options["kind"] = options.pop("type")
    return {"profile": profile[0], **options} if profile else options


def _real_file_system() -> AbstractContextManager[Any]:
    """Return a context that suspends the fake file system of pyfakefs, if a test uses one."""
    fakes = _pyfakefs()
    patcher = None if fakes is None else fakes.Patcher.PATCHER
    return nullcontext() if fakes is None or patcher is None or not patcher.is_patching else fakes.Pause(patcher)


def _pyfakefs() -> Any:
    """Return pyfakefs' module if it is loaded, otherwise None."""
    return sys.modules.get("pyfakefs.fake_filesystem_unittest")
