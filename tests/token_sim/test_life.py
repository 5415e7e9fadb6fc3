"""Tests of a simulated day: processor time, repeatability, and complete output."""

from __future__ import annotations

import random
import time

from tests.token_sim.tokens import NOON, image
from token_sim.device.models import PROFILES
from token_sim.run.simulation import Simulation


def day(seed: int) -> str:
    """Return the log, the output and the final state of 24 hours with presses, a bad line, faults and heat."""
    script = random.Random(seed)
    simulation = Simulation.in_memory(image(kind="totp", period=60), PROFILES["c200"], NOON, seed)
    line = simulation.attach()
    simulation.command({"do": "fault", "name": "line-noise", "number": 1})
    end = simulation.device.hardware.now + 24 * 3_600_000
    output = []
    while simulation.device.hardware.now < end:
        simulation.elapse(script.randrange(1, 300_000))
        simulation.device.hardware.temperature = script.randrange(10, 40)
        simulation.receive(line, script.choice([b"PRESS\r", b"PRESS 3000\r", b"DISP?\r", b"BATT?\r\n", b"HEL", b"P\n"]))
        if script.random() < 0.02:
            simulation.command({"do": "fault", "name": script.choice(["bounce", "segment", "line-stall"])})
        output.append(simulation.take_output(line))
    return "\n".join([*simulation.log, repr(output), repr(simulation.oracle())])


def test_a_day_takes_under_a_processor_second_and_is_repeatable() -> None:
    started = time.process_time()
    first = day(1)
    assert time.process_time() - started < 1.0
    assert day(1) == first
    assert day(2) != first
    assert first.count("+OTP") > 100


def test_a_day_on_a_line_without_faults_sends_every_code_once() -> None:
    simulation = Simulation.in_memory(image(), PROFILES["generic"], NOON)
    line = simulation.attach()
    out = b""
    simulation.elapse(1000)
    for _ in range(24 * 60):
        simulation.receive(line, b"PRESS\n")
        simulation.elapse(60_000)
        out += simulation.take_output(line)
    codes = [text for text in out.decode().split("\r\n") if text.startswith("+OTP")]
    assert len(codes) == 24 * 60 and simulation.oracle()["counter"] == 24 * 60
