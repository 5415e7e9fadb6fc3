"""The factory: tokens with serial numbers and seeds, and the file of seeds that the vendor ships with them.

The law: a seed is in the token and in the seed file, and nowhere else; both are readable by their owner alone.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from token_sim import nvram
from token_sim.body import new_body
from token_sim.file import TokenFile, write_durably
from token_sim.profiles import Profile

MAKER = "SM"  # of an OATH token identifier: two characters for the maker; ours is not a registered one
SEED_BYTES = {"SHA1": 20, "SHA256": 32, "SHA512": 64}  # RFC 4226 §4 R6; RFC 6238 appendix B


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """One token as it leaves the line, for the seed file."""

    serial: str
    slot: nvram.Slot = field(repr=False)
    counter: int
    crystal: int = 0  # ppb

    def csv(self) -> str:
        """One line in privacyIDEA's order: serial, hex seed, type, digits, counter or period [, hash if not SHA-1]."""
        slot = self.slot
        moving = self.counter if slot.kind == "hotp" else slot.period
        line = [self.serial, slot.key.hex(), slot.kind, str(slot.digits), str(moving)]
        return ",".join(line if slot.algorithm == "SHA1" else [*line, slot.algorithm])


def serial_number(profile: Profile, number: int) -> str:
    """An OATH token identifier: maker, token type, number."""
    return f"{MAKER}{profile.serial_type}{number:08d}"


def make(profile: Profile, serial: str, slot: nvram.Slot, counter: int) -> Made:
    spread = profile.quartz_ppm * 1000
    return Made(serial=serial, slot=slot, counter=counter, crystal=secrets.randbelow(2 * spread + 1) - spread)


def new_slot(
    profile: Profile,
    *,
    kind: str | None = None,
    digits: int | None = None,
    algorithm: str | None = None,
    period: int | None = None,
    key: bytes | None = None,
) -> nvram.Slot:
    """A slot as the profile has it, but for what is said; with a new seed if none is given."""
    algorithm = algorithm or profile.algorithm
    return nvram.Slot(
        kind=kind or profile.kind,
        key=secrets.token_bytes(SEED_BYTES.get(algorithm, 20)) if key is None else key,
        algorithm=algorithm,
        digits=profile.digits if digits is None else digits,
        period=profile.period if period is None else period,
        limit=profile.counter_limit,
    )


def write_token(path: str, profile: Profile, made: Made, now: int) -> None:
    """Put one token into a new file; `now` (Unix ms) is when its clock is set."""
    empty = (None,) * (profile.slots - 1)
    image = nvram.build(made.serial, (made.slot, *empty), (made.counter, *(0 for _ in empty)))
    write_durably(path, TokenFile(path, profile, image, new_body(profile, now, made.crystal)).text().encode())


def batch(profile: Profile, count: int, first: int, **slot: object) -> Iterator[Made]:
    for number in range(first, first + count):
        yield make(profile, serial_number(profile, number), new_slot(profile, **slot), 0)  # type: ignore[arg-type]


def write_csv(path: str, tokens: list[Made]) -> None:
    write_durably(path, "".join(made.csv() + "\n" for made in tokens).encode())


def write_batch(folder: str, profile: Profile, tokens: list[Made], now: int) -> list[str]:
    """Write `SERIAL.token` for each of them and `seeds.csv` into `folder`; return the tokens' paths."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    paths = [os.path.join(folder, f"{made.serial}.token") for made in tokens]
    for path, made in zip(paths, tokens, strict=True):
        write_token(path, profile, made, now)
    write_csv(os.path.join(folder, "seeds.csv"), tokens)
    return paths
