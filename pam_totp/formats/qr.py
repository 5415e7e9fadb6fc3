"""QR codes of otpauth URIs (extra `qr`: segno). Without segno, every function raises ImportError."""

from __future__ import annotations

import io
from typing import Any

BORDER = 2  # modules: ISO/IEC 18004 requires 4, readers accept 2, and a terminal of 80 × 24 has no space for more
PICTURE_BORDER = 4  # modules
PICTURE_SCALE = 8  # pixels a module
_BLOCKS = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}  # (upper, lower) module, 1 is dark
_ON_WHITE = "\x1b[38;5;231;48;5;16m"  # light blocks on black, independent of the terminal's theme


def load() -> None:
    """Import segno before the process drops the privileges to read it."""
    import segno.writers  # noqa: F401  an optional package


def terminal(uri: str, *, colour: bool = True) -> str:
    """Return the QR code in half blocks, dark on light. A line of text holds two rows of modules."""
    rows = [list(row) for row in _code(uri).matrix_iter(border=BORDER)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    out = io.StringIO()
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        text = "".join(_BLOCKS[int(bool(u)), int(bool(v))] for u, v in zip(upper, lower, strict=True))
        out.write(f"{_ON_WHITE}{text}\x1b[0m\n" if colour else f"{text}\n")
    return out.getvalue()


def picture(uri: str, kind: str) -> bytes:
    """Return the content of a picture file; `kind` is png or svg."""
    out = io.BytesIO()
    _code(uri).save(out, kind=kind, scale=PICTURE_SCALE, border=PICTURE_BORDER, dark="black", light="white")
    return out.getvalue()


def inline_svg(uri: str) -> str:
    """Return the QR code as an SVG element for a page: black on white, without width and height."""
    shape = _code(uri).svg_inline(border=PICTURE_BORDER, dark="black", light="white", omitsize=True)
    return str(shape)


def _code(uri: str) -> Any:
    import segno  # an optional package

    return segno.make(uri, error="l", micro=False, boost_error=False)
