"""The lines of pam_totp in systemd's journal.

Rule: only lines of root, of the service's account and of the store's owner are read, because every account can write
lines to the journal. The journal records the writers.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Iterator
from contextlib import suppress

from pam_totp.cli.command_line import OUT_OF_REACH, CommandError
from pam_totp.cli.store_access import ACCOUNT
from pam_totp.operations.audit_log import NAME

_MICRO = 1_000_000
_WITHOUT = "name the log files with --log"


def journal_lines(since: int, store: str) -> Iterator[tuple[int | None, str]]:
    """Yield the time (Unix seconds) and the text of each line since `since`. Raise CommandError."""
    fields = "--output-fields=MESSAGE,__REALTIME_TIMESTAMP"
    writers = [f"_UID={uid}" for uid in sorted(_writers(store))]
    command = [
        "journalctl",
        "--quiet",
        "--no-pager",
        "--output=json",
        fields,
        f"--since=@{since}",
        "-t",
        NAME,
        *writers,
    ]
    try:
        journal = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as e:
        raise CommandError(f"journalctl: {(e.strerror or str(e)).lower()} ({_WITHOUT})", OUT_OF_REACH) from None
    assert journal.stdout is not None
    assert journal.stderr is not None
    with journal:
        for entry in journal.stdout:
            parsed = _parsed(entry)
            if parsed is not None:
                yield parsed
        problem = journal.stderr.read().decode("utf-8", "replace").strip().partition("\n")[0]
    if journal.returncode != 0:
        raise CommandError(f"journalctl: {problem or f'exit status {journal.returncode}'} ({_WITHOUT})", OUT_OF_REACH)


def _parsed(entry: bytes) -> tuple[int, str] | None:
    """Return the time and the text of an entry, or None. journalctl writes a text as a list of bytes if it is not
    UTF-8.
    """
    try:
        fields = json.loads(entry)
        text, at = fields["MESSAGE"], int(fields["__REALTIME_TIMESTAMP"]) // _MICRO
    except (ValueError, KeyError, TypeError):
        return None
    return (at, text) if isinstance(text, str) else None


def _writers(store: str) -> set[int]:
    """Return the uids of the trusted writers."""
    uids = {0}
    with suppress(KeyError):
        uids.add(pwd.getpwnam(ACCOUNT).pw_uid)
    with suppress(OSError):  # the store is a database, or does not exist
        uids.add(os.stat(store).st_uid)
    return uids
