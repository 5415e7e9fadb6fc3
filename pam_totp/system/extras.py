"""Installation commands for optional packages, for the messages about missing packages.

Rules:
- A command uses pip only in a virtual environment: Debian's pip refuses to change the system's Python.
- The installed command pam-totp ignores packages that a user has installed with pip.
"""

from __future__ import annotations

import sys

# For each package on PyPI: its Debian packages, and its extra in setup.cfg.
_SOURCES = {
    "segno": ("python3-segno", "qr"),
    "pyserial": ("python3-serial", "serial"),
    "python-pskc": ("python3-pskc", "pskc"),
    "cryptography": ("python3-cryptography", "aegis"),
    "aiohttp": ("python3-aiohttp", "fleet"),
    "psycopg": ("python3-psycopg", "fleet"),
    "python-pam": ("python3-pampy python3-six", "web"),  # Debian's python3-pam is a different module
}


def how_to_get(package: str, extra: str | None = None) -> str:
    """Return the command that installs `package`. `extra` selects one of several extras with the package."""
    if sys.prefix != sys.base_prefix:  # a virtual environment
        return f"pip install {package}"
    debian, first = _SOURCES[package]
    return f"apt-get install {debian}, or make install EXTRAS={extra or first}"
