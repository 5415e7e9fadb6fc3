"""Applications that ask the service for decisions, as on a real site: the two examples, and a portal without a store.

The examples run as carol, and the portal runs as bob, on a test machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import partial

from tests.services.namespace import ACCOUNTS, COPY, LIBRARIES, Machine
from tests.support.etc import SHADOW
from tests.support.site import TREE, until
from tests.web.served import listens

# The accounts of the applications, and their PAM services. Both accounts can check passwords, because they are in the
# group shadow. Only the service can read the store.
CLIENTS = {"bob": "pam_totp-portal", "carol": "web"}
DJANGO, FLASK, PORTAL = (f"http://localhost:{port}" for port in (8001, 8002, 8003))
_FOLDER = "/run/applications"


def start(machine: Machine) -> None:
    """Start the service and all applications. Call `start` once, after TlsPortal has written the portal's stack."""
    machine.serve()
    folder = machine.path(_FOLDER)
    shutil.copytree(TREE / "examples", folder, ignore=shutil.ignore_patterns("__pycache__"))
    machine.run("chmod", "-R", "go=rX", _FOLDER)
    machine.own(_FOLDER, "carol")  # Django creates its database in this folder
    django = f"{_FOLDER}/django_site/manage.py"
    assert _run(machine, "carol", django, "migrate", "--verbosity=0").wait() == 0
    _run(machine, "carol", django, "runserver", "--noreload", _address(DJANGO))
    flask = f"{_FOLDER}/flask_app.py"
    _run(machine, "carol", "-m", "flask", "--app", flask, "run", "--port", _address(FLASK).rpartition(":")[2])
    _run(machine, "bob", "-m", "pam_totp.cli", "portal", "--socket", "--listen", _address(PORTAL))
    for url in (DJANGO, FLASK, PORTAL):
        port = int(url.rpartition(":")[2])
        until(partial(listens, machine, port), f"an application listens at {url}")


def admit(machine: Machine, *policy: str) -> None:
    """Write a site file that lists the applications as clients, with the lines `policy` in the table [policy]."""
    clients = (f'{account} = "{service}"' for account, service in CLIENTS.items())
    machine.write("/etc/pam_totp.toml", "\n".join(("[clients]", *clients, "[policy]", *policy, "")))


def _address(url: str) -> str:
    return url.removeprefix("http://").replace("localhost", "127.0.0.1")


def _run(machine: Machine, account: str, *words: str) -> subprocess.Popen[bytes]:
    """Start Python as `account`, and return the process. The kernel ignores setuid bits, as in a systemd unit."""
    uid, shadow = str(ACCOUNTS[account]), str(SHADOW)
    become = ("setpriv", "--reuid", uid, "--regid", uid, "--groups", shadow, "--no-new-privs", "--pdeathsig", "KILL")
    environment = (f"PYTHONPATH={COPY}:{LIBRARIES}", "PYTHONDONTWRITEBYTECODE=1", f"DATABASE={_FOLDER}/db.sqlite3")
    return machine.start(*become, "env", *environment, os.path.realpath(sys.executable), *words)
