"""Settings of the simulator's property tests. They have no deadline, because a slow machine must not fail a test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("token_sim", settings.default, deadline=None)
settings.load_profile("token_sim")
