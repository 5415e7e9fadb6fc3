"""Tests of virtual time, of the clock's error, and of spans of time in text."""

from __future__ import annotations

import pytest

from pam_totp.core.oath import totp
from tests.token_sim.tokens import NOON, SEED, press, token
from token_sim.device.hardware import AGEING, DAY, YEAR, Hardware, new_hardware
from token_sim.device.models import GENERIC, PROFILES
from token_sim.run.wall_time import parse_span, show_span


def aged(days: int, temperature: int, crystal: int = 0) -> Hardware:
    hardware = new_hardware(GENERIC, NOON, crystal)
    hardware.temperature = temperature
    hardware.elapse(days * DAY, 0)
    return hardware


def test_a_perfect_crystal_at_25_degrees_only_ages() -> None:
    # The error after a year is 0.5 ppm of a year (15.768 s), because the rate grows by 1 ppm a year.
    assert aged(365, 25).error_ms == AGEING * YEAR // 2 // 10**9 == 15_768


@pytest.mark.parametrize(("temperature", "ppm"), [(35, -3.0), (15, -3.0), (45, -12.0), (-10, -36.75)])
def test_a_quartz_is_slow_by_003_ppm_for_each_degree_squared(temperature: int, ppm: float) -> None:
    error = aged(90, temperature).error_ms - aged(90, 25).error_ms
    assert error == pytest.approx(ppm * 1e-6 * 90 * DAY, abs=1)


def test_the_initial_error_adds_up() -> None:
    assert aged(100, 25, 20_000).error_ms - aged(100, 25).error_ms == 20 * 100 * DAY // 10**6


def test_a_slow_clock_shows_the_code_of_its_own_time() -> None:
    device = token(PROFILES["c200"], kind="totp", period=60)
    device.hardware.crystal = -20_000
    device.elapse(60 * DAY)  # −20 ppm of 60 days are −103.7 s; ageing adds 0.4 s
    device.take_events()
    behind = NOON // 1000 + 60 * 86_400 + 1 + device.hardware.error_ms // 1000
    assert -104 < device.hardware.error_ms / 1000 < -100
    assert press(device) == [totp(SEED, behind, period=60)]


def test_the_token_may_age_while_the_true_time_is_unchanged() -> None:
    device = token()
    now, age = device.hardware.now, device.hardware.age
    device.elapse(30 * DAY, world=False)
    assert device.hardware.now == now and device.hardware.age == age + 30 * DAY


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90d", 90 * DAY), ("1h30m", 5_400_000), ("250ms", 250), ("2w", 14 * DAY), ("0s", 0), ("1m1ms", 60_001)],
)
def test_spans_are_read(text: str, ms: int) -> None:
    assert parse_span(text) == ms


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1.5h", "1 d", "1d ", "١d", "1e3s", "9999999w", "1_0s"])
def test_invalid_spans_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"span of time|100 years"):
        parse_span(text)


def test_spans_are_printed_with_two_units() -> None:
    assert [show_span(ms) for ms in (250, 65_000, 90 * DAY, -3_660_000)] == ["250ms", "1m5s", "90d", "-1h1m"]
