"""What a token is made of besides its chip: a quartz, a battery, and the time that passes for both.

The law:
- time is whole milliseconds and only goes forward; nothing here reads a clock;
- everything is counted in whole numbers, so an hour in one piece and in ten thousand leaves the same token.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from token_sim.device.models import Profile

DAY = 86_400_000  # ms
YEAR = 365 * DAY
PPB = 1_000_000_000

TURNOVER = 25  # °C: where a tuning-fork crystal is fastest
CURVATURE = 30  # ppb per °C²: 0.03 ppm, always slower, away from the turnover
AGEING = 1_000  # ppb a year: 1 ppm, approximate: a tuning fork's first years

LOW_SHARE = 10  # per cent of the charge at which a token says that it is low; approximate


@dataclass(slots=True, kw_only=True)
class Hardware:
    """`now` is the world's time in Unix milliseconds; the token's own clock runs beside it, `clock_ms`."""

    now: int
    crystal: int  # ppb at the turnover: what this one crystal left the factory with
    charge: int  # nA·ms left in the battery
    capacity: int  # nA·ms in a new one
    age: int = 0  # ms since it was made
    drift: int = 0  # what the clock is off by, in ms·ppb
    temperature: int = TURNOVER  # °C

    @property
    def clock_ms(self) -> int:
        """The time that the token believes it is."""
        return self.now + self.error_ms

    @property
    def error_ms(self) -> int:
        return (self.drift + _ageing_drift(self.age)) // PPB

    def set_error(self, ms: int) -> None:
        """Make the clock be off by `ms` now."""
        self.drift = ms * PPB - _ageing_drift(self.age)

    @property
    def battery_level(self) -> int:
        """Per cent of the battery, rounded up: a token that runs never says 0."""
        return -(-self.charge * 100 // self.capacity)

    @property
    def is_battery_low(self) -> bool:
        return self.charge * 100 <= self.capacity * LOW_SHARE

    def elapse(self, ms: int, current: int, *, world: bool = True) -> None:
        """Let `ms` pass at a drain of `current` nA; with `world` false only the token ages, not the world."""
        self.age += ms
        self.drift += ms * (self.crystal - CURVATURE * (self.temperature - TURNOVER) ** 2)
        self.charge = max(0, self.charge - ms * current)
        if world:
            self.now += ms

    def discharge(self, nah: int) -> None:
        self.charge = max(0, self.charge - nah * 3_600_000)

    def ms_until(self, charge: int, current: int) -> int | None:
        """Milliseconds until the battery is down to `charge`; None if it already is, or never will be."""
        if self.charge <= charge or current == 0:
            return None
        return -(-(self.charge - charge) // current)

    @property
    def low_charge(self) -> int:
        return self.capacity * LOW_SHARE // 100

    def to_doc(self) -> dict[str, int]:
        return asdict(self)


def new_hardware(profile: Profile, now: int, crystal: int = 0) -> Hardware:
    capacity = profile.battery_uah * 1_000 * 3_600_000
    return Hardware(now=now, crystal=crystal, charge=capacity, capacity=capacity)


def _ageing_drift(age: int) -> int:
    """Ageing is linear, so what it adds up to is a parabola of the age; in one formula, it does not depend on steps."""
    return AGEING * age * age // (2 * YEAR)
