"""QR codes of otpauth URIs (extra `qr`: segno). Without segno, `packed` returns None, and every other
function raises ImportError.

On a terminal, a QR code is drawn in half blocks: a line of text holds two rows of modules. A terminal without the block
characters gets a QR code in ASCII: two characters for each module, and one row of modules a line.
"""

from __future__ import annotations

import io
from typing import Any

from pam_totp.core.record import Token
from pam_totp.core.secretfile import base32
from pam_totp.formats.otpauth import to_uri

BORDER = 2  # modules: ISO/IEC 18004 requires 4, readers accept 2, and a terminal of 80 × 24 has no space for more
PICTURE_BORDER = 4  # modules
PACKED_VERSION = 4  # 33 × 33 modules: with the border, 37 columns and 19 lines
PICTURE_SCALE = 8  # pixels a module
BLOCKS = "█▀▄"
_BLOCKS = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}  # (upper, lower) module, 1 is dark
# White and black from the part of the palette that themes do not change.
_ON_WHITE = "\x1b[38;5;231;48;5;16m"  # light blocks on black
_LIGHT, _DARK = "\x1b[48;5;231m", "\x1b[48;5;16m"  # backgrounds of a space
_RESET = "\x1b[0m"


def load() -> None:
    """Import segno before the process drops the privileges to read it."""
    import segno.writers  # noqa: F401  an optional package


def half_blocks(uri: str, *, colour: bool) -> list[str]:
    """Return the lines of the QR code of `uri` in half blocks, dark on light.

    Without `colour`, a blank is a dark module.
    """
    rows = _rows(uri)
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    lines = [
        "".join(_BLOCKS[pair] for pair in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=True)
    ]
    return [f"{_ON_WHITE}{line}{_RESET}" for line in lines] if colour else lines


def in_ascii(uri: str, *, colour: bool) -> list[str]:
    """Return the lines of the QR code of `uri` in ASCII, dark on light. Without `colour`, a blank is a dark module."""
    if not colour:
        return ["".join("  " if dark else "##" for dark in row) for row in _rows(uri)]
    return ["".join(f"{_DARK if dark else _LIGHT}  " for dark in row) + _RESET for row in _rows(uri)]


def _rows(uri: str) -> list[list[int]]:
    """Return the rows of modules of the QR code of `uri`, with the border; 1 is a dark module."""
    return [[int(bool(module)) for module in row] for row in _code(uri).matrix_iter(border=BORDER)]


def picture(uri: str, kind: str) -> bytes:
    """Return the content of a picture file with the QR code of `uri`. `kind` is png or svg."""
    out = io.BytesIO()
    _code(uri).save(out, kind=kind, scale=PICTURE_SCALE, border=PICTURE_BORDER, dark="black", light="white")
    return out.getvalue()


def inline_svg(uri: str) -> str:
    """Return the QR code of `uri` as an SVG element for a page: black on white, without width and height."""
    shape = _code(uri).svg_inline(border=PICTURE_BORDER, dark="black", light="white", omitsize=True)
    return str(shape)


def packed(token: Token, user: str, issuer: str) -> str | None:
    """Return the QR code of `token` as text. A login draws the QR code without segno (`operations.qr_text`).

    The text is base32 of the modules, row by row, without the border. Dark modules are 1. Return None if the version of
    the QR code is above PACKED_VERSION, or if segno is missing.
    """
    label, _, secret = to_uri(token, user, issuer, brief=True).partition("secret=")
    key, _, rest = secret.partition("&")
    parts = [f"&{part}" for part in rest.split("&") if part and not part.startswith("issuer=")]  # is in the label
    try:
        import segno  # an optional package
    except ImportError:
        return None
    segments: Any = [text for text in (f"{label}secret=", key, "".join(parts)) if text]
    code = segno.make(segments, error="l", micro=False, boost_error=False)
    if int(code.version) > PACKED_VERSION:
        return None
    bits = "".join(str(int(bool(module))) for row in code.matrix for module in row)
    size = -(-len(bits) // 8)
    return base32(int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big"))


def _code(uri: str) -> Any:
    import segno  # an optional package

    return segno.make(uri, error="l", micro=False, boost_error=False)
