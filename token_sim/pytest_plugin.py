"""Fixtures for tests that need a hardware token: see docs/token_sim.md.

Rules:
- This module imports only pytest. The fixtures import the simulator.
- The fixtures close a token at the end of its test.
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
        "markers", "token_sim(profile=…, kind=…, digits=…, key=…): options of the token_sim fixture"
    )


@pytest.fixture
def token_sim_factory(tmp_path: Any) -> Iterator[Callable[..., LiveToken]]:
    """Return a function that makes a token on a new port: `token_sim_factory(profile="c200", digits=8)`."""
    from token_sim.testing.live_token import LiveToken

    with ExitStack() as stack:
        tokens: list[LiveToken] = []

        def make(**options: Any) -> LiveToken:
            token = LiveToken(str(tmp_path / f"token-{len(tokens)}"), **options)
            tokens.append(stack.enter_context(token))
            return token

        yield make


@pytest.fixture
def token_sim(request: pytest.FixtureRequest, token_sim_factory: Callable[..., LiveToken]) -> LiveToken:
    """Return a LiveToken on a new port. Its attributes include `port`, `key` and `serial`."""
    marker = request.node.get_closest_marker("token_sim")
    return token_sim_factory(**({} if marker is None else marker.kwargs))
