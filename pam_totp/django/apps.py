"""Django's configuration of this application."""

from __future__ import annotations

from django.apps import AppConfig, apps


class PamTotpConfig(AppConfig):  # type: ignore[misc]
    """The application, which registers its checks, and its device if django-two-factor-auth is installed."""

    name = "pam_totp.django"
    label = "pam_totp"
    verbose_name = "One-time codes of this host"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from pam_totp.django import checks  # noqa: F401  registers the checks

        if apps.is_installed("two_factor"):
            from two_factor.plugins.registry import registry

            from pam_totp.django.two_factor import HostMethod

            registry.register(HostMethod())
