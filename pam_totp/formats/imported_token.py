"""A token as described in a file.

Rules:
- A parser returns every token that follows the grammar of the format. `unsupported` is the reason if pam_totp cannot
  use the token (a PIN, an unknown algorithm).
- A parser drops a property that a token cannot have, such as a PIN. `remarks` names the property.
- `repr` never shows the secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pam_totp.core.oath import DEFAULT_PERIOD
from pam_totp.core.record import DEFAULT_NAMES, HotpToken, Token, TotpToken


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedToken:
    """One token of a file. The fields are those of `HotpToken` and `TotpToken`.

    `line` is the number of the line or entry, from 1. `user` is None if the file omits the user.
    """

    line: int
    type: str = "hotp"
    secret: bytes = field(default=b"", repr=False)
    algorithm: str = "SHA1"
    digits: int = 6
    counter: int = 0
    period: int = DEFAULT_PERIOD
    last_step: int | None = None
    drift: int = 0
    name: str | None = None
    user: str | None = None
    serial: str | None = None
    enabled: bool = True
    confirmed: bool = True
    created: int | None = None
    last_used: int | None = None
    row_needed: bool = False
    remarks: tuple[str, ...] = ()
    unsupported: str | None = None

    def token(self, now: int) -> Token:
        """Return the token for a record. The time of creation is `now` (Unix seconds) if the file omits it.

        Raise RecordError.
        """
        common = {
            "name": self.name or DEFAULT_NAMES[self.type],
            "secret": self.secret,
            "algorithm": self.algorithm,
            "digits": self.digits,
            "enabled": self.enabled,
            "confirmed": self.confirmed,
            "serial": self.serial,
            "created": now if self.created is None else self.created,
            "last_used": self.last_used,
            "row_needed": self.row_needed,
        }
        if self.type == "hotp":
            return HotpToken(**common, counter=self.counter)  # type: ignore[arg-type]
        return TotpToken(**common, period=self.period, last_step=self.last_step, drift=self.drift)  # type: ignore[arg-type]
