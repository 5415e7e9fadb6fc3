"""The life of a token as one table.

The law:
- a signal that has no row in its state does nothing, as a button does nothing on a token that is busy;
- the first row whose condition holds is the one; rows for any state come after the state's own;
- COMMIT comes before COMPUTE, and COMPUTE before DISPLAY and TYPING: no way leads to a code around the write.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    BOOT = "boot"  # the self-test after power came
    BLANK = "blank"  # no seed yet
    ASLEEP = "asleep"  # sealed, display off
    DEBOUNCE = "debounce"  # the contact closed; is it a finger?
    HELD = "held"  # it is
    MENU_COUNTER = "menu-counter"
    MENU_SERIAL = "menu-serial"
    MENU_BATTERY = "menu-battery"
    MENU = "menu"  # let go; what was chosen stays on the display
    COMMIT = "commit"  # the next counter is being written
    COMPUTE = "compute"
    DISPLAY = "display"
    TYPING = "typing"
    ERROR = "error"  # this press failed; the next one may not
    FAILED = "failed"  # the self-test did: no more codes
    EXHAUSTED = "exhausted"  # the counter is at its limit
    DEAD = "dead"  # the battery is
    ZEROISED = "zeroised"  # the seed was wiped


class Signal(StrEnum):
    CLOSE = "close"  # the button's contact
    OPEN = "open"
    TIMER = "timer"  # the state's own time is over
    OFF = "off"  # the display's is
    ROLL = "roll"  # a time step began while a code is shown
    SEED = "seed"  # the factory
    WRITE_FAILED = "write-failed"
    RESET = "reset"  # power went and came
    EMPTY = "empty"  # the battery
    FRESH = "fresh"  # a new battery
    TAMPER = "tamper"


@dataclass(frozen=True, slots=True)
class Row:
    """`when` and `do` are names of Device's conditions and actions; an action may answer with a further signal."""

    state: State | None  # None: any
    signal: Signal
    when: str
    to: State | None  # None: stay
    do: str


_S, _G = State, Signal

TABLE = (
    #   state            signal           when                to               do
    Row(_S.BOOT, _G.TIMER, "is_zeroised", _S.ZEROISED, "nothing"),
    Row(_S.BOOT, _G.TIMER, "is_broken", _S.FAILED, "show_failure"),
    Row(_S.BOOT, _G.TIMER, "is_blank", _S.BLANK, "nothing"),
    Row(_S.BOOT, _G.TIMER, "always", _S.ASLEEP, "nothing"),
    Row(_S.BLANK, _G.SEED, "always", _S.BOOT, "restart"),
    Row(_S.ASLEEP, _G.CLOSE, "rested", _S.DEBOUNCE, "start_debounce"),
    Row(_S.DISPLAY, _G.CLOSE, "rested", _S.DEBOUNCE, "start_debounce"),
    Row(_S.ERROR, _G.CLOSE, "rested", _S.DEBOUNCE, "start_debounce"),
    Row(_S.DEBOUNCE, _G.OPEN, "lit", _S.DISPLAY, "nothing"),
    Row(_S.DEBOUNCE, _G.OPEN, "always", _S.ASLEEP, "nothing"),
    Row(_S.DEBOUNCE, _G.TIMER, "always", _S.HELD, "wake"),
    # held: the menu of a token with a display
    Row(_S.HELD, _G.TIMER, "has_menu", _S.MENU_COUNTER, "show_counter"),
    Row(_S.HELD, _G.TIMER, "always", _S.ASLEEP, "darken"),
    Row(_S.MENU_COUNTER, _G.TIMER, "always", _S.MENU_SERIAL, "show_serial"),
    Row(_S.MENU_SERIAL, _G.TIMER, "always", _S.MENU_BATTERY, "show_battery"),
    Row(_S.MENU_BATTERY, _G.TIMER, "always", _S.ASLEEP, "darken"),
    Row(_S.MENU_COUNTER, _G.OPEN, "always", _S.MENU, "keep_lit"),
    Row(_S.MENU_SERIAL, _G.OPEN, "always", _S.MENU, "keep_lit"),
    Row(_S.MENU_BATTERY, _G.OPEN, "always", _S.MENU, "keep_lit"),
    Row(_S.MENU, _G.CLOSE, "always", _S.ASLEEP, "darken"),
    # let go after a short press
    Row(_S.HELD, _G.OPEN, "is_broken", _S.FAILED, "show_failure"),
    Row(_S.HELD, _G.OPEN, "showing_code_and_turns_off", _S.ASLEEP, "darken"),
    Row(_S.HELD, _G.OPEN, "showing_code_and_repeats_it", _S.DISPLAY, "show_same"),
    Row(_S.HELD, _G.OPEN, "between_slots", _S.ASLEEP, "darken"),
    Row(_S.HELD, _G.OPEN, "is_exhausted", _S.EXHAUSTED, "show_exhausted"),
    Row(_S.HELD, _G.OPEN, "counts", _S.COMMIT, "commit"),
    Row(_S.HELD, _G.OPEN, "always", _S.COMPUTE, "compute"),
    Row(_S.COMMIT, _G.WRITE_FAILED, "always", _S.ERROR, "show_write_error"),
    Row(_S.COMMIT, _G.TIMER, "always", _S.COMPUTE, "compute"),
    Row(_S.COMPUTE, _G.TIMER, "types", _S.TYPING, "type_one"),
    Row(_S.COMPUTE, _G.TIMER, "always", _S.DISPLAY, "show_code"),
    Row(_S.TYPING, _G.TIMER, "has_more_to_type", _S.TYPING, "type_one"),
    Row(_S.TYPING, _G.TIMER, "always", _S.ASLEEP, "nothing"),
    # the display's own time
    Row(_S.DISPLAY, _G.ROLL, "always", None, "show_next_step"),
    Row(_S.DISPLAY, _G.OFF, "always", _S.ASLEEP, "darken"),
    Row(_S.ERROR, _G.OFF, "always", _S.ASLEEP, "darken"),
    Row(_S.MENU, _G.OFF, "always", _S.ASLEEP, "darken"),
    Row(None, _G.OFF, "always", None, "darken"),
    # states that a press cannot leave
    Row(_S.FAILED, _G.CLOSE, "rested", None, "show_failure"),
    Row(_S.EXHAUSTED, _G.CLOSE, "rested", None, "show_exhausted"),
    # power
    Row(_S.DEAD, _G.FRESH, "always", _S.BOOT, "restart"),
    Row(_S.DEAD, _G.RESET, "always", None, "nothing"),
    Row(_S.DEAD, _G.EMPTY, "always", None, "nothing"),
    Row(_S.DEAD, _G.TAMPER, "always", None, "nothing"),
    Row(None, _G.EMPTY, "always", _S.DEAD, "die"),
    Row(None, _G.FRESH, "always", _S.BOOT, "restart"),
    Row(None, _G.RESET, "always", _S.BOOT, "restart"),
    Row(None, _G.TAMPER, "always", _S.ZEROISED, "wipe"),
)


def rows(state: State, signal: Signal) -> list[Row]:
    """The rows that can apply, in the order in which they are asked."""
    return _INDEX.get((state, signal), [])


_INDEX = {
    (state, signal): [r for r in TABLE if r.signal is signal and r.state is state]
    + [r for r in TABLE if r.signal is signal and r.state is None]
    for state in State
    for signal in Signal
}
