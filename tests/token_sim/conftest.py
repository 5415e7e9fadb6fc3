"""No property test of the simulator has a deadline: no timing decides a test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("token_sim", settings.default, deadline=None)
settings.load_profile("token_sim")
