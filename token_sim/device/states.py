"""The states of a token, and the signals that change the state."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    BOOT = "boot"  # the self-test after power-on
    BLANK = "blank"  # before the factory writes a seed
    ASLEEP = "asleep"  # sealed, display off
    DEBOUNCE = "debounce"  # the contact was closed by a press or a bounce
    HELD = "held"  # pressed, for longer than a bounce
    MENU_COUNTER = "menu-counter"
    MENU_SERIAL = "menu-serial"
    MENU_BATTERY = "menu-battery"
    MENU = "menu"  # released; the chosen item stays on the display
    COMMIT = "commit"  # the next counter is being written
    COMPUTE = "compute"
    DISPLAY = "display"
    TYPING = "typing"
    ERROR = "error"  # this press failed; the next press may succeed
    FAILED = "failed"  # the self-test failed: no more codes
    EXHAUSTED = "exhausted"  # the counter is at its limit
    DEAD = "dead"  # the battery is empty
    ZEROISED = "zeroised"  # the seed was wiped


class Signal(StrEnum):
    CLOSE = "close"  # the button's contact closed
    OPEN = "open"
    TIMER = "timer"  # the time of the state is over
    OFF = "off"  # the display time is over
    ROLL = "roll"  # a time step began while a code was shown
    SEED = "seed"  # the factory wrote a seed
    WRITE_FAILED = "write-failed"
    RESET = "reset"  # the power failed and was restored
    EMPTY = "empty"  # the battery is empty
    FRESH = "fresh"  # the battery was replaced, or a snapshot was restored
    TAMPER = "tamper"
