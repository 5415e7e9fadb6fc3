"""The settings of a Django site, on which users sign in with the system password, then with a code.

List the account that runs the application in /etc/pam_totp.toml:

    [clients]
    www-data = "web"

Before real use, add a limit on guesses of passwords. docs/web.md lists the settings.
"""

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent

SECRET_KEY = os.environ.get("SECRET_KEY") or os.urandom(32).hex()
ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
ROOT_URLCONF = "urls"
WSGI_APPLICATION = None
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DATABASE", HERE / "db.sqlite3")}
}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django_otp",
    "pam_totp.django",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django_otp.middleware.OTPMiddleware",
    "pam_totp.django.middleware.RequestMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [HERE / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
                "pam_totp.django.context_processors.portal",
            ]
        },
    }
]

AUTHENTICATION_BACKENDS = ["pam_totp.django.backends.PamBackend"]
PAM_TOTP_SERVICE = "web"
PAM_TOTP_SOCKET = os.environ.get("PAM_TOTP_SOCKET", "/run/pam_totp/socket")
PAM_TOTP_CREATE_USERS = True
PAM_TOTP_PORTAL_URL = os.environ.get("PORTAL_URL")  # for example "https://portal.example.org/"

LOGIN_URL = "login"
OTP_LOGIN_URL = "code"
LOGIN_REDIRECT_URL = "private"
USE_TZ = True
