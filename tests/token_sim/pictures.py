"""The program that draws the pictures of docs/token_sim.md: `python -m tests.token_sim.pictures docs/images`.

Every run draws the same pictures, because the key (RFC 4226 appendix D) and the time are fixed.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

from tests.token_sim.tokens import NOON, image
from token_sim.cli.tui import TokenApp
from token_sim.device import models
from token_sim.run.loop import Runner
from token_sim.run.simulation import Simulation

FONTS = re.compile(
    r"@font-face \{.*?\}\s*", re.DOTALL
)  # `draw` removes the web fonts, so that a viewer downloads no files


class StillRunner(Runner):
    """A runner without real time: only `elapse` advances the time."""

    def _catch_up(self) -> None: ...


def still_runner(profile: models.Profile = models.GENERIC, **slot: Any) -> StillRunner:
    simulation = Simulation.in_memory(image(**slot), profile, NOON)
    runner = StillRunner(simulation, [])
    simulation.attach()
    runner.simulation.elapse(1000)
    return runner


async def draw(folder: str) -> None:
    c200 = models.PROFILES["c200"]
    for name, size, keys, profile, slot in (
        ("token", (80, 24), "space", models.GENERIC, {}),
        ("token-details", (120, 40), "d", c200, {"kind": "totp", "period": 60}),
        ("token-back", (80, 24), "s", models.GENERIC, {}),
        ("token-faults", (80, 24), "f", models.GENERIC, {}),
    ):
        runner = still_runner(profile, **slot)
        simulation = runner.simulation
        app = TokenApp(runner, ["/tmp/fob"])  # noqa: S108  # the app shows this path, and does not open it
        async with app.run_test(size=size) as pilot:
            for request in (b"*IDN?\r", b"PRESS\r", b"DISP?\r", b"BATT?\r") if name == "token-details" else ():
                simulation.receive(simulation.lines[0], request)
                runner.simulation.elapse(900)
                simulation.take_output(simulation.lines[0])
            await pilot.press(keys)
            runner.simulation.elapse(900)
            app.tick()
            await pilot.pause()
            drawn = FONTS.sub("", app.export_screenshot())
            Path(folder, f"{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    os.makedirs(sys.argv[1], exist_ok=True)
    asyncio.run(draw(sys.argv[1]))
