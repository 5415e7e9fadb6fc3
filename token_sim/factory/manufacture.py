"""The factory: tokens with serial numbers and seeds, and the file of seeds that the vendor ships with them.

The law: a seed is in the token and in the seed file, and nowhere else; both are readable by their owner alone.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import Any

from token_sim.device import memory
from token_sim.device.hardware import new_hardware
from token_sim.device.models import Profile
from token_sim.run.token_file import TokenFile

MAKER = "SM"  # of an OATH token identifier: two characters for the maker; ours is not a registered one
SEED_BYTES = {"SHA1": 20, "SHA256": 32, "SHA512": 64}  # RFC 4226 §4 R6; RFC 6238 appendix B


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """One token as it leaves the line, for the seed file."""

    serial: str
    slot: memory.Slot = field(repr=False)
    counter: int
    crystal: int = 0  # ppb

    def csv(self) -> str:
        """One line in privacyIDEA's order: serial, hex seed, type, digits, counter or period [, hash if not SHA-1]."""
        slot = self.slot
        moving = self.counter if slot.kind == "hotp" else slot.period
        line = [self.serial, slot.key.hex(), slot.kind, str(slot.digits), str(moving)]
        return ",".join(line if slot.algorithm == "SHA1" else [*line, slot.algorithm])

    def to_doc(self, *, with_seed: bool) -> dict[str, Any]:
        slot = self.slot
        moving = {"counter": self.counter} if slot.kind == "hotp" else {"period": slot.period}
        seed = {"seed": slot.key.hex()} if with_seed else {}
        named = {"type": slot.kind, "algorithm": slot.algorithm, "digits": slot.digits}
        return {"serial": self.serial, **seed, **named, **moving}


def serial_number(profile: Profile, number: int) -> str:
    """An OATH token identifier: maker, token type, number."""
    return f"{MAKER}{profile.serial_type}{number:08d}"


def make(profile: Profile, serial: str, slot: memory.Slot, counter: int) -> NewToken:
    """Raises ValueError for a counter that is none."""
    if not 0 <= counter <= slot.limit:
        raise ValueError("a counter is 0 to 2^64-1")
    spread = profile.quartz_ppm * 1000
    return NewToken(serial=serial, slot=slot, counter=counter, crystal=secrets.randbelow(2 * spread + 1) - spread)


def new_slot(
    profile: Profile,
    *,
    kind: str | None = None,
    digits: int | None = None,
    algorithm: str | None = None,
    period: int | None = None,
    key: bytes | None = None,
) -> memory.Slot:
    """A slot as the profile has it, but for what is said; with a new seed if none is given."""
    algorithm = algorithm or profile.algorithm
    return memory.Slot(
        kind=kind or profile.kind,
        key=secrets.token_bytes(SEED_BYTES.get(algorithm, 20)) if key is None else key,
        algorithm=algorithm,
        digits=profile.digits if digits is None else digits,
        period=profile.period if period is None else period,
        limit=profile.counter_limit,
    )


def token_text(profile: Profile, made: list[NewToken], now: int) -> str:
    """The file of one token with a seed for each of the first slots; `now` (Unix ms) is when its clock is set."""
    spare = profile.slots - len(made)
    slots = (*(one.slot for one in made), *[None] * spare)
    image = memory.build(made[0].serial, slots, (*(one.counter for one in made), *[0] * spare))
    return TokenFile("", profile, image, new_hardware(profile, now, made[0].crystal)).text()


def batch(profile: Profile, count: int, first: int, **slot: Any) -> list[NewToken]:
    """Make `count` tokens with serial numbers from `first` on. Raises ValueError for a slot that cannot be."""
    return [make(profile, serial_number(profile, first + n), new_slot(profile, **slot), 0) for n in range(count)]


def write_batch(folder: str, profile: Profile, tokens: list[NewToken], now: int) -> list[str]:
    """Write `SERIAL.token` for each of them into `folder` and return their paths. Raises FileExistsError.

    A batch is made again if the machine dies over it, so its files are not synced one by one.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    paths = [os.path.join(folder, f"{made.serial}.token") for made in tokens]
    for path, made in zip(paths, tokens, strict=True):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(token_text(profile, [made], now))
    return paths


def csv_seeds(tokens: list[NewToken]) -> str:
    return "".join(made.csv() + "\n" for made in tokens)
