"""A QR code as text for one prompt: half blocks, for dark and for light terminals. This module needs only the standard
library.

A half block holds two modules, one above the other. A terminal shows light text on a dark background, or dark text on a
light background. A login cannot detect the colours. The login therefore draws the QR code twice, side by side. The text
is the light modules in the left drawing, and the dark modules in the right drawing.
"""

from __future__ import annotations

from pam_totp.core.secretfile import unbase32

BORDER = 2  # modules: ISO/IEC 18004 requires 4, readers accept 2, and a terminal of 80 × 24 has no space for more
GAP = "    "  # between the two drawings
_LIGHT_INK = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}  # (upper, lower) module, 1 is dark
_DARK_INK = {(1, 1): "█", (1, 0): "▀", (0, 1): "▄", (0, 0): " "}


def side_by_side(picture: str) -> list[str]:
    """Return the lines of both drawings of a packed QR code (`formats.qr.packed`).

    A QR code of version 4 has 19 lines of 78 characters.
    """
    rows = _with_border(_modules(picture))
    pairs = [list(zip(upper, lower, strict=True)) for upper, lower in zip(rows[::2], rows[1::2], strict=True)]
    return [GAP.join("".join(ink[pair] for pair in line) for ink in (_LIGHT_INK, _DARK_INK)) for line in pairs]


def _modules(picture: str) -> list[list[int]]:
    """Return the rows of modules; 1 is dark. The last bits of `picture` can be padding."""
    bits = "".join(f"{byte:08b}" for byte in unbase32(picture))
    side = max(n for n in range(len(bits)) if n * n <= len(bits))
    return [[int(bit) for bit in bits[at : at + side]] for at in range(0, side * side, side)]


def _with_border(modules: list[list[int]]) -> list[list[int]]:
    """Return the rows with a light border, and one more light row if their number is odd."""
    width = len(modules) + 2 * BORDER
    rows = [[0] * width] * BORDER + [[0] * BORDER + row + [0] * BORDER for row in modules] + [[0] * width] * BORDER
    return rows + [[0] * width] * (len(rows) % 2)
