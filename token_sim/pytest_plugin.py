"""Fixtures for the tests of anything that wants a hardware token: see docs/token_sim.md.

The law: importing this costs nothing but pytest; a token is built by the test that asks for one, and gone after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from token_sim.testing.live_token import LiveToken


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "token_sim(profile=…, kind=…, digits=…, key=…): how the token_sim fixture is made"
    )


@pytest.fixture
def token_sim_factory(tmp_path: Any) -> Iterator[Callable[..., LiveToken]]:
    """Make tokens: `token_sim_factory(profile="c200", digits=8)`, each alive on a port of its own."""
    from token_sim.testing.live_token import LiveToken

    with ExitStack() as stack:
        made: list[LiveToken] = []

        def make(**options: Any) -> LiveToken:
            token = LiveToken(str(tmp_path / f"token-{len(made)}"), **options)
            made.append(stack.enter_context(token))
            return token

        yield make


@pytest.fixture
def token_sim(request: pytest.FixtureRequest, token_sim_factory: Callable[..., LiveToken]) -> LiveToken:
    """A token on a port: `press`, `advance`, `fault`, `unplug`, `oracle`; `.port`, `.key`, `.serial`."""
    marker = request.node.get_closest_marker("token_sim")
    return token_sim_factory(**({} if marker is None else marker.kwargs))
