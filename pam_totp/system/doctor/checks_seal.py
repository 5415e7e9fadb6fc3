"""Checks of the seal: the key exists, the services receive the key, and a copy of the key was exported.

`pam-totp seal status` counts the records by their keys. The check "stores" reports records that cannot be decrypted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from pam_totp.system import seal_files
from pam_totp.system.doctor.context import Context, Fact
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity
from pam_totp.system.seal_files import State
from pam_totp.system.sshd import SYSTEMD


def seal(context: Context) -> Iterator[Finding]:
    """Check the seal of this host. Only a host with sealed stores or a key has findings."""
    note = seal_files.note()
    if not note.stores and not seal_files.has_keyring():
        return
    if os.geteuid() != 0:
        yield _finding(NOTE, Code.SEAL_NOT_CHECKED, "the check of the seal requires root", "run this command as root")
        return
    stores = " and ".join(note.stores) or "no store"
    keyring, problem = seal_files.keyring()
    if keyring is None:
        what = f"every user of {stores} is refused: {problem}"
        remedy = "put the exported copy back with 'pam-totp seal init --key FILE'"
        yield _finding(ERROR, Code.SEAL_KEY_MISSING, what, remedy)
        return
    if lost := set(note.keys) - {seal_files.key_id(key) for key in keyring.keys}:
        what = f"users with secrets of the key {' and '.join(sorted(lost))} are refused: "
        what += f"this key is missing in {seal_files.KEYRING}"
        yield _finding(
            ERROR, Code.SEAL_KEY_MISSING, what, "put the exported copy back with 'pam-totp seal init --key FILE'"
        )
    if (library := seal_files.missing_library()) is not None:
        yield _finding(ERROR, Code.SEAL_LIBRARY, f"every user of {stores} is refused: {library}", seal_files.HOW_TO_GET)
    if not note.is_exported:
        what = f"a loss of this host would lose all records of {stores}: no copy of the key was exported"
        remedy = "run 'pam-totp seal export FILE', and keep that file away from this host and its backups"
        yield _finding(WARNING, Code.SEAL_NOT_EXPORTED, what, remedy)
    else:
        text = f"key of the seal: exported on {note.exported_on}, SHA-256 of the copy {note.digest} "
        text += "(check that you still have the copy)"
        context.facts.append(Fact("seal_exported", note.exported_at, text))
    if keyring.following is not None or keyring.previous is not None:
        what = "the change to a new key of the seal is not complete"
        yield _finding(WARNING, Code.SEAL_UNFINISHED, what, "run 'pam-totp seal rotate' again")
    for name, state in keyring.stores:
        if state is not State.SEALED:
            what = f"{name}: secrets that are not sealed are still accepted"
            yield _finding(WARNING, Code.SEAL_UNFINISHED, what, "run 'pam-totp seal init' again")
    if os.path.isdir(SYSTEMD) and (units := seal_files.missing_drop_ins()):
        what = f"logins fail, because systemd does not give the key of the seal to {' and '.join(units)}"
        yield _finding(ERROR, Code.SEAL_NOT_GIVEN, what, "run 'pam-totp seal init' again")


def _finding(severity: Severity, code: Code, what: str, remedy: str) -> Finding:
    return Finding(severity, "seal", code, what, remedy)
