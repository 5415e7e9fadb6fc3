"""The factory: tokens with serial numbers and seeds, and a CSV file of seeds like that of a vendor.

Rules:
- Only the token file and the seed file contain a seed.
- Only the owner can read these files.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field
from typing import Any

from token_sim.device import memory
from token_sim.device.hardware import new_hardware
from token_sim.device.models import Profile
from token_sim.run import words
from token_sim.run.token_file import TokenFile

MAKER = "SM"  # the maker's two characters in an OATH token identifier (not registered)
TYPES = ("hotp", "totp")
SEED_BYTES = {"SHA1": 20, "SHA256": 32, "SHA512": 64}  # RFC 4226 §4 R6; RFC 6238 appendix B


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """The data of a new token, for its file and for the seed file."""

    serial: str
    slot: memory.Slot = field(repr=False)
    counter: int
    crystal: int = 0  # ppb

    def csv(self) -> str:
        """Return the line for privacyIDEA: serial, hex seed, type, digits, counter or period [, hash if not SHA-1]."""
        slot = self.slot
        moving = self.counter if slot.kind == "hotp" else slot.period
        line = [self.serial, slot.key.hex(), slot.kind, str(slot.digits), str(moving)]
        return ",".join(line if slot.algorithm == "SHA1" else [*line, slot.algorithm])

    def to_doc(self, *, with_seed: bool) -> dict[str, Any]:
        """Return the token's data for JSON, with the seed if `with_seed` is true."""
        slot = self.slot
        moving = {"counter": self.counter} if slot.kind == "hotp" else {"period": slot.period}
        seed = {"seed": slot.key.hex()} if with_seed else {}
        named = {"type": slot.kind, "algorithm": slot.algorithm, "digits": slot.digits}
        return {"serial": self.serial, **seed, **named, **moving}


def serial_number(profile: Profile, number: int) -> str:
    """Return an OATH token identifier: maker, token type, number."""
    return f"{MAKER}{profile.serial_type}{number:08d}"


def make(profile: Profile, serial: str, slot: memory.Slot, counter: int) -> NewToken:
    """Return a new token with a random clock error. Raise ValueError if `counter` is out of range."""
    if not 0 <= counter <= slot.limit:
        raise ValueError("a counter must be 0 to 2^64-1")
    spread = profile.quartz_ppm * 1000
    return NewToken(serial=serial, slot=slot, counter=counter, crystal=secrets.randbelow(2 * spread + 1) - spread)


def new_slot(
    profile: Profile,
    *,
    kind: str | None = None,
    digits: int | None = None,
    algorithm: str | None = None,
    period: int | None = None,
    key: bytes | str | None = None,
) -> memory.Slot:
    """Return a slot. None selects the value of the profile, or a random seed for `key`. Raise ValueError.

    A `key` of type str is hex or base32.
    """
    for name, number in (("digits", digits), ("period", period)):
        if number is not None and type(number) is not int:
            raise ValueError(f"{name} must be an integer")
    algorithm = profile.algorithm if algorithm is None else words.choose(algorithm, SEED_BYTES, "algorithm")
    return memory.Slot(
        kind=profile.kind if kind is None else words.choose(kind, TYPES, "type"),
        key=secrets.token_bytes(SEED_BYTES[algorithm]) if key is None else _key_bytes(key),
        algorithm=algorithm,
        digits=profile.digits if digits is None else digits,
        period=profile.period if period is None else period,
        limit=profile.counter_limit,
    )


def _key_bytes(key: object) -> bytes:
    if isinstance(key, (bytes, bytearray)):
        return bytes(key)
    try:
        return words.seed(key) if isinstance(key, str) else b""
    except ValueError as error:
        raise ValueError(f"a key as text {error}") from None


def token_text(profile: Profile, tokens: list[NewToken], now: int) -> str:
    """Return the text of the token file of a token whose first slots have the seeds of `tokens`.

    The clock of the token is correct at `now` (Unix ms).
    """
    spare = profile.slots - len(tokens)
    slots = (*(token.slot for token in tokens), *[None] * spare)
    image = memory.build(tokens[0].serial, slots, (*(token.counter for token in tokens), *[0] * spare))
    return TokenFile("", profile, image, new_hardware(profile, now, tokens[0].crystal)).text()


def batch(profile: Profile, count: int, first: int, **slot: Any) -> list[NewToken]:
    """Return `count` new tokens with serial numbers from `first` on. Raise ValueError for invalid options."""
    return [make(profile, serial_number(profile, first + n), new_slot(profile, **slot), 0) for n in range(count)]


def write_batch(folder: str, profile: Profile, tokens: list[NewToken], now: int) -> list[str]:
    """Write `SERIAL.token` for each token into `folder`, and return the paths. Raise FileExistsError if a path exists.

    The user must create the batch again after a crash, because the files are not synced.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    paths = [os.path.join(folder, f"{token.serial}.token") for token in tokens]
    for path, token in zip(paths, tokens, strict=True):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(token_text(profile, [token], now))
    return paths


def csv_seeds(tokens: list[NewToken]) -> str:
    """Return the seed file in CSV."""
    return "".join(token.csv() + "\n" for token in tokens)
