"""Tests of the QR code that a record keeps for an enrolment at the first login."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import segno

from pam_totp.core.fields import MAX_TEXT
from pam_totp.core.record import TotpToken
from pam_totp.core.secretfile import unbase32
from pam_totp.formats.qr import packed
from tests.support.site import KEY

PHONE = TotpToken(name="phone", secret=KEY, created=0, confirmed=False)


def test_the_modules_are_packed_row_by_row() -> None:
    text = packed(PHONE, "alice", "host")
    assert text is not None
    assert len(text) <= MAX_TEXT
    parts: Any = ["otpauth://totp/host:alice?secret=", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"]
    code = segno.make(parts, error="l", micro=False)
    rows = ["".join(str(int(bool(module))) for module in row) for row in code.matrix]
    packed_bits = "".join(f"{byte:08b}" for byte in unbase32(text))
    assert packed_bits[: len(rows) ** 2] == "".join(rows)
    assert len(packed_bits) - len(rows) ** 2 < 8


@pytest.mark.parametrize(("length", "fits"), [(18, True), (40, False)])
def test_a_code_above_version_4_is_not_packed(length: int, fits: bool) -> None:
    assert (packed(PHONE, "a" * length, "host.example") is not None) is fits


def test_without_segno_there_is_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name == "segno":
            raise ImportError
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    assert packed(PHONE, "alice", "host") is None
