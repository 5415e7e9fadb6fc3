"""Tests of faults of the serial line: noise, loss, doubled bytes, delay, and the wrong speed."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tests.token_sim.tokens import NOON, image
from token_sim.device.models import GENERIC
from token_sim.run.simulation import Simulation
from token_sim.wire.bad_line import Line, at_double_speed

ANSWER = b"text=\r\nOK\r\n"


def simulation_and_line() -> tuple[Simulation, Line]:
    simulation = Simulation.in_memory(image(), GENERIC, NOON)
    simulation.elapse(1000)
    return simulation, simulation.attach()


def fault(simulation: Simulation, name: str, **more: int) -> None:
    simulation.command({"do": "fault", "name": name, **more})


def answer(simulation: Simulation, line: Line) -> bytes:
    line.session.receive(b"DISP?\r")  # directly to the session, because the line's faults would change the request
    return simulation.take_output(line)


def test_the_rate_of_faulty_bytes_is_the_set_rate() -> None:
    checks: tuple[tuple[str, Callable[[bytes, bytes], bool]], ...] = (
        ("line-drop", lambda sent, received: len(sent) * 0.4 < len(received) < len(sent) * 0.6),
        ("line-double", lambda sent, received: len(sent) * 1.4 < len(received) < len(sent) * 1.6),
        ("line-noise", lambda sent, received: 0.4 < sum(map(int.__ne__, sent, received)) / len(sent) < 0.6),
    )
    for name, check in checks:
        simulation, line = simulation_and_line()
        fault(simulation, name, number=50)
        received = b"".join(answer(simulation, line) for _ in range(200))
        assert check(ANSWER * 200, received), name
        simulation.command({"do": "clear", "name": name})
        assert answer(simulation, line) == ANSWER


def test_a_stalled_line_delays_all_output() -> None:
    simulation, line = simulation_and_line()
    fault(simulation, "line-stall", number=500)
    assert answer(simulation, line) == b""
    simulation.elapse(499)
    assert answer(simulation, line) == b""
    simulation.elapse(1)
    assert simulation.take_output(line) == ANSWER * 2
    assert answer(simulation, line) == ANSWER


@given(st.binary(min_size=1, max_size=50))
def test_at_the_wrong_speed_every_input_is_garbled(data: bytes) -> None:
    garbled = at_double_speed(data)
    assert garbled != data and len(garbled) >= len(data)


def test_the_line_works_again_after_the_wrong_speed() -> None:
    simulation, line = simulation_and_line()
    fault(simulation, "line-baud")
    simulation.receive(line, b"*IDN?\r" * 20)
    simulation.command({"do": "clear", "name": "line-baud"})
    simulation.receive(line, b"\r")
    simulation.take_output(line)
    assert answer(simulation, line) == ANSWER
