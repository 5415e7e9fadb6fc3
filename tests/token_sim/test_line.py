"""A line with faults."""

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
    line.session.receive(b"DISP?\r")  # not through the line, whose faults would change the request
    return simulation.take_output(line)


def test_the_share_of_faulty_bytes_is_the_requested_share() -> None:
    checks: tuple[tuple[str, Callable[[bytes, bytes], bool]], ...] = (
        ("line-drop", lambda sent, came: len(sent) * 0.4 < len(came) < len(sent) * 0.6),
        ("line-double", lambda sent, came: len(sent) * 1.4 < len(came) < len(sent) * 1.6),
        ("line-noise", lambda sent, came: 0.4 < sum(map(bytes.__ne__, cut(sent), cut(came))) / len(sent) < 0.6),
    )
    for name, check in checks:
        simulation, line = simulation_and_line()
        fault(simulation, name, number=50)
        came = b"".join(answer(simulation, line) for _ in range(200))
        assert check(ANSWER * 200, came), name
        simulation.command({"do": "clear", "name": name})
        assert answer(simulation, line) == ANSWER


def cut(data: bytes) -> list[bytes]:
    return [data[n : n + 1] for n in range(len(data))]


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
def test_the_wrong_speed_garbles_every_input(data: bytes) -> None:
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
