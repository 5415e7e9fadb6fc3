"""Messages for missing optional packages, with the command to install them.

Rules:
- The command works for the running Python. On Debian, pip must not change the system's Python.
"""

from __future__ import annotations

import sys

# The name on the package index, and the command to install the package for the system's Python.
_INSTALL = {
    "pyserial": "apt-get install python3-serial",
    "python-pskc": "apt-get install python3-pskc",
    "textual": "make install EXTRAS=tui",  # Debian 12 has no package of textual
}


def missing(package: str) -> str:
    """Return the message for a missing package, with the command to install the package."""
    in_environment = sys.prefix != sys.base_prefix
    return f"{package} is missing ({f'pip install {package}' if in_environment else _INSTALL[package]})"
