"""How to install the optional packages that some commands need, for the message that one is missing.

Rules:
- The message names a command that works for the running Python. Debian does not let pip change the system's Python.
"""

from __future__ import annotations

import sys

# The name on the package index, and the command that installs the package for the system's Python.
_INSTALL = {
    "pyserial": "apt-get install python3-serial",
    "python-pskc": "apt-get install python3-pskc",
    "textual": "make install EXTRAS=tui",  # Debian 12 has no package of it
}


def missing(package: str) -> str:
    """Return the message that `package` is missing, with the command to install it."""
    in_environment = sys.prefix != sys.base_prefix
    return f"{package} is missing ({f'pip install {package}' if in_environment else _INSTALL[package]})"
