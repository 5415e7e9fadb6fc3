"""Kinds of token: what a model does and how fast, as one table.

Times are milliseconds of the token's life, charges microampere-hours, currents nanoamperes. Where a figure was
not read in a maker's document it is called approximate; none of them decides what a code is.
"""

from __future__ import annotations

from dataclasses import dataclass

LAST_COUNTER = (1 << 64) - 1  # RFC 4226 §5.2: an 8-byte counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One model. `lit_press` says what a press does while the display is on: `off`, `same` or `next`."""

    name: str
    title: str
    serial_type: str  # two characters, after the maker's two in an OATH token identifier
    kind: str  # hotp or totp: what the factory writes if nobody says otherwise
    digits: int = 6
    algorithm: str = "SHA1"
    period: int = 30  # seconds, of a TOTP token
    lit_press: str = "next"
    display_ms: int = 30_000  # auto-off; 0: no display, the code is typed
    menu: bool = True  # a long press shows counter, then serial and battery
    slots: int = 1
    debounce_ms: int = 10
    press_ms: int = 50  # how long a finger of ours stays on the button
    rest_ms: int = 100  # the least time from one press to the next
    commit_ms: int = 5
    compute_ms: int = 15
    type_ms: int = 0  # between two typed characters
    slot2_from_ms: int = 0  # a touch at least this long is for the second slot
    slot1_until_ms: int = 0  # a touch up to this long is for the first one
    counter_limit: int = LAST_COUNTER
    battery_uah: int = 200_000
    sleep_na: int = 1_000
    lit_na: int = 6_000
    press_nah: int = 100  # the charge of one computation and one write
    quartz_ppm: int = 20  # a crystal leaves the factory within ± this at 25 °C


MENU_COUNTER_MS = 2_000  # held this long, the button shows the counter
MENU_SERIAL_MS = 6_000  # … and this long the serial number
MENU_BATTERY_MS = 8_000  # … and then the battery
HELD_TOO_LONG_MS = 30_000  # a button that never comes up again is ignored until it does

GENERIC = Profile(name="generic", title="OATH token", serial_type="GN", kind="hotp")

PROFILES = {profile.name: profile for profile in (GENERIC,)}
