"""Pictures of QR codes: PNG, JPEG and WebP, which zbarimg (Debian: zbar-tools) decodes in a process of its own.

Rules:
- zbarimg gets only these kinds of pictures, with the name of the kind, so that its libraries need not guess.
- The time is bounded. An error names the missing program, or reports a picture without a QR code.
"""

from __future__ import annotations

import re
import subprocess

from pam_totp.formats.parsing import FormatError

PICTURE_TIMEOUT = 60  # seconds for zbarimg
# With test-inverted, it also reads light codes on a dark ground, as apps with a dark theme show them.
_ZBARIMG = ["zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", "-Stest-inverted"]
_SYMBOL = re.compile(r"\AQR-Code:", re.IGNORECASE)


def is_picture(data: bytes) -> bool:
    """Return True for a PNG, JPEG or WebP picture."""
    return _kind(data) is not None


def read_picture(data: bytes) -> bytes:
    """Return the text of the QR codes in a picture, one a line. Raise FormatError."""
    try:
        command = [*_ZBARIMG, f"{_kind(data)}:-"]
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=PICTURE_TIMEOUT)
    except FileNotFoundError:
        missing = "zbarimg is not installed (apt-get install zbar-tools, or give the text of the QR code)"
        raise FormatError(None, f"the picture cannot be read: {missing}") from None
    except subprocess.TimeoutExpired:
        raise FormatError(None, f"no QR code was found within {PICTURE_TIMEOUT} s") from None
    if done.returncode != 0 or not done.stdout.strip():
        raise FormatError(None, "no QR code was found in this picture")
    return done.stdout


def without_symbol(line: str) -> str:
    """Return a line without `QR-Code:`, which zbarimg and zbarcam write before the text unless --raw is given."""
    return _SYMBOL.sub("", line)


def _kind(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
