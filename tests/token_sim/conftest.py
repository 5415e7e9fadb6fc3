"""Settings of the simulator's property tests: no deadline, so that the tests pass on a slow machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("token_sim", settings.default, deadline=None)
settings.load_profile("token_sim")
