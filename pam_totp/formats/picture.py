"""Pictures of QR codes: PNG, JPEG and WebP, which zbarimg (Debian: zbar-tools) decodes in a process of its own.

Rules:
- zbarimg gets only these kinds of pictures, and the name of the kind, so that its libraries try no other decoder.
- The time, the processor time and the memory are bounded. zbarimg gets an environment without the caller's variables.
- The temporary files of zbarimg contain the keys. Their folder is deleted after the run, even if zbarimg was killed.
- An error names the missing program, or reports a picture without a QR code.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile

from pam_totp.formats.parsing import FormatError

PICTURE_TIMEOUT = 60  # seconds for zbarimg
PICTURE_CPU = 10  # seconds of processor time: a photo of 12 megapixels takes about 1 s
PICTURE_MEMORY = 2 * 1024**3  # bytes of address space: a photo of 50 megapixels needs about 1 GiB
LIMITS = {
    resource.RLIMIT_CPU: PICTURE_CPU,
    resource.RLIMIT_AS: PICTURE_MEMORY,
    resource.RLIMIT_CORE: 0,  # a core dump would show the key
}
# With test-inverted, zbarimg also reads light codes on a dark background, as apps with a dark theme show them.
_ZBARIMG = ["zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", "-Stest-inverted"]
_SYMBOL = re.compile(r"\AQR-Code:", re.IGNORECASE)


def is_picture(data: bytes) -> bool:
    """Return True if `data` is a PNG, JPEG or WebP picture."""
    return _kind(data) is not None


def read_picture(data: bytes) -> bytes:
    """Return the texts of the QR codes in a picture, one per line. Raise FormatError."""
    program = shutil.which(_ZBARIMG[0])
    if program is None:
        missing = "zbarimg is not installed (apt-get install zbar-tools, or give the text of the QR code)"
        raise FormatError(None, f"the picture cannot be read: {missing}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [program, *_ZBARIMG[1:], f"{_kind(data)}:-"],
                input=data,
                capture_output=True,
                check=False,
                timeout=PICTURE_TIMEOUT,
                env={"TMPDIR": folder, "OMP_NUM_THREADS": "1"},  # each thread would take address space
                preexec_fn=_limit,
                user=os.geteuid(),  # as the real ids too: zbarimg must not become root again
                group=os.getegid(),
            )
        except subprocess.TimeoutExpired:
            raise FormatError(None, f"no QR code was found within {PICTURE_TIMEOUT} s") from None
    if done.returncode == -signal.SIGXCPU:
        raise FormatError(None, f"no QR code was found within {PICTURE_CPU} s of processor time")
    if done.returncode != 0 or not done.stdout.strip():
        raise FormatError(None, "no QR code was found in this picture")
    return done.stdout


def _limit() -> None:
    """Set the limits of zbarimg, in its process. A lower limit of the caller remains in force."""
    for what, most in LIMITS.items():
        soft, hard = resource.getrlimit(what)
        lowest = min(each for each in (most, soft, hard) if each != resource.RLIM_INFINITY)
        resource.setrlimit(what, (lowest, hard))


def without_symbol(line: str) -> str:
    """Return the text of a QR code: remove the prefix `QR-Code:`, which zbarimg and zbarcam write by default."""
    return _SYMBOL.sub("", line)


def _kind(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else None
