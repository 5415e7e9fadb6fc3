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

# Nobody's: quick, so that a script need not wait, and every press counts.
GENERIC = Profile(name="generic", title="OATH token", serial_type="GN", kind="hotp")

# Event-based, 6 digits, shipped with PSKC: RCDevs' "Feitian c100 - c200 Tokens with OpenOTP". The rest approximate.
C100 = Profile(
    name="c100",
    title="C100-like",
    serial_type="C1",
    kind="hotp",
    lit_press="same",
    debounce_ms=30,
    press_ms=120,
    rest_ms=500,
    compute_ms=60,
)

# Time-based with 60 s unless ordered otherwise: the same page of RCDevs'. The rest approximate.
C200 = Profile(
    name="c200",
    title="C200-like",
    serial_type="C2",
    kind="totp",
    period=60,
    lit_press="same",
    debounce_ms=30,
    press_ms=120,
    rest_ms=500,
    compute_ms=60,
)

# Sold event-based and time-based: Thales' "OTP hardware token" page. We take the event-based one; figures approximate.
ETOKEN_PASS = Profile(
    name="etoken-pass",
    title="eToken-PASS-like",
    serial_type="EP",
    kind="hotp",
    lit_press="next",
    display_ms=15_000,
    debounce_ms=30,
    press_ms=120,
    rest_ms=1_000,
    compute_ms=60,
)

# A press turns it on and the next one off; off by itself after about 32 s; time, battery and serial number behind a
# press of 6 s: a help page of iPrescribe's for the OneSpan Digipass GO 7. Period, battery and the rest approximate.
GO7 = Profile(
    name="go7",
    title="GO-7-like",
    serial_type="G7",
    kind="totp",
    lit_press="off",
    display_ms=32_000,
    debounce_ms=30,
    press_ms=120,
    rest_ms=300,
    compute_ms=60,
)

# A touch of 1 – 2.5 s is for slot 1, of 3 – 5 s for slot 2, and the code is typed: Yubico's .NET SDK manual, "Slots".
# Pacing is a setting of 0, 20, 40 or 60 ms; we take 20. The host powers it, so its battery never ends: approximate.
YUBIKEY = Profile(
    name="yubikey",
    title="YubiKey-like",
    serial_type="YK",
    kind="hotp",
    display_ms=0,
    menu=False,
    slots=2,
    debounce_ms=50,
    press_ms=1_000,
    rest_ms=1_200,
    compute_ms=20,
    type_ms=20,
    slot1_until_ms=2_500,
    slot2_from_ms=3_000,
    sleep_na=0,
    lit_na=0,
    press_nah=0,
)

PROFILES = {profile.name: profile for profile in (GENERIC, C100, C200, ETOKEN_PASS, GO7, YUBIKEY)}
