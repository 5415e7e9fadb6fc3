"""A test of users who sign in for the first time in several requests at once, on a database in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.site import ME, TREE

AT_ONCE = 4
# Each write of the user waits until all threads have searched for the user.
SCRIPT = f"""
import json, threading
import django
django.setup()
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db.models.signals import pre_save
from django.test import Client
from pam_totp.django import backends
from pam_totp.django.models import HostDevice

call_command("migrate", verbosity=0)

class Passwords:
    def verify(self, user, password):
        return True

backends._checkers["pam_totp-portal"] = Passwords()
ready = threading.Barrier({AT_ONCE})
waited = threading.local()

def wait_once(**_):
    if not getattr(waited, "done", False):
        waited.done = True
        ready.wait(30)

pre_save.connect(wait_once, sender=get_user_model())
results = []

def sign_in():
    try:
        page = Client().post("/login/", {{"username": {ME!r}, "password": "x"}}, headers={{"host": "localhost"}})
        results.append(page.status_code)
    except Exception as e:
        results.append(type(e).__name__)

threads = [threading.Thread(target=sign_in) for _ in range({AT_ONCE})]
for thread in threads: thread.start()
for thread in threads: thread.join()
users = [(u.username, u.has_usable_password()) for u in get_user_model().objects.all()]
print(json.dumps({{"results": results, "users": users, "devices": HostDevice.objects.count()}}))
"""


def test_first_sign_ins_at_once_create_one_user_and_one_device(tmp_path: Path) -> None:
    environment = {
        "PYTHONPATH": f"{TREE}:{TREE / 'examples' / 'django_site'}",
        "PATH": "/usr/bin:/bin",
        "DJANGO_SETTINGS_MODULE": "settings",
        "DATABASE": str(tmp_path / "db.sqlite3"),
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["results"] == [302] * AT_ONCE, done.stderr
    assert found["users"] == [[ME, False]]
    assert found["devices"] == 1
