"""Tests of the faults of a token. Every code that the token sends after a fault is right and new."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.token_sim.tokens import APPENDIX_D, NOON, codes, image, press, token
from token_sim.device.faults import DESCRIPTIONS, PERMANENT, Fault
from token_sim.device.hardware import new_hardware
from token_sim.device.memory import Ram, load
from token_sim.device.models import GENERIC
from token_sim.device.states import State
from token_sim.device.token import Device


def test_every_fault_has_a_description() -> None:
    assert set(DESCRIPTIONS) == set(Fault)


@pytest.mark.parametrize(
    ("fault", "next_code"),
    [(Fault.POWER_BEFORE_WRITE, 0), (Fault.POWER_AFTER_WRITE, 1), (Fault.TORN_WRITE, 1), (Fault.WRITE_ERROR, 0)],
)
def test_a_failed_press_shows_no_code_and_the_next_press_a_new_code(fault: Fault, next_code: int) -> None:
    device = token()
    device.inject(fault)
    assert press(device) == []
    assert press(device) == [APPENDIX_D[next_code]]


def test_an_armed_write_error_happens_the_set_number_of_times() -> None:
    device = token()
    device.inject(Fault.WRITE_ERROR, times=3)
    for _ in range(3):
        assert press(device) == [] and device.visible_text() == "Err 2"
    assert press(device) == APPENDIX_D[:1]


@given(fault=st.sampled_from([Fault.TORN_WRITE, Fault.POWER_AFTER_WRITE, Fault.POWER_BEFORE_WRITE]), data=st.data())
def test_power_loss_at_any_time_may_skip_but_never_repeats_a_code(fault: Fault, data: st.DataObject) -> None:
    memory, shown = Ram(image()), []
    for _ in range(8):
        device = Device(memory, GENERIC, new_hardware(GENERIC, NOON))  # a restart after a loss of power
        device.elapse(100)
        if data.draw(st.booleans(), label="fault"):
            device.inject(fault)
        device.press()
        device.elapse(data.draw(st.integers(0, 200), label="ms until the power fails"))
        shown += codes(device)
    assert len(shown) == len(set(shown))
    positions = [APPENDIX_D.index(code) for code in shown]
    assert positions == sorted(positions)


@pytest.mark.parametrize("seed", range(40))
def test_after_bit_rot_a_press_shows_an_error_instead_of_a_code(seed: int) -> None:
    device = Device(Ram(image()), GENERIC, new_hardware(GENERIC, NOON), seed)
    device.elapse(1000)
    device.inject(Fault.BIT_ROT)
    assert press(device) == [] and device.visible_text() == "Err 1" and device.state is State.FAILED
    assert not device.is_healthy


def test_a_stuck_button_shows_no_codes() -> None:
    device = token()
    device.inject(Fault.STUCK_BUTTON)
    device.elapse(3_600_000)
    assert codes(device) == [] and press(device) == []
    device.clear_fault(Fault.STUCK_BUTTON)
    device.elapse(1000)
    assert press(device) == APPENDIX_D[:1]


def test_a_bouncing_contact_counts_once_unless_it_bounces_too_long() -> None:
    device = token()
    device.inject(Fault.BOUNCE, times=2)
    assert press(device, 60) + press(device, 60) == APPENDIX_D[:2]
    device.inject(Fault.BOUNCE, number=150)
    assert (
        press(device, 500) == APPENDIX_D[2:5]
    )  # the contact closes three times: at the press, and at a bounce after the press and the release


def test_a_weak_battery_is_reported_and_a_dead_battery_shows_no_code() -> None:
    device = token()
    device.inject(Fault.WEAK_BATTERY)
    assert [(event.name, event.text) for event in device.take_events()] == [("BATT", "LOW")]
    assert press(device) == APPENDIX_D[:1]
    device.inject(Fault.DEAD_BATTERY)
    assert device.state is State.DEAD and press(device) == []
    device.clear_fault(Fault.DEAD_BATTERY)
    device.elapse(1000)
    assert press(device) == APPENDIX_D[1:2]


def test_a_dead_segment_changes_the_display_but_not_the_event() -> None:
    device = token()
    device.inject(Fault.SEGMENT, number=12)  # without segment c of the second cell, 5 is unreadable
    device.inject(Fault.SEGMENT, number=0)  # without segment a of the first cell, 7 is read as 1
    assert press(device) == APPENDIX_D[:1]
    assert device.visible_text() == "1?5224"
    device.clear_fault(Fault.SEGMENT)
    assert device.visible_text() == "755224"


def test_a_counter_at_its_limit_shows_no_code() -> None:
    device = token()
    device.inject(Fault.COUNTER_LIMIT)
    assert press(device) == [] and device.state is State.EXHAUSTED


def test_tampering_wipes_the_seed() -> None:
    device = token()
    device.inject(Fault.TAMPER)
    assert device.state is State.ZEROISED and press(device) == []
    assert load(device.memory.read()).slots == (None,)


def test_a_restored_snapshot_is_a_clone_and_repeats_codes() -> None:
    device = token()
    snapshot, hardware = device.memory.read(), new_hardware(GENERIC, NOON)
    first = press(device)
    device.restore(snapshot, hardware)
    device.elapse(1000)
    device.take_events()
    assert press(device) == first


def test_permanent_faults_cannot_be_cleared() -> None:
    for fault in PERMANENT - {Fault.WEAK_BATTERY, Fault.DEAD_BATTERY}:
        with pytest.raises(ValueError, match="cannot be undone"):
            token().clear_fault(fault)
