"""The program that draws the pictures of docs/module.md: `python -m tests.core.first_login_pictures docs/images`.

Each picture is a terminal of 80 columns as SVG. The program draws block characters as rectangles, so that a phone
can read the QR code in any viewer. Every run draws the same pictures, because the key (RFC 4226 appendix D) and the
codes are fixed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

from pam_totp.core.record import TotpToken
from pam_totp.formats.qr import packed
from pam_totp.operations.enroll import grouped_key
from pam_totp.operations.first_login import key_prompt, picture_prompt, recovery_prompt
from pam_totp.operations.tickets import Invitation
from tests.support.site import KEY

COLUMNS = 80
NBSP = "\u00a0"  # viewers drop spaces at the beginning of a text
WIDTH, HEIGHT = 8, 16  # pixels of a cell
BACK, TEXT = "#101418", "#d8dee9"
BLOCKS = {"█": (0, HEIGHT), "▀": (0, HEIGHT // 2), "▄": (HEIGHT // 2, HEIGHT // 2)}  # offset and height, in pixels
LOGIN = "$ ssh alice@host\n(alice@host) Password: \n(alice@host) One-time code: \n(alice@host) "
CODES = [f"{n:04}-KX7T-{n * 7 % 10_000:04}-9WQM" for n in range(2718, 9_200, 700)]


def screens() -> dict[str, str]:
    """Return the text of each terminal by the name of its picture."""
    token = TotpToken(name="phone", secret=KEY, created=0, confirmed=False)
    shown = Invitation(
        type="totp", digits=6, codes_needed=1, key=grouped_key(token), picture=packed(token, "alice", "host")
    )
    picture = picture_prompt(shown)
    assert picture is not None
    return {
        "first-login-key": f"{LOGIN}{key_prompt(shown)}q",
        "first-login-qr": f"(alice@host) {picture}755224",
        "first-login-codes": f"(alice@host) {recovery_prompt(CODES[:10])}\nalice@host:~$ ",
    }


def svg(text: str) -> str:
    """Return the picture of a terminal that shows `text`."""
    width, height = COLUMNS * WIDTH + 16, len(text.split("\n")) * HEIGHT + 16
    size = f'width="{width}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="-8 -8 {width} {height}">',
        f'<rect x="-8" y="-8" {size} rx="6" fill="{BACK}"/>',
        f'<g fill="{TEXT}" font-family="DejaVu Sans Mono, monospace" font-size="13">',
        *(part for row, line in enumerate(text.split("\n")) for part in _drawn(row, line)),
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _drawn(row: int, line: str) -> Iterator[str]:
    """Yield the elements of one line: its text, and one rectangle for each sequence of equal blocks."""
    words = "".join(" " if c in BLOCKS else c for c in line).rstrip()
    if words:
        length = f'textLength="{len(words) * WIDTH}" lengthAdjust="spacing"'
        yield f'<text x="0" y="{row * HEIGHT + 12}" {length}>{escape(words).replace(" ", NBSP)}</text>'
    start = 0
    for end in range(1, len(line) + 1):
        if end == len(line) or line[end] != line[start]:
            if line[start] in BLOCKS:
                top, height = BLOCKS[line[start]]
                place = f'x="{start * WIDTH}" y="{row * HEIGHT + top}"'
                yield f'<rect {place} width="{(end - start) * WIDTH}" height="{height}" shape-rendering="crispEdges"/>'
            start = end


def main(folder: Path) -> None:
    for name, text in screens().items():
        (folder / f"{name}.svg").write_text(svg(text), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
