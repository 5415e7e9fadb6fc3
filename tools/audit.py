"""`make audit`: a look-up of advisories on the packages that the tests and the extras use.

A pin is a package with its version. pip-audit asks the package index for advisories on every pin of both lock files in
tests/. pip-audit silently skips a pin if its look-up fails. This program reports each skipped pin as an error.

python -m tools.audit PIP-AUDIT

The exit status is 0 if all look-ups find no advisory, 1 if there are advisories, and 3 if a look-up failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.support.site import TREE

CLEAN, KNOWN, UNAVAILABLE = 0, 1, 3
LOCKS = ("requirements.txt", "requirements-fuzz.txt")
OPTIONS = ("--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json")


def judge(text: str) -> tuple[int, list[str]]:
    """Return the exit status and the lines to print for `text`, the output of pip-audit.

    Output without a result has status 3.
    """
    try:
        pins: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        message = (
            "the look-up of advisories failed: pip-audit printed no result (check the network and the package index)"
        )
        return UNAVAILABLE, [message]
    known = [
        f"{pin['name']} {pin['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'no version'}"
        for pin in pins
        for found in pin.get("vulns", ())
    ]
    unknown = [pin["name"] for pin in pins if "vulns" not in pin]
    looked_up = f"{len(pins) - len(unknown)} of {len(pins)} pins looked up, {len(known)} advisories"
    if known:
        return KNOWN, [*known, looked_up]
    if unknown or not pins:
        return UNAVAILABLE, [f"{looked_up}: the package index publishes no advisories (use PyPI)"]
    return CLEAN, [looked_up]


def main(program: str) -> int:
    """Run pip-audit on the lock files, print the result, and return the exit status."""
    locks = [word for name in LOCKS for word in ("-r", TREE / "tests" / name)]
    done = subprocess.run([program, *locks, *OPTIONS], capture_output=True, text=True, check=False)
    status, lines = judge(done.stdout)
    if not done.stdout:
        lines = [*done.stderr.splitlines()[-1:], *lines]
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
