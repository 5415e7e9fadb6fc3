"""The comparison of serial numbers, regardless of case and separators.

Rules:
1. Two spellings can identify the same token: a label shows `UB-123 456`, a vendor's file `ub123456`.
2. A record, a message and a log keep the original spelling of a serial number. Only comparisons use `serial_key`.
"""

from __future__ import annotations


def serial_key(serial: str) -> str:
    """Return the letters and digits of `serial`, case-folded. Two serial numbers with the same result are equal.

    Return `serial` unchanged if it has no letter or digit.
    """
    return "".join(filter(str.isalnum, serial.casefold())) or serial
