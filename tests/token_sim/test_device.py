"""Tests of the simulated device, in virtual time: states, button, display, slots and battery."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pam_totp.core.oath import hotp, totp
from tests.token_sim.tokens import APPENDIX_D, NOON, SEED, codes, image, press, token
from token_sim.device.firmware import TABLE
from token_sim.device.hardware import YEAR, new_hardware
from token_sim.device.memory import Ram, build, load
from token_sim.device.models import GENERIC, PROFILES
from token_sim.device.states import Signal, State
from token_sim.device.token import Device

C100, C200, GO7, ETOKEN, YUBIKEY = (PROFILES[name] for name in ("c100", "c200", "go7", "etoken-pass", "yubikey"))


def events(device: Device) -> list[str]:
    return [f"{event.name} {event.text}" for event in device.take_events()]


def test_ten_presses_show_the_codes_of_rfc_4226() -> None:
    device = token()
    assert [code for _ in range(10) for code in press(device)] == APPENDIX_D


@pytest.mark.parametrize("algorithm", ["SHA1", "SHA256", "SHA512"])
@pytest.mark.parametrize("digits", [6, 7, 8])
def test_every_algorithm_and_length_is_shown(algorithm: str, digits: int) -> None:
    device = token(algorithm=algorithm, digits=digits, counter=3)
    assert press(device) == [hotp(SEED, 3, digits, algorithm)]
    assert device.visible_text() == hotp(SEED, 3, digits, algorithm)


def test_every_state_can_be_reached_and_left() -> None:
    reached = {row.to for row in TABLE} | {State.BOOT}
    assert reached >= set(State)
    for state in set(State) - {State.DEAD}:
        assert any(row.signal is Signal.EMPTY and row.state in (state, None) for row in TABLE)


def test_a_code_is_shown_only_after_its_counter_was_written() -> None:
    device = token()
    device.press()
    while device.state is not State.DISPLAY:
        counter = load(device.memory.read()).counters[0]
        assert not device.chip.text
        assert (counter == 1) is (device.state in (State.COMMIT, State.COMPUTE))
        device.elapse(1)
    assert codes(device) == APPENDIX_D[:1]


def test_a_touch_shorter_than_the_debounce_does_nothing() -> None:
    device = token()
    assert press(device, GENERIC.debounce_ms - 1) == []
    assert load(device.memory.read()).counters[0] == 0


def test_presses_too_close_together_count_once() -> None:
    device = token(ETOKEN)
    assert press(device, then=ETOKEN.rest_ms - ETOKEN.press_ms - 10) == APPENDIX_D[:1]
    assert press(device) == []
    assert press(device) == APPENDIX_D[1:2]


def test_the_display_turns_off_after_its_time() -> None:
    device = token()
    press(device)
    device.elapse(GENERIC.display_ms)
    assert events(device) == ["DISP OFF"] and device.chip.text == ""


def test_a_press_while_lit_shows_the_next_code_or_the_same_or_turns_off() -> None:
    following, same, off = token(ETOKEN), token(C100), token(GO7, kind="totp")
    for device in (following, same, off):
        assert len(press(device)) == 1
    assert press(following) == APPENDIX_D[1:2]
    same.press()
    same.elapse(1000)
    assert events(same) == ["DISP SAME"] and same.visible_text() == APPENDIX_D[0]
    off.press()
    off.elapse(1000)
    assert events(off) == ["DISP OFF"] and off.visible_text() == ""
    assert len(press(off)) == 1


def test_a_long_press_shows_counter_serial_and_battery_and_uses_no_code() -> None:
    device = token(counter=41)
    device.close()
    seen = []
    for at in (1_900, 200, 4_000, 2_000):
        device.elapse(at)
        seen.append(device.visible_text())
    assert seen == ["", "41", "00000001", "b 100"]
    device.open()
    assert device.visible_text() == "b 100"
    device.elapse(GENERIC.display_ms)
    assert device.visible_text() == "" and press(device) == [hotp(SEED, 41)]


def test_a_button_held_too_long_is_ignored_until_released() -> None:
    device = token()
    device.close()
    device.elapse(10 * 60_000)
    assert (device.state, device.visible_text()) == (State.ASLEEP, "")
    device.open()
    device.elapse(1000)
    assert press(device) == APPENDIX_D[:1]


def test_a_totp_token_shows_the_code_of_its_clock_and_of_the_next_step() -> None:
    device = token(C200, kind="totp", period=60)
    assert press(device) == [totp(SEED, NOON // 1000, period=60)]
    device.elapse(48_000)
    press(device)  # the display shows the same code until the next time step begins
    device.elapse(10_000)
    assert codes(device) == [totp(SEED, NOON // 1000 + 60, period=60)] == [device.visible_text()]


def test_a_yubikey_types_code_and_return_from_the_slot_of_the_touch() -> None:
    from token_sim.device.memory import Slot

    slots = (Slot(kind="hotp", key=SEED), Slot(kind="hotp", key=SEED, digits=8))
    device = Device(Ram(build("SMYK00000001", slots, (0, 5))), YUBIKEY, new_hardware(YUBIKEY, NOON))
    device.elapse(1000)

    def typed(ms: int) -> tuple[str, list[int]]:
        device.take_events()
        device.press(ms)
        device.elapse(ms + 5000)
        events = [event for event in device.take_events() if event.name == "TYPE"]
        gaps = [after.at - before.at for before, after in pairwise(events)]
        return "".join(event.text for event in events), gaps

    assert typed(1_000) == ("755224\r", [YUBIKEY.type_ms] * 6)
    assert typed(3_500)[0] == hotp(SEED, 5, 8) + "\r"
    assert typed(2_700)[0] == ""  # above the maximum for slot 1, below the minimum for slot 2
    assert typed(1_000)[0] == "287082\r"


def test_a_long_touch_without_a_second_seed_types_nothing() -> None:
    device = token(YUBIKEY)
    device.press(3_500)
    device.elapse(10_000)
    assert events(device) == [] and load(device.memory.read()).counters == (0, 0)


def test_a_low_then_dead_battery_is_reported_and_can_be_replaced() -> None:
    device = token()
    press(device)
    device.elapse(40 * YEAR)
    assert [line for line in events(device) if "BATT" in line] == ["BATT LOW", "BATT DEAD"]
    assert press(device) == [] and device.state is State.DEAD
    from token_sim.device.faults import Fault

    device.clear_fault(Fault.DEAD_BATTERY)
    device.elapse(1000)
    assert press(device) == APPENDIX_D[1:2]


def test_an_exhausted_counter_shows_an_error_instead_of_a_code() -> None:
    device = token(counter=9, limit=10)
    assert press(device) == APPENDIX_D[9:]
    device.press()
    device.elapse(1000)
    assert events(device) == ["ERR EXHAUSTED"] and device.visible_text() == "End"
    assert press(device) == []


def test_a_blank_token_shows_codes_once_its_seed_is_written() -> None:
    memory = Ram(build("SMGN00000001", (None,), (0,)))
    device = token(nvram=memory)
    assert device.state is State.BLANK and press(device) == []
    memory.write(0, image())
    device.chip.signal(Signal.SEED)
    device.elapse(1000)
    assert press(device) == APPENDIX_D[:1]


def test_the_length_of_time_steps_changes_no_result() -> None:
    def life(step: int) -> list[object]:
        device = token(C200, kind="totp", period=60)
        for _ in range(40):
            device.press(100)
            for _ in range(21_000 // step):
                device.elapse(step)
        return [*device.take_events(), device.hardware.to_doc()]

    assert life(21_000) == life(7) == life(1_000)


def test_negative_time_is_refused() -> None:
    with pytest.raises(ValueError, match="0 ms or more"):
        token().elapse(-1)
