"""Tests of a new project, created by `startproject` and changed as docs/web.md describes, with the real service.

`make test` uses the installed Django. `make test-django` uses environments with Django 4.2, 5.2 and the newest release.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.django.fresh_project import ADDRESS
from tests.support.site import ME, TREE, Site, codes

VERSIONS = os.environ.get("PAM_TOTP_DJANGO", "").split()  # set by `make test-django`


@pytest.fixture(scope="module", params=VERSIONS or ["installed"])
def python(request: pytest.FixtureRequest) -> str:
    """Return the interpreter of an environment with one version of Django and with pam_totp."""
    return str(TREE / "build" / "django" / request.param / "bin" / "python") if VERSIONS else sys.executable


def documented(start: str, end: str) -> str:
    """Return the block of Python in docs/web.md that starts with `start` and ends with `end`."""
    page = (TREE / "docs" / "web.md").read_text()
    (block,) = re.findall(rf"```python\n({re.escape(start)}(?:(?!```).)*?{re.escape(end)}\n)```", page, re.DOTALL)
    return str(block)


@pytest.fixture(scope="module")
def new_project(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the project `mysite`, as `startproject` creates it."""
    folder = tmp_path_factory.mktemp("project")
    run(python, folder, "-m", "django", "startproject", "mysite", ".")
    return folder


def copy_project(new_project: Path, folder: Path, socket: Path, *more: str) -> None:
    """Copy the project to `folder`. Change settings and URLs as docs/web.md describes, and add the lines `more`."""
    shutil.copytree(new_project, folder, dirs_exist_ok=True)
    settings = documented("INSTALLED_APPS += ", "# instead of ModelBackend")
    text = "\n".join((settings, f"PAM_TOTP_SOCKET = {str(socket)!r}", *more))
    with open(folder / "mysite" / "settings.py", "a") as file:
        file.write(text)
    (folder / "mysite" / "urls.py").write_text(documented("from django.contrib import admin", "]"))


def run(python: str, folder: Path, *words: str) -> str:
    environment = {"PATH": "/usr/bin:/bin", "DJANGO_SETTINGS_MODULE": "mysite.settings"}
    if python == sys.executable:
        environment["PYTHONPATH"] = str(TREE)
    done = subprocess.run([python, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def visit(python: str, folder: Path, program: str, *words: str) -> Any:
    """Run a program of tests/django in the project in `folder`. Return the observations of the program."""
    shutil.copy(Path(__file__).parent / program, folder)
    return json.loads(run(python, folder, program, *words).splitlines()[-1])


def test_a_new_project_needs_the_password_and_a_code(
    python: str, new_project: Path, site: Site, tmp_path: Path
) -> None:
    site.config.write_text(f'[clients]\n"{ME}" = "web"\n')
    site.start()
    site.enrol()
    copy_project(new_project, tmp_path, site.socket)
    seen = visit(python, tmp_path, "fresh_project.py", ME, codes(0))
    assert set(seen["findings"]) <= {"pam_totp.W002"}, "a test machine can lack the PAM service (W002)"
    assert seen["admin"] == {
        "password page": {"username": None, "password": None},
        "wrong password": True,
        "code page": {"code": "numeric"},
        "recovery page": {"code": "text"},
        "password alone": 302,
        "wrong code": True,
        "right code": True,
        "message": True,
        "new session": True,
        "devices": 200,
        "used code": True,
    }
    assert site.log.has("accepted", f"rhost={ADDRESS}")
    assert seen["permissions"] == [
        "pam_totp.django.backends.PamBackend",
        *("True", "False", "True", "['pam_totp.view_hostdevice']"),
        f"['mallory', '{ME}']",
        "None",
    ]
    assert seen["async"] in ("", [ME, "True", "True", "True", "8", "1"])
    assert (seen["async"] == "") == seen["version"].startswith("4.2")


def test_a_user_model_may_have_other_names_and_required_fields(
    python: str, new_project: Path, site: Site, tmp_path: Path
) -> None:
    site.start()
    site.enrol()
    more = (
        *("INSTALLED_APPS += ['people']", "AUTH_USER_MODEL = 'people.Person'", "LOGGING_CONFIG = None"),
        *("PAM_TOTP_ACCOUNT_FIELD = 'account'", "PAM_TOTP_CREATE_USERS = True"),
    )
    copy_project(new_project, tmp_path, site.socket, *more)
    seen = visit(python, tmp_path, "custom_user.py", ME, codes(0), codes(1))
    email = f"{ME}@example.org"
    assert seen["without"] == ["pam_totp.W008: new users lack required fields: email, born"]
    assert seen["log"] is True
    assert seen["with"] == []
    assert seen["at once"] == [email] * 3
    assert seen["users"] == {
        "fields": [email, ME, "2000-01-01", False],
        "devices": 1,
        "by field": email,
        "by e-mail": email,
        "code": True,
        "search": 200,
        "no account": ["None", False],
        "e-mail of another": f"{ME}@example.net",
        "not unique": ["pam_totp.E004: PAM_TOTP_ACCOUNT_FIELD must be a unique field of the user model"],
    }
