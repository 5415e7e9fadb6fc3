"""How to get what some commands use beyond the standard library, for the message that it is missing.

The law: what is said works where we run: Debian lets no pip touch its own Python, and an installed pam-totp looks at
nothing that a person's pip has put somewhere.
"""

from __future__ import annotations

import sys

# by the name on the package index: Debian's package where there is one that will do, and the extra of setup.cfg
_FROM: dict[str, tuple[str | None, str]] = {
    "segno": ("python3-segno", "qr"),
    "pyserial": ("python3-serial", "serial"),
    "python-pskc": ("python3-pskc", "pskc"),
    "python-pam": (None, "web"),  # Debian's python3-pam is another module of that name
}


def how_to_get(package: str) -> str:
    """What to type, in half a line."""
    if sys.prefix != sys.base_prefix:  # a virtual environment
        return f"pip install {package}"
    debian, extra = _FROM[package]
    ours = f"make install EXTRAS={extra}"
    return ours if debian is None else f"apt-get install {debian}, or {ours}"
