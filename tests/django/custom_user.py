"""A program that runs in a new project with a custom user model, and prints its observations as JSON.

    DJANGO_SETTINGS_MODULE=mysite.settings python custom_user.py USER CODE...

Users sign in by e-mail address, as is common. The field `account` contains the name of the account, and `born` is
required. The rules are those of fresh_project.py.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from io import StringIO
from pathlib import Path
from typing import Any

PASSWORD = "correct horse"
MODELS = """
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models

class People(BaseUserManager):
    def get_by_natural_key(self, email):
        return self.get(email__iexact=email)

class Person(AbstractBaseUser, PermissionsMixin):
    email = models.EmailField(unique=True)
    account = models.CharField(max_length=32, unique=True, null=True)
    born = models.DateField()
    is_active = models.BooleanField(default=True)
    is_staff = models.BooleanField(default=False)
    objects = People()
    USERNAME_FIELD = "email"
    REQUIRED_FIELDS = ["born"]
"""
BACKENDS = """
from datetime import date
from pam_totp.django.backends import PamBackend

class PersonBackend(PamBackend):
    def fields_of_new_user(self, account):
        return {"email": f"{account}@example.org", "born": date(2000, 1, 1)}
"""
FULL = "people.backends.PersonBackend"
AT_ONCE = 3


class Passwords:
    """A fake checker of system passwords, because the tests have no accounts."""

    def verify(self, user: str, password: str) -> bool:
        return password == PASSWORD and "@" not in user


def main() -> None:
    for name, text in (("__init__", ""), ("models", MODELS), ("backends", BACKENDS)):
        path = Path("people") / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    import django
    from django.conf import settings
    from django.core.management import call_command

    django.setup()
    from pam_totp.django import backends

    user, code, next_code = sys.argv[1:]
    backends._checkers["pam_totp-portal"] = Passwords()  # type: ignore[assignment]
    call_command("makemigrations", "people", verbosity=0)
    call_command("migrate", verbosity=0)
    seen: dict[str, Any] = {"without": findings()}
    seen["log"] = refused(user)
    settings.AUTHENTICATION_BACKENDS = [FULL]
    seen["with"] = findings()
    seen["at once"] = sign_in_at_once(user)
    seen["users"] = use_users(user, code, next_code)
    print(json.dumps(seen))


def findings() -> list[str]:
    from pam_totp.django.checks import check

    return [f"{found.id}: {found.msg}" for found in check(None) if found.id not in ("pam_totp.W001", "pam_totp.W002")]


def sign_in(name: str) -> Any:
    from django.contrib.auth import authenticate

    return authenticate(None, username=name, password=PASSWORD)


def refused(user: str) -> bool:
    """Return True if the sign-in is refused and logged for a user that Django cannot create."""
    log, handler = logging.getLogger("pam_totp.django"), logging.StreamHandler(StringIO())
    log.addHandler(handler)
    is_refused = sign_in(user) is None
    log.removeHandler(handler)
    return is_refused and "the sign-in failed" in handler.stream.getvalue()


def sign_in_at_once(user: str) -> list[str]:
    """Sign in for the first time in several threads, and return the results as text.

    Each write waits until all threads have searched for the user.
    """
    from django.contrib.auth import get_user_model
    from django.db import connection
    from django.db.models.signals import pre_save

    ready, results = threading.Barrier(AT_ONCE), list[str]()

    def wait(**_: Any) -> None:
        ready.wait(30)

    def run() -> None:
        try:
            results.append(str(sign_in(user)))
        finally:
            connection.close()

    pre_save.connect(wait, sender=get_user_model())
    threads = [threading.Thread(target=run) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pre_save.disconnect(wait, sender=get_user_model())
    return results


def use_users(user: str, code: str, next_code: str) -> dict[str, Any]:
    from django.contrib.auth import authenticate, get_user_model
    from django.test import Client, override_settings

    from pam_totp.django.models import HostDevice

    people, email = get_user_model().objects, f"{user}@example.org"
    person = people.get()
    seen: dict[str, Any] = {
        "fields": [person.email, person.account, str(person.born), person.has_usable_password()],
        "devices": HostDevice.objects.count(),
        "by field": str(authenticate(None, email=user, password=PASSWORD)),
        "by e-mail": str(sign_in(email)),
        "code": HostDevice.objects.get().verify_token(code),
    }
    people.update(is_staff=True, is_superuser=True)
    browser = Client(headers={"host": "localhost"})
    login = "/admin/login/?next=/admin/"
    browser.post(login, {"username": email, "password": PASSWORD})
    browser.post(login, {"code": next_code})
    seen["search"] = browser.get(f"/admin/pam_totp/hostdevice/?q={user[:2]}").status_code
    other = people.create(email="other@example.org", born="2000-01-01")  # without an account
    seen["no account"] = [str(sign_in("other@example.org")), HostDevice(user=other).verify_token("123456")]
    people.create(email=f"{user}@example.net", account="another", born="2000-01-01")
    seen["e-mail of another"] = str(sign_in(f"{user}@example.net"))
    with override_settings(PAM_TOTP_ACCOUNT_FIELD="born"):
        seen["not unique"] = findings()
    return seen


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main()
