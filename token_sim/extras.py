"""How to get what some commands use beyond the standard library, for the message that it is missing.

The law: what is said works where we run; Debian lets no pip touch its own Python.
"""

from __future__ import annotations

import sys

# by the name on the package index: what gets it for the system's Python
_INSTALL = {
    "pyserial": "apt-get install python3-serial",
    "python-pskc": "apt-get install python3-pskc",
    "textual": "make install EXTRAS=tui",  # Debian 12 has none
}


def missing(package: str) -> str:
    """The message."""
    in_environment = sys.prefix != sys.base_prefix
    return f"{package} is missing ({f'pip install {package}' if in_environment else _INSTALL[package]})"
