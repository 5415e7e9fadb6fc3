"""Tests of the comparison of serial numbers."""

from __future__ import annotations

import pytest

from pam_totp.core.serials import serial_key


@pytest.mark.parametrize("typed", ["ub123456", "UB-123456", " ub 123.456 ", "Ub:123/456", "UB_123–456"])
def test_case_and_separators_of_a_serial_number_do_not_count(typed: str) -> None:
    assert serial_key(typed) == serial_key("UB123456")


@pytest.mark.parametrize("other", ["UB0123456", "UB12345", "123456", "", "--"])
def test_another_serial_number_stays_another(other: str) -> None:
    assert serial_key(other) != serial_key("UB123456")


def test_a_serial_number_of_separators_alone_is_compared_as_it_is() -> None:
    assert serial_key("--") != serial_key("-")
