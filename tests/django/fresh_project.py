"""A program that runs in a new project of `startproject`, and prints its observations as JSON.

    DJANGO_SETTINGS_MODULE=mysite.settings python -m tests.django.fresh_project USER FOLDER CODE...

Rules:
- The program imports only Django and pam_totp, because it also runs in environments with another Django.
- Only the system password is simulated. The service is real, at the socket of the project's settings.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from io import StringIO
from typing import Any

PASSWORD = "correct horse"
ADDRESS = "192.0.2.7"


class Passwords:
    """A fake checker of system passwords, because the tests have no accounts."""

    def verify(self, user: str, password: str) -> bool:
        return password == PASSWORD


def main() -> None:
    import django
    from django.core.management import call_command

    django.setup()
    from pam_totp.django import backends

    user, *codes = sys.argv[1:]
    backends._checkers["pam_totp-portal"] = Passwords()  # type: ignore[assignment]
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)
    call_command("migrate", verbosity=0)
    call_command("createsuperuser", interactive=False, username=user, email="a@example.org", verbosity=0)
    seen = {
        "version": django.get_version(),
        "findings": findings(),
        "admin": use_admin_site(user, codes),
        "permissions": use_permissions(user),
        "async": asyncio.run(use_async(user)) if django.VERSION >= (5, 2) else "",
    }
    print(json.dumps(seen))


def findings() -> list[str]:
    from django.core.management import call_command

    out = StringIO()
    call_command("check", deploy=False, stdout=out, stderr=out)
    from django.core.checks import run_checks

    return sorted(message.id for message in run_checks())


def use_admin_site(user: str, codes: list[str]) -> dict[str, Any]:
    """Sign in to the admin site with `codes`, like a browser. Return the observations.

    Follow redirects, and send forms with their hidden fields.
    """
    from django.test import Client

    browser = Client(REMOTE_ADDR=ADDRESS, headers={"host": "localhost"})
    seen: dict[str, Any] = {}

    def send(**fields: str) -> str:
        """Send the form of the page to which the admin site redirects. Return the next page."""
        page = browser.get("/admin/", follow=True)
        here = page.redirect_chain[-1][0]
        hidden = dict(re.findall(r'<input type="hidden" name="(next)" value="(.*?)"', page.content.decode()))
        answer = browser.post(here, {**hidden, **fields}, follow=True)
        return str(answer.content.decode())

    seen["password page"] = fields_of(browser.get("/admin/", follow=True))
    seen["wrong password"] = "errornote" in send(username=user, password="wrong")
    send(username=user, password=PASSWORD)
    seen["code page"] = fields_of(browser.get("/admin/", follow=True))
    seen["recovery page"] = fields_of(browser.get("/admin/login/?recovery=yes"))
    seen["password alone"] = browser.get("/admin/").status_code
    seen["wrong code"] = "Refused. Try the next code." in send(code="000000")
    cookie = browser.cookies["sessionid"].value
    page = send(code=codes[0])
    seen["right code"] = "Site administration" in page
    seen["message"] = "1 answer was refused since the last login" in page
    seen["new session"] = browser.cookies["sessionid"].value != cookie
    seen["devices"] = browser.get("/admin/pam_totp/hostdevice/?q=" + user[:2]).status_code
    browser.post("/admin/logout/")
    send(username=user, password=PASSWORD)
    seen["used code"] = "Refused. Try the next code." in send(code=codes[0])
    return seen


def fields_of(page: Any) -> dict[str, str | None]:
    """Return the visible fields of the page by name, each with its `inputmode` (the on-screen keyboard)."""
    inputs = re.findall(r"<input [^>]*>", page.content.decode())
    found = (dict(re.findall(r'(\w+)="([^"]*)"', text)) for text in inputs)
    return {field["name"]: field.get("inputmode") for field in found if field.get("type") in ("text", "password")}


def use_permissions(user: str) -> list[str]:
    """Return the results of the permission methods that PamBackend inherits, as text."""
    from django.contrib.auth import authenticate, get_user_model
    from django.contrib.auth.models import Group, Permission

    users = get_user_model()
    made = users.objects.create(**{users.USERNAME_FIELD: "mallory"})
    group = Group.objects.create(name="auditors")
    group.permissions.add(Permission.objects.get(codename="view_hostdevice"))
    made.groups.add(group)
    found = authenticate(None, **{users.USERNAME_FIELD: "mallory", "password": PASSWORD})
    assert found == made
    held = "pam_totp.view_hostdevice"
    seen = [
        found.backend,
        str(found.has_perm(held)),
        str(found.has_perm("pam_totp.add_hostdevice")),
        str(found.has_module_perms("pam_totp")),
        str(sorted(found.get_all_permissions())),
        str(sorted(u.get_username() for u in users.objects.with_perm(held))),
    ]
    made.is_active = False
    made.save()
    return [*seen, str(authenticate(None, username="mallory", password=PASSWORD))]


async def use_async(user: str) -> list[str]:
    """Return the results of the asynchronous functions of django.contrib.auth."""
    from django.contrib.auth import aauthenticate, aget_user, alogin, get_user_model
    from django.contrib.sessions.backends.db import SessionStore
    from django.test import AsyncRequestFactory

    users = get_user_model()
    request = AsyncRequestFactory().get("/")
    request.session = SessionStore()
    assert await aauthenticate(request, username=user, password="wrong") is None
    found = await aauthenticate(request, username=user, password=PASSWORD)
    assert found is not None
    await alogin(request, found)
    again = await aget_user(request)
    count = len(await asyncio.gather(*(aauthenticate(request, username=user, password=PASSWORD) for _ in range(8))))
    return [
        again.get_username(),
        str(await again.ahas_perm("pam_totp.add_hostdevice")),
        str(await again.ahas_module_perms("pam_totp")),
        str(len(await again.aget_all_permissions()) > 0),
        str(count),
        str(await users.objects.filter(pk=again.pk).acount()),
    ]


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    main()
