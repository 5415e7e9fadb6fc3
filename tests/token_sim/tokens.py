"""What the tests of the simulator build: tokens in memory, at a fixed moment, with published seeds."""

from __future__ import annotations

from token_sim import nvram
from token_sim.body import new_body
from token_sim.device import Device
from token_sim.profiles import GENERIC, Profile

SEED = b"12345678901234567890"  # RFC 4226 appendix D
APPENDIX_D = ["755224", "287082", "359152", "969429", "338314", "254676", "287922", "162583", "399871", "520489"]
NOON = 1_700_000_040_000  # a Unix time in ms; a multiple of 30 s and of 60 s


def image(*, counter: int = 0, serial: str = "SMGN00000001", **slot: object) -> bytes:
    made = nvram.Slot(**{"kind": "hotp", "key": SEED, **slot})  # type: ignore[arg-type]
    return nvram.build(serial, (made,), (counter,))


def token(profile: Profile = GENERIC, *, memory: nvram.Nvram | None = None, **given: object) -> Device:
    """A token on the table at NOON, awake enough to be pressed."""
    device = Device(memory or nvram.Ram(image(**given)), profile, new_body(profile, NOON))  # type: ignore[arg-type]
    device.elapse(1000)
    device.take_events()
    return device


def codes(device: Device) -> list[str]:
    return [event.text for event in device.take_events() if event.name == "OTP"]


def press(device: Device, ms: int | None = None, then: int = 1000) -> list[str]:
    """Press, let `then` ms pass, and return the codes that came."""
    device.press(ms)
    device.elapse(then)
    return codes(device)
