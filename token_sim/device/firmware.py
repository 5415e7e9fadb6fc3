"""The table of the transitions between a token's states.

Rules:
- A transition has a state, a signal, a condition, the next state and an action.
- The chip ignores a signal without a matching transition. A press therefore has no effect while the token is busy.
- The chip uses the first transition with a true condition. Transitions from the current state precede those from every
  state.
- For a HOTP code, COMMIT precedes COMPUTE. COMPUTE precedes DISPLAY and TYPING. The counter is therefore written before
  the code is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from token_sim.device import memory
from token_sim.device.chip import Chip
from token_sim.device.faults import Faults
from token_sim.device.hardware import Hardware
from token_sim.device.models import Profile
from token_sim.device.states import Signal, State


@dataclass(frozen=True, slots=True)
class Transition:
    """A transition. `when` is a condition of the chip. `do` is an action, which can return another signal."""

    state: State | None  # None: the transition applies to every state
    signal: Signal
    when: Callable[[Chip], bool]
    to: State | None  # None: the state does not change
    do: Callable[[Chip], Signal | None]


_S, _G = State, Signal

TABLE = (
    #   state            signal           when                to               do
    Transition(_S.BOOT, _G.TIMER, Chip.is_zeroised, _S.ZEROISED, Chip.do_nothing),
    Transition(_S.BOOT, _G.TIMER, Chip.is_broken, _S.FAILED, Chip.show_failure),
    Transition(_S.BOOT, _G.TIMER, Chip.is_blank, _S.BLANK, Chip.do_nothing),
    Transition(_S.BOOT, _G.TIMER, Chip.always, _S.ASLEEP, Chip.do_nothing),
    Transition(_S.BLANK, _G.SEED, Chip.always, _S.BOOT, Chip.restart),
    Transition(_S.ASLEEP, _G.CLOSE, Chip.is_ready, _S.DEBOUNCE, Chip.start_debounce),
    Transition(_S.DISPLAY, _G.CLOSE, Chip.is_ready, _S.DEBOUNCE, Chip.start_debounce),
    Transition(_S.ERROR, _G.CLOSE, Chip.is_ready, _S.DEBOUNCE, Chip.start_debounce),
    Transition(_S.DEBOUNCE, _G.OPEN, Chip.is_lit, _S.DISPLAY, Chip.do_nothing),
    Transition(_S.DEBOUNCE, _G.OPEN, Chip.always, _S.ASLEEP, Chip.do_nothing),
    Transition(_S.DEBOUNCE, _G.TIMER, Chip.always, _S.HELD, Chip.wake),
    # A button that is held down opens the menu of a token with a display.
    Transition(_S.HELD, _G.TIMER, Chip.has_menu, _S.MENU_COUNTER, Chip.show_counter),
    Transition(_S.HELD, _G.TIMER, Chip.always, _S.ASLEEP, Chip.darken),
    Transition(_S.MENU_COUNTER, _G.TIMER, Chip.always, _S.MENU_SERIAL, Chip.show_serial),
    Transition(_S.MENU_SERIAL, _G.TIMER, Chip.always, _S.MENU_BATTERY, Chip.show_battery),
    Transition(_S.MENU_BATTERY, _G.TIMER, Chip.always, _S.ASLEEP, Chip.darken),
    Transition(_S.MENU_COUNTER, _G.OPEN, Chip.always, _S.MENU, Chip.keep_lit),
    Transition(_S.MENU_SERIAL, _G.OPEN, Chip.always, _S.MENU, Chip.keep_lit),
    Transition(_S.MENU_BATTERY, _G.OPEN, Chip.always, _S.MENU, Chip.keep_lit),
    Transition(_S.MENU, _G.CLOSE, Chip.always, _S.ASLEEP, Chip.darken),
    # The button is released after a short press.
    Transition(_S.HELD, _G.OPEN, Chip.is_broken, _S.FAILED, Chip.show_failure),
    Transition(_S.HELD, _G.OPEN, Chip.is_press_to_turn_off, _S.ASLEEP, Chip.darken),
    Transition(_S.HELD, _G.OPEN, Chip.is_press_to_repeat, _S.DISPLAY, Chip.show_same),
    Transition(_S.HELD, _G.OPEN, Chip.has_no_slot, _S.ASLEEP, Chip.darken),
    Transition(_S.HELD, _G.OPEN, Chip.is_exhausted, _S.EXHAUSTED, Chip.show_exhausted),
    Transition(_S.HELD, _G.OPEN, Chip.is_counter_based, _S.COMMIT, Chip.commit),
    Transition(_S.HELD, _G.OPEN, Chip.always, _S.COMPUTE, Chip.compute),
    Transition(_S.COMMIT, _G.WRITE_FAILED, Chip.always, _S.ERROR, Chip.show_write_error),
    Transition(_S.COMMIT, _G.TIMER, Chip.always, _S.COMPUTE, Chip.compute),
    Transition(_S.COMPUTE, _G.TIMER, Chip.has_no_display, _S.TYPING, Chip.type_character),
    Transition(_S.COMPUTE, _G.TIMER, Chip.always, _S.DISPLAY, Chip.show_code),
    Transition(_S.TYPING, _G.TIMER, Chip.has_more_to_type, _S.TYPING, Chip.type_character),
    Transition(_S.TYPING, _G.TIMER, Chip.always, _S.ASLEEP, Chip.do_nothing),
    # The display time or the time step is over.
    Transition(_S.DISPLAY, _G.ROLL, Chip.always, None, Chip.show_next_step),
    Transition(_S.DISPLAY, _G.OFF, Chip.always, _S.ASLEEP, Chip.darken),
    Transition(_S.ERROR, _G.OFF, Chip.always, _S.ASLEEP, Chip.darken),
    Transition(_S.MENU, _G.OFF, Chip.always, _S.ASLEEP, Chip.darken),
    Transition(None, _G.OFF, Chip.always, None, Chip.darken),
    # In these states, a press shows the error again.
    Transition(_S.FAILED, _G.CLOSE, Chip.is_ready, None, Chip.show_failure),
    Transition(_S.EXHAUSTED, _G.CLOSE, Chip.is_ready, None, Chip.show_exhausted),
    # The power fails or is restored, or the case is opened.
    Transition(_S.DEAD, _G.FRESH, Chip.always, _S.BOOT, Chip.restart),
    Transition(_S.DEAD, _G.RESET, Chip.always, None, Chip.do_nothing),
    Transition(_S.DEAD, _G.EMPTY, Chip.always, None, Chip.do_nothing),
    Transition(_S.DEAD, _G.TAMPER, Chip.always, None, Chip.do_nothing),
    Transition(None, _G.EMPTY, Chip.always, _S.DEAD, Chip.die),
    Transition(None, _G.FRESH, Chip.always, _S.BOOT, Chip.restart),
    Transition(None, _G.RESET, Chip.always, _S.BOOT, Chip.restart),
    Transition(None, _G.TAMPER, Chip.always, _S.ZEROISED, Chip.wipe),
)

_TRANSITIONS = {
    (state, signal): [t for t in TABLE if t.signal is signal and t.state is state]
    + [t for t in TABLE if t.signal is signal and t.state is None]
    for state in State
    for signal in Signal
}


class Firmware(Chip):
    """A chip that changes its state by the transitions of TABLE."""

    def __init__(self, nvram: memory.Nvram, profile: Profile, hardware: Hardware, faults: Faults) -> None:
        super().__init__(nvram, profile, hardware, faults)
        self.restart()

    def signal(self, signal: Signal) -> None:
        """Process `signal`, and the signals that the actions return."""
        following: Signal | None = signal
        while following is not None:
            transition = next((t for t in _TRANSITIONS[self.state, following] if t.when(self)), None)
            following = None if transition is None else self._apply(transition, following)

    def _apply(self, transition: Transition, signal: Signal) -> Signal | None:
        if signal is Signal.OPEN and self.state is State.HELD:
            self.choose_slot()
        if transition.to is not None:
            self.state = transition.to
            self.deadlines.pop(Signal.TIMER, None)
        return transition.do(self)
