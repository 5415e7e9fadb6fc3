"""Whether anything is known against what the tests and the extras stand on: `make audit`.

pip-audit asks the package index for the advisories on every pin of both locks in tests/. What it cannot ask it skips,
and then says that nothing was found: here a pin that was not looked up is no pin without advisories.

python -m tests.audit PIP-AUDIT        exit status 0 nothing known, 1 something known, 3 not everything looked up
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.site import TREE

CLEAN, KNOWN, OUT_OF_REACH = 0, 1, 3
LOCKS = ("requirements.txt", "requirements-fuzz.txt")
OPTIONS = ("--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json")


def judge(text: str) -> tuple[int, list[str]]:
    """The exit status for pip-audit's JSON, and what to say. What is no such document was out of reach."""
    try:
        pins: list[dict[str, Any]] = json.loads(text)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return OUT_OF_REACH, ["pip-audit came to no result: the advisories are out of reach"]
    known = [
        f"{pin['name']} {pin['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for pin in pins
        for found in pin.get("vulns", ())
    ]
    unknown = [pin["name"] for pin in pins if "vulns" not in pin]
    looked_up = f"{len(pins) - len(unknown)} of {len(pins)} pins looked up, {len(known)} advisories"
    if known:
        return KNOWN, [*known, looked_up]
    if unknown or not pins:
        return OUT_OF_REACH, [f"{looked_up}: the index that is asked here has none to tell; ask where it has"]
    return CLEAN, [looked_up]


def main(program: str) -> int:
    locks = [word for name in LOCKS for word in ("-r", TREE / "tests" / name)]
    done = subprocess.run([program, *locks, *OPTIONS], capture_output=True, text=True, check=False)
    status, lines = judge(done.stdout)
    if not done.stdout:
        lines = [*done.stderr.splitlines()[-1:], *lines]
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
