"""Django's configuration of this application."""

from __future__ import annotations

from django.apps import AppConfig, apps


class PamTotpConfig(AppConfig):  # type: ignore[misc]
    """The application. It registers the checks, and installs the guard.

    If django-two-factor-auth is installed, the application also registers the login method.
    """

    name = "pam_totp.django"
    label = "pam_totp"
    verbose_name = "One-time codes of this host"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from pam_totp.django import checks, guard  # noqa: F401  registers the checks

        guard.install()
        if apps.is_installed("two_factor"):
            from two_factor.plugins.registry import registry

            from pam_totp.django.two_factor import HostMethod, guard_pages

            registry.register(HostMethod())
            guard_pages()
