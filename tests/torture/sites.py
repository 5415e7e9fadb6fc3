"""Sites with a store on a disk, and sites with a store in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.site import Site

FOLDERS = {"disk": "/var/tmp", "tmpfs": "/dev/shm"}  # noqa: S108  private folders are created there


@contextmanager
def site_on(place: str) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(prefix="pam_totp-test-", dir=FOLDERS[place]) as folder:
        made = Site(Path(folder))
        try:
            yield made
        finally:
            made.stop()
