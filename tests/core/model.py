"""A second implementation of verification, written from the RFCs and the laws in docs/architecture.md.

The model is slow and naive on purpose: a search computes one HMAC for each moving factor. The model does not import
pam_totp.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import struct
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

DAY = 86_400
LAST = 2**64 - 1  # RFC 4226 §5.2: counters have eight bytes
MOST_DRIFT = 2**31  # steps: the largest accepted drift


def code_of(key: bytes, moving_factor: int, digits: int, algorithm: str) -> str:
    """Return the code of RFC 4226 §5.3, with the hash `algorithm` (RFC 6238 §1.2)."""
    mac = hmac.new(key, struct.pack(">Q", moving_factor), getattr(hashlib, algorithm.lower())).digest()
    offset = mac[-1] & 0xF
    (binary,) = struct.unpack(">I", mac[offset : offset + 4])
    return f"{(binary & 0x7FFFFFFF) % 10**digits:0{digits}d}"


def plain(answer: bytes) -> str:
    """Return the answer with ASCII digits, less the ignored characters, or empty text if the answer breaks law 3."""
    try:
        text = answer.decode("utf-8") if len(answer) <= 512 else ""
    except UnicodeDecodeError:
        return ""
    text = re.sub(
        "[\\s\\x1c-\\x1f\\-\u2010-\u2015\u2212\ufe58\ufe63\uff0d\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]",
        "",
        text,
    )
    return "".join(c if (digit := unicodedata.decimal(c, None)) is None else f"{digit}" for c in text)


@dataclass
class ModelToken:
    """A token. `floor` is the lowest moving factor that the token still accepts."""

    name: str
    kind: str
    key: bytes
    algorithm: str
    digits: int
    active: bool
    floor: int
    used_before: bool  # False for a TOTP token without a last step
    period: int = 0
    drift: int = 0
    row_needed: bool = False  # accept only codes in a row, until the first codes in a row are accepted
    accepted: set[int] = field(default_factory=set)  # moving factors accepted in this run

    def code(self, moving_factor: int) -> str:
        return code_of(self.key, moving_factor, self.digits, self.algorithm)

    def shows(self, codes: list[str], first: int) -> bool:
        """Return True if the token shows `codes` from moving factor `first` on."""
        places = range(first, first + len(codes))
        return places[0] >= 0 and places[-1] <= LAST and [self.code(p) for p in places] == codes

    def step(self, now: int) -> int:
        return now // self.period  # RFC 6238 §4.2

    def firsts(self, count: int, now: int, policy: dict[str, int]) -> list[int]:
        """Return the moving factors that the first of `count` codes may have, in the search order (laws 4 to 6)."""
        if self.kind == "hotp":
            reach = policy["look_ahead"]
            if count > 1 and policy["resync_window"]:
                reach = policy["resync_window"]
            return [self.floor + ahead for ahead in range(reach + 1)]
        reach = policy["window"] if count == 1 else max(policy["window"], policy["resync_steps"])
        own_clock = self.step(now) + self.drift
        lasts = [own_clock + off for off in range(-reach, reach + 1)]
        lasts = [last for last in lasts if abs(last - self.step(now)) <= MOST_DRIFT]
        return [last - count + 1 for last in lasts if last - count + 1 >= self.floor]

    def known_replays(self) -> list[int]:
        """Return the last ten used counters or steps (law 8)."""
        if self.kind == "totp" and not self.used_before:
            return []
        return [place for place in range(self.floor - 10, self.floor) if place >= 0]

    def take(self, first: int, count: int, now: int) -> None:
        places = set(range(first, first + count))
        assert not places & self.accepted, "a moving factor was accepted twice"
        assert min(places) >= self.floor, "a moving factor below the floor was accepted"
        self.accepted |= places
        self.floor = max(places) + 1
        self.used_before = True
        if count > 1:
            self.row_needed = False
        if self.kind == "totp" and count > 1:
            self.drift = max(places) - self.step(now)


@dataclass
class Model:
    """A user. `answer` applies all laws, and returns the names of the outcome and the token."""

    tokens: list[ModelToken]
    confirmed: bool  # True if any token is confirmed
    salt: bytes
    recovery: list[str]  # recovery codes, in plain text
    failures: int = 0
    falls_at: int | None = None  # Unix seconds: the last decrease of failures; the next is one day later
    refused: int = 0
    pending: tuple[ModelToken, int] | None = None  # the token and moving factor of a third code in a row

    def standing(self, now: int) -> tuple[int, int | None]:
        """Return `failures` and `falls_at` at `now`: the failures decrease by one a day (law 8)."""
        count, since = self.failures, self.falls_at
        while count and since is not None and now - since >= DAY:
            count, since = count - 1, since + DAY
        return count, since

    def answer(
        self,
        answer: bytes,
        now: int,
        policy: dict[str, int],
        before: Sequence[tuple[bytes, str, int]] = (),
        *,
        behind_password: bool = False,
    ) -> tuple[str, str | None]:
        """Apply all laws to one answer. Return the names of the outcome and the token.

        `before` contains the refused answers of the same dialogue, each with its outcome and the failures after it.
        """
        pending, self.pending = self.pending if before else None, None
        if not self.confirmed:
            return "not-enrolled", None  # law 10
        typed = None if behind_password else self._recovery_code(answer)
        codes, candidates = self._codes(self.split(answer)[1] if behind_password else plain(answer))
        if not codes and typed is None:
            return "malformed", None  # law 3: the record is unchanged
        if self._meaning(answer) in [self._meaning(earlier) for earlier, _, _ in before]:
            self.refused += 1
            return "repeated", None  # law 5: skips verification and counting
        if typed is not None and typed in self.recovery:  # law 11: compared even if the user is locked
            self.recovery.remove(typed)
            self._lower(now, policy)
            return "recovery", None
        if not codes:
            self.refused += 1
            return "wrong", None  # law 11: no failure is counted
        return self._codes_answered(codes, candidates, now, policy, before, pending=pending)

    def _codes_answered(
        self,
        codes: list[str],
        candidates: list[ModelToken],
        now: int,
        policy: dict[str, int],
        before: Sequence[tuple[bytes, str, int]],
        *,
        pending: tuple[ModelToken, int] | None,
    ) -> tuple[str, str | None]:
        if policy["lock_after"] and self.failures >= policy["lock_after"]:
            self.refused += 1
            return "locked", None
        standing, since = self.standing(now)
        counts = [after for answer, word, after in before if word == "wrong" and self._recovery_code(answer) is None]
        # Law 5: another login, or the decrease of one a day, might have removed these failures already.
        own = len(counts) if counts and standing >= counts[-1] else 0
        if pending is not None and self._completes(*pending, codes, now, policy):
            token, place = pending
            token.take(place, 1, now)
            token.row_needed = False
            if token.kind == "totp":
                token.drift = place - token.step(now)
            self._lower(now, policy, own)
            return "row", token.name
        pair = self._pair(before, codes)
        # Law 5: verify the dialogue's two single codes as codes in a row, then the answer alone. The failure that the
        # first code added does not count against the codes in a row. Accepted codes in a row also remove this failure.
        for entered, count in ((pair, standing - own), (codes, standing)):
            needed = 3 if count >= 20 else 2 if count >= 5 else 1
            for token in candidates if entered else []:  # law 7
                for first in token.firsts(len(entered), now, policy):
                    if not token.shows(entered, first):
                        continue
                    if len(entered) < max(needed, 2 if token.row_needed else 1):
                        self.refused += 1
                        if entered is pair:  # the third prompt reveals that the pair is right, so the pair is used up
                            token.floor, token.used_before = first + 2, True
                            self.pending = token, first + 2
                        return "codes-in-a-row-needed", token.name
                    token.take(first, len(entered), now)
                    if len(entered) > 1:
                        self._lower(now, policy, own)
                        return "row", token.name
                    self.failures, self.falls_at, self.refused = standing, since, 0
                    return "code", token.name
        self.refused += 1
        for token in candidates:
            if any(token.shows(codes, first) for first in token.known_replays()):
                return "replayed", token.name
        if since is None or (standing == 0 and since < now):
            since = now
        self.failures, self.falls_at = standing + 1, since
        return "wrong", None

    def _lower(self, now: int, policy: dict[str, int], own: int = 0) -> None:
        """Lower the failures to five, and below `lock_after`, after codes in a row or a recovery code (law 8)."""
        standing, self.falls_at = self.standing(now)
        limits = [5] if policy["lock_after"] == 0 else [5, policy["lock_after"] - 1]
        self.failures, self.refused = min(max(standing - own, 0), *limits), 0

    def split(self, answer: bytes) -> tuple[bytes, str]:
        """Return the password, and the digits of the codes after the password (law 3, with `forward_pass`).

        Try every split, the shortest password first. Treat an answer that consists of codes as the password.
        """
        for start in range(len(answer)):
            password, tail = answer[:start], answer[start:]
            if re.fullmatch(b"[0-9]+", tail) and any(
                len(tail) == count * token.digits for token in self.tokens if token.active for count in (1, 2, 3)
            ):
                return (password, tail.decode()) if password else (answer, "")
        return answer, ""

    def _pair(self, before: Sequence[tuple[bytes, str, int]], codes: list[str]) -> list[str]:
        """Return the codes of the first two answers of a dialogue, if both are single codes of one length (law 5)."""
        each = [self._codes(plain(earlier))[0] for earlier, _, _ in before] + [codes]
        if len(each) == 2 and all(len(answer) == 1 for answer in each) and len(each[0][0]) == len(each[1][0]):
            return [answer[0] for answer in each]
        return []

    @staticmethod
    def _completes(token: ModelToken, place: int, codes: list[str], now: int, policy: dict[str, int]) -> bool:
        """Return True if `codes` completes the pair (law 5).

        The code must be the next code, near the clock, of a token that was not used after the pair.
        """
        reach = max(policy["window"], policy["resync_steps"])
        last_places = [token.step(now) + token.drift + off for off in range(-reach, reach + 1)] if token.period else []
        return (
            token.active
            and token.floor == place
            and (token.kind == "hotp" or (place in last_places and abs(place - token.step(now)) <= MOST_DRIFT))
            and len(codes) == 1
            and token.shows(codes, place)
        )

    @staticmethod
    def _meaning(answer: bytes) -> tuple[str, str | None]:
        """Return the digits and the recovery code of an answer. Equal results mean a repeated answer (law 5)."""
        text = plain(answer)
        return text if re.fullmatch("[0-9]{1,24}", text) else "", Model._recovery_code(answer)

    def _codes(self, digits: str) -> tuple[list[str], list[ModelToken]]:
        """Return the codes in `digits`, and the active tokens whose codes have that length (law 3)."""
        if not re.fullmatch("[0-9]{1,24}", digits):
            return [], []
        for token in self.tokens:
            if token.active and len(digits) in (token.digits, 2 * token.digits, 3 * token.digits):
                size = token.digits
                codes = [digits[i : i + size] for i in range(0, len(digits), size)]
                return codes, [t for t in self.tokens if t.active and t.digits == size]
        return [], []

    @staticmethod
    def _recovery_code(answer: bytes) -> str | None:
        """Return the recovery code in upper case and Crockford's alphabet, or None for another answer (law 11)."""
        text = plain(answer)
        if not re.fullmatch("[0-9A-TV-Za-tv-z]{16}", text):
            return None
        return text.upper().replace("O", "0").replace("I", "1").replace("L", "1")
