"""The checks of the portal's table in the site file."""

from __future__ import annotations

from collections.abc import Iterator

from pam_totp.core.settings import SettingsError
from pam_totp.system.doctor.context import Context
from pam_totp.system.pamd.findings import WARNING, Code, Finding
from pam_totp.system.portal_table import appearance


def portal(context: Context) -> Iterator[Finding]:
    """Check the table [portal] of the site file, which logins ignore."""
    try:
        appearance(context.site(), context.machine.path)
    except SettingsError as e:
        what = f"the portal does not start: {e}"
        yield Finding(WARNING, "portal", Code.PORTAL_TABLE_INVALID, what, "correct [portal] of that file")
