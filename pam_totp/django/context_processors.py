"""Public: a context processor for templates that link to the page where users manage their tokens."""

from __future__ import annotations

from pam_totp.django import conf


def portal(_: object) -> dict[str, str | None]:
    """Return the template variable `pam_totp_portal_url`: PAM_TOTP_PORTAL_URL, or None."""
    return {"pam_totp_portal_url": conf.get("PAM_TOTP_PORTAL_URL")}
