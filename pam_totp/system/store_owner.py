"""Work on a store in a child process that runs as the store's owner.

Rules:
- Root reads no key. The child drops its privileges first, and sends names and errors, never a key.
- The child sends each report immediately, so a large store needs little memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator

from pam_totp.pam.privileges import become_owner_of
from pam_totp.store import StoreError
from pam_totp.store.file import FileStore

BROKEN = "broken"  # the kind of a report about a store or a record that cannot be read

Report = tuple[str, str]  # kind, text


def as_owner(folder: str, work: Callable[[FileStore], Iterator[Report]]) -> Iterator[Report]:
    """Run `work` in a child process as the owner of `folder`. Yield its reports, and a report BROKEN for an error."""
    sys.stdout.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 1
        try:
            with open(writing, "w", encoding="ascii") as pipe:
                for report in _reports(folder, work):
                    pipe.write(json.dumps(report) + "\n")
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with open(reading, encoding="ascii") as pipe:
        for line in pipe:
            if not line.endswith("\n"):
                break  # the child was killed while it wrote this line
            kind, text = json.loads(line)
            yield kind, text
    if os.waitpid(child, 0)[1] != 0:
        yield BROKEN, "the process that reads the records failed"


def _reports(folder: str, work: Callable[[FileStore], Iterator[Report]]) -> Iterator[Report]:
    try:
        become_owner_of(folder)
        yield from work(FileStore(folder))
    except (StoreError, OSError) as e:
        yield BROKEN, str(e)
