"""sudo: its rules for a user, and the user whose password and code sudo asks for.

Rules:
- The answers come from the real sudo (`sudo -l -U`). This module reads no sudoers file.
- sudo asks for the caller's own password, unless `rootpw`, `runaspw` or `targetpw` is set, in this order of precedence.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from functools import lru_cache

PROGRAM = "/usr/bin/sudo"
_DEFAULTS = "Matching Defaults entries for "
_TIMEOUT = 10  # seconds
_OTHERS = ("rootpw", "runaspw", "targetpw")


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of sudo for a user. `asks_other` is the setting by which sudo asks for another user's code, or None."""

    may_use: bool  # sudo would ask this user for a password
    asks_other: str | None = None
    other: str = "root"  # that other user, unless the command line names a target


@lru_cache(maxsize=1024)  # several checks need the rules of the same users
def rules(user: str) -> Rules:
    """Return the rules of sudo for a user. `may_use` is False on a host without sudo."""
    try:
        done = subprocess.run(
            [PROGRAM, "-l", "-U", user],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
            env={"LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return Rules(may_use=False)
    return parse(done.stdout)


def parse(text: str) -> Rules:
    """Return the rules in `text`, the output of `sudo -l`."""
    commands = [line for line in text.splitlines() if line.startswith("    (")]
    settings = _defaults(text)
    asks_other = next((name for name in _OTHERS if name in settings), None)
    runas = next((s.partition("=")[2] for s in settings if s.startswith("runas_default=")), "root")
    return Rules(
        may_use=any("NOPASSWD:" not in command for command in commands),
        asks_other=asks_other,
        other=runas if asks_other in ("runaspw", "targetpw") else "root",
    )


def _defaults(text: str) -> list[str]:
    """Return the settings that match the user, from the paragraph of the defaults."""
    paragraph = text.partition(_DEFAULTS)[2].partition("\n")[2].partition("\n\n")[0]
    return [setting.strip() for setting in paragraph.replace("\n", " ").split(",")]
