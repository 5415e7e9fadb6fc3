"""The settings of the example project, with django-two-factor-auth."""

from __future__ import annotations

from examples.django_site.settings import *  # noqa: F403
from examples.django_site.settings import INSTALLED_APPS, MIDDLEWARE

SECRET_KEY = "of the tests"
ROOT_URLCONF = "tests.django.urls"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = [
    *INSTALLED_APPS,
    "django_otp.plugins.otp_static",
    "django_otp.plugins.otp_totp",
    "two_factor",
]
MIDDLEWARE = list(MIDDLEWARE)
LOGGING_CONFIG = None
