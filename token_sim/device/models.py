"""The table of the models of tokens: behaviour, times and power.

Times are in milliseconds, charges in microampere-hours, currents in nanoamperes. The comment at a model names the
source of its values. All other values are approximate, and have no effect on a code.
"""

from __future__ import annotations

from dataclasses import dataclass

LAST_COUNTER = (1 << 64) - 1  # RFC 4226 §5.2: an 8-byte counter


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A model. `lit_press` is the effect of a press while the display is on: `off`, `same` code or `next` code."""

    name: str
    title: str
    serial_type: str  # the third and fourth characters of an OATH token identifier, after the maker
    kind: str  # hotp or totp: the factory's default
    digits: int = 6
    algorithm: str = "SHA1"
    period: int = 30  # seconds, for TOTP
    lit_press: str = "next"
    display_ms: int = 30_000  # the time until the display turns off; 0: a token without a display types the code
    menu: bool = True  # a long press shows the counter, then the serial number, then the battery
    slots: int = 1
    debounce_ms: int = 10
    press_ms: int = 50  # the default length of a press
    rest_ms: int = 100  # the minimum time from one press to the next
    commit_ms: int = 5
    compute_ms: int = 15
    type_ms: int = 0  # the time from one typed character to the next
    slot2_from_ms: int = 0  # the minimum length of a touch for the second slot; 0: one slot
    slot1_until_ms: int = 0  # the maximum length of a touch for the first slot
    counter_limit: int = LAST_COUNTER
    battery_uah: int = 200_000
    sleep_na: int = 1_000
    lit_na: int = 6_000
    press_nah: int = 100  # the charge of one computation and one write
    quartz_ppm: int = 20  # ±: the maximum initial error of a crystal at 25 °C


# The time for which a user holds the button, and the effect:
MENU_COUNTER_MS = 2_000  # show the counter
MENU_SERIAL_MS = 6_000  # show the serial number
MENU_BATTERY_MS = 8_000  # show the battery
HELD_TOO_LONG_MS = 30_000  # turn the display off; the release then has no effect

# A model without a real product. Its times are short, so that scripts run fast.
GENERIC = Profile(name="generic", title="OATH token", serial_type="GN", kind="hotp")

# Source: RCDevs' page "Feitian c100 - c200 Tokens with OpenOTP" (event-based, 6 digits, shipped with PSKC). The other
# values are approximate.
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

# Source: the same page as for C100 (time-based, 60 s by default). The other values are approximate.
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

# Source: Thales' page "OTP hardware token" (sold event-based and time-based). This model is event-based; its times are
# approximate.
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

# Source: iPrescribe's help page for the OneSpan Digipass GO 7. A press turns the token on, and the next press turns it
# off. The token turns off automatically after about 32 s. A press of 6 s shows time, battery and serial number. The
# other values are approximate.
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

# Source: Yubico's .NET SDK manual, "Slots". A touch of 1 to 2.5 s selects slot 1, a touch of 3 to 5 s slot 2. The
# YubiKey types the code. The time between characters can be set to 0, 20, 40 or 60 ms; this model uses 20. The host
# powers the YubiKey, so the model uses no charge. The other values are approximate.
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
