"""Tests of the terminal interface, without a terminal.

Textual's pilot presses the keys, and `elapse` advances the time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.token_sim.pictures import StillRunner, still_runner
from token_sim.cli.tui import Button, TokenApp
from token_sim.device.faults import DESCRIPTIONS, Fault
from token_sim.device.models import GENERIC, PROFILES, Profile
from token_sim.wire.pty import Pty

Story = Callable[[TokenApp, StillRunner, Pilot[None]], Awaitable[None]]


def play(story: Story, profile: Profile = GENERIC, size: tuple[int, int] = (80, 24), **slot: Any) -> None:
    async def scene() -> None:
        runner = still_runner(profile, **slot)
        app = TokenApp(runner, ["/tmp/fob"])  # noqa: S108  # the app shows this path, and does not open it
        async with app.run_test(size=size) as pilot:
            await story(app, runner, pilot)

    asyncio.run(scene())


async def later(app: TokenApp, runner: StillRunner, pilot: Pilot[None], ms: int = 1000) -> None:
    runner.simulation.elapse(ms)
    app.tick()
    await pilot.pause()


def screen(app: TokenApp) -> str:
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


@pytest.mark.parametrize("key", ["space", "enter"])
def test_a_key_presses_the_button_and_the_code_is_shown_as_text(key: str) -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        assert "display: off; button up; asleep" in screen(app)
        await pilot.press(key)
        await later(app, runner, pilot)
        assert "display: 755224; button up; shows a code; on /tmp/fob" in screen(app)
        await later(app, runner, pilot, 31_000)
        assert "display: off" in screen(app)

    play(story)


def test_the_button_is_down_while_the_mouse_button_is_down() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        await pilot.mouse_down(Button)
        await later(app, runner, pilot, 2500)
        assert "display: 0; button down; menu counter" in screen(app)
        await pilot.mouse_up(Button)
        await later(app, runner, pilot, 60_000)
        await pilot.mouse_down(Button)
        await later(app, runner, pilot, 60)
        await pilot.mouse_up(Button)
        await later(app, runner, pilot)
        assert "display: 755224; button up" in screen(app)

    play(story)


def test_h_holds_and_releases_the_button() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        await pilot.press("h")
        await later(app, runner, pilot, 6500)
        assert "display: 00000001; button down; menu serial" in screen(app)
        await pilot.press("h")
        await later(app, runner, pilot)
        assert "button up; menu;" in screen(app)

    play(story)


def test_the_serial_number_is_on_the_back() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        assert "SMGN00000001" not in screen(app)
        await pilot.press("s")
        await later(app, runner, pilot)
        assert "S/N SMGN00000001" in screen(app) and "PRESS" not in screen(app)
        await pilot.press("s")
        await later(app, runner, pilot)
        assert "PRESS" in screen(app)

    play(story)


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_the_details_show_counter_clock_faults_and_the_serial_line(size: tuple[int, int]) -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        assert "next counter" not in screen(app)
        await pilot.press("d")
        runner.simulation.command({"do": "fault", "name": "bounce"})
        runner.simulation.receive(runner.simulation.lines[0], b"BATT?\r")
        await pilot.press("space")
        await later(app, runner, pilot)
        runner.simulation.take_output(runner.simulation.lines[0])
        await later(app, runner, pilot)
        shown = screen(app)
        for words in ("next counter 1", "last code 755224", "clock off by 0 ms", "faults none", "+OTP 755224", "PRESS"):
            assert words in shown
        await pilot.press("d")
        await later(app, runner, pilot)
        assert "next counter" not in screen(app)

    play(story, size=size)


def test_a_time_based_token_has_a_bar_for_its_time() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        await pilot.press("space")
        await later(app, runner, pilot)
        assert "code ██████████ 58 s" in screen(app)
        await later(app, runner, pilot, 24_000)
        assert "code ██████░░░░ 34 s" in screen(app)

    play(story, PROFILES["c200"], kind="totp", period=60)


def test_the_fault_menu_injects_and_clears_a_fault() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        await pilot.press("f", "down", "down", "enter")
        await pilot.pause()
        assert runner.simulation.faults() == {"torn-write": 1}
        await pilot.press("f", "down", "down", "enter")
        await pilot.pause()
        assert runner.simulation.faults() == {}
        await pilot.press("f", "escape", "space")
        await later(app, runner, pilot)
        assert "display: 755224" in screen(app)

    play(story)


def test_the_fault_menu_has_key_hints_and_hanging_indents() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        await pilot.press("f")
        await pilot.pause()
        lines = [line.strip(" │") for line in screen(app).splitlines()]
        first = next(line for line in lines if line.startswith("power-after-write"))
        following = screen(app).splitlines()[lines.index(first) + 1]
        assert following.index("the code is shown") == screen(app).splitlines()[lines.index(first)].index("power fails")
        assert "Enter: inject or clear · Esc: back" in screen(app)

    play(story)


def test_the_fault_menu_shows_and_replaces_a_dead_battery() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        runner.command({"do": "fault", "name": "dead-battery"})
        await pilot.press("f")
        await pilot.pause()
        assert "● dead-battery" in screen(app)
        await pilot.press(*["down"] * list(DESCRIPTIONS).index(Fault.DEAD_BATTERY), "enter")
        await later(app, runner, pilot)
        assert runner.simulation.faults() == {} and "asleep" in screen(app)

    play(story)


@pytest.mark.parametrize("size", [(20, 5), (57, 30), (100, 16)])
def test_a_terminal_that_is_too_small_is_reported_with_the_code(size: tuple[int, int]) -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        await pilot.press("space")
        await later(app, runner, pilot)
        lines = [line.strip() for line in screen(app).splitlines()]
        assert lines[:3] == [f"too small: {size[0]}x{size[1]}", "needs 58x17", "display: 755224"]
        await pilot.resize_terminal(58, 17)
        await later(app, runner, pilot)
        assert "too small" not in screen(app) and "PRESS" in screen(app) and "display: 755224;" in screen(app)

    play(story, size=size)


def test_a_port_that_cannot_be_plugged_in_is_reported(tmp_path: Path) -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        runner.ports.append((Pty(str(tmp_path / "port")), runner.simulation.lines[0], bytearray()))
        try:
            await pilot.press("u")
            (tmp_path / "port").write_text("another file")
            await pilot.press("u")
            await later(app, runner, pilot)
            assert "asleep; unplugged" in screen(app)
            assert ["file already exists" in notice.message for notice in app._notifications] == [True]
        finally:
            runner.close()

    play(story)


def test_the_state_line_shows_that_the_token_is_unplugged() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        await pilot.press("u")
        await later(app, runner, pilot)
        assert "asleep; unplugged" in screen(app)
        await pilot.press("u")
        await later(app, runner, pilot)
        assert "asleep; on /tmp/fob" in screen(app)

    play(story)


def test_without_colour_unlit_segments_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def strokes() -> int:
        counts = []

        async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
            await pilot.press("space")
            await later(app, runner, pilot)
            counts.append(screen(app).count("━━━"))

        play(story)
        return counts[0]

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert strokes() == 8 * 3
    monkeypatch.setenv("NO_COLOR", "1")
    assert strokes() == 14  # the horizontal strokes of 755224


def test_the_key_q_ends_the_app() -> None:
    async def story(app: TokenApp, runner: StillRunner, pilot: Pilot[None]) -> None:
        await pilot.press("q")
        assert not app.is_running or app._exit

    play(story)
