"""The quartz and the battery of a token, and how both change over time.

Rules:
- Times are in whole milliseconds. The age only increases. This module reads no clock.
- A step of an hour has the same result as ten thousand shorter steps, because all arithmetic uses integers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from token_sim.device.models import Profile

DAY = 86_400_000  # ms
YEAR = 365 * DAY
PPB = 1_000_000_000

TURNOVER = 25  # °C: the turnover, the temperature at which a tuning-fork crystal is fastest
CURVATURE = 30  # ppb per °C² of distance from the turnover (0.03 ppm): the crystal is slower on both sides
AGEING = 1_000  # ppb a year: 1 ppm, approximate, for the first years of a tuning fork

LOW_SHARE = 10  # per cent of the capacity: at this charge, a token reports a low battery; approximate


@dataclass(slots=True, kw_only=True)
class Hardware:
    """The quartz and the battery. `now` is the true time, `clock_ms` the token's time, both in Unix milliseconds."""

    now: int
    crystal: int  # ppb: the initial error of this crystal at the turnover
    charge: int  # nA·ms: the remaining charge of the battery
    capacity: int  # nA·ms: the charge of a new battery
    age: int = 0  # ms since manufacture
    drift: int = 0  # error of the clock without ageing, in ms·ppb
    temperature: int = TURNOVER  # °C

    @property
    def clock_ms(self) -> int:
        """Return the time of the token's own clock, in Unix milliseconds."""
        return self.now + self.error_ms

    @property
    def error_ms(self) -> int:
        """Return the difference between the token's clock and the true time, in ms (positive: the token is ahead)."""
        return (self.drift + _ageing_drift(self.age)) // PPB

    def set_error(self, ms: int) -> None:
        """Set the clock's present error to `ms` milliseconds."""
        self.drift = ms * PPB - _ageing_drift(self.age)

    @property
    def battery_level(self) -> int:
        """Return the battery's charge in per cent, rounded up, so that a running token has at least 1."""
        return -(-self.charge * 100 // self.capacity)

    @property
    def is_battery_low(self) -> bool:
        return self.charge * 100 <= self.capacity * LOW_SHARE

    def elapse(self, ms: int, current: int, *, world: bool = True) -> None:
        """Advance the time by `ms` milliseconds at `current` nA. `now` changes only if `world` is true."""
        self.age += ms
        self.drift += ms * (self.crystal - CURVATURE * (self.temperature - TURNOVER) ** 2)
        self.charge = max(0, self.charge - ms * current)
        if world:
            self.now += ms

    def discharge(self, nah: int) -> None:
        """Discharge the battery by `nah` nanoampere-hours."""
        self.charge = max(0, self.charge - nah * 3_600_000)

    def ms_until(self, charge: int, current: int) -> int | None:
        """Return the milliseconds until the battery's charge decreases to `charge` (nA·ms) at `current` nA.

        Return None if the battery's charge is already at most `charge`, or if `current` is 0.
        """
        if self.charge <= charge or current == 0:
            return None
        return -(-(self.charge - charge) // current)

    @property
    def low_charge(self) -> int:
        return self.capacity * LOW_SHARE // 100

    def to_doc(self) -> dict[str, int]:
        return asdict(self)


def new_hardware(profile: Profile, now: int, crystal: int = 0) -> Hardware:
    """Return the hardware of a new token, with a full battery and a clock that is correct at `now`."""
    capacity = profile.battery_uah * 1_000 * 3_600_000
    return Hardware(now=now, crystal=crystal, charge=capacity, capacity=capacity)


def _ageing_drift(age: int) -> int:
    """Return the drift by ageing, in ms·ppb.

    The drift grows with the square of the age, because its rate grows linearly. The formula depends only on the age,
    and is independent of the time steps.
    """
    return AGEING * age * age // (2 * YEAR)
