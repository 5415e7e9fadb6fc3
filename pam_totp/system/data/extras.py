"""Print the requirements of extras in setup.cfg, one per line.

`make install EXTRAS=...` passes the list to pip and `make requirements` passes it to uv. This script reads setup.cfg
itself, because a build of the package would need a recent setuptools.

Usage: python3 extras.py EXTRA[,EXTRA...]
The exit status is 2 if setup.cfg does not have the extra.
"""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

SETUP = Path(__file__).resolve().parents[3] / "setup.cfg"


class UnknownExtraError(Exception):
    """An extra was not found. The message names the extra, and lists the existing extras."""


def requirements(extras: list[str]) -> list[str]:
    """Return the requirements of `extras`, sorted and without duplicates."""
    setup = configparser.ConfigParser()
    setup.read(SETUP, encoding="utf-8")
    table = setup["options.extras_require"]
    found: set[str] = set()
    for extra in extras:
        if extra not in table:
            raise UnknownExtraError(f"unknown extra {extra!r} (choose from {', '.join(table)})")
        found.update(line for line in table[extra].splitlines() if line)
    return sorted(found, key=str.lower)


if __name__ == "__main__":
    try:
        print("\n".join(requirements([extra.strip() for extra in sys.argv[1].split(",")])))
    except UnknownExtraError as error:
        print(f"make install: {error}", file=sys.stderr)
        sys.exit(2)
