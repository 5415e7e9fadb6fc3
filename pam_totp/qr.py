"""QR codes of otpauth URIs (extra `qr`: segno)."""

from __future__ import annotations

import io

BORDER = 2  # modules: ISO/IEC 18004 asks for 4; readers do with 2
_BLOCKS = {(0, 0): "█", (0, 1): "▀", (1, 0): "▄", (1, 1): " "}  # (upper, lower) module, 1 is dark
_ON_WHITE = "\x1b[38;5;231;48;5;16m"  # light blocks on black, whatever the terminal's theme


def terminal(uri: str, *, colour: bool = True) -> str:
    """The code as half blocks, light around dark, one line for two rows of modules.

    Raises ImportError without segno.
    """
    import segno  # noqa: PLC0415  an extra

    code = segno.make(uri, error="l", micro=False, boost_error=False)
    rows = [list(row) for row in code.matrix_iter(border=BORDER)]
    if len(rows) % 2:
        rows.append([0] * len(rows[0]))
    out = io.StringIO()
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        text = "".join(_BLOCKS[int(bool(u)), int(bool(v))] for u, v in zip(upper, lower, strict=True))
        out.write(f"{_ON_WHITE}{text}\x1b[0m\n" if colour else f"{text}\n")
    return out.getvalue()
