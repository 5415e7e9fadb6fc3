"""`make bench-portal`: a benchmark of many simultaneous sign-ins to the portal.

ARGS=50 sets the number of users. Root is required. Every user has an account, a password and a token on a test machine
(see tests/services/namespace.py). A user loads the form, sends a password that PAM checks, sends a code, and loads the
list of tokens. The program prints the times, and writes them to bench-portal.json. The exit status is 1 if a
sign-in failed.
"""

from __future__ import annotations

import ctypes
import html
import http.client
import json
import os
import platform
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from pam_totp.system import passwords
from tests.services.namespace import COPY, LIBRARIES, STORE, Machine
from tests.support.etc import PASSWORD
from tests.support.isolation import isolate
from tests.support.site import TREE, codes, fob
from tests.web.served import NAME, TlsPortal

PEOPLE = 200
FIRST_UID = 56_000


class Person:
    """A user with a minimal browser: one connection, one cookie."""

    def __init__(self, number: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", 8443, timeout=120)
        self._user = f"person{number}"
        self._headers = {
            "Host": NAME,
            "X-Forwarded-Proto": "https",
            "X-Forwarded-For": f"198.51.{number // 250}.{number % 250 + 1}",
        }

    def _ask(self, method: str, path: str, fields: dict[str, str] | None = None) -> tuple[int, str]:
        body = None if fields is None else urlencode(fields)
        headers = self._headers | ({} if body is None else {"Content-Type": "application/x-www-form-urlencoded"})
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        text = answer.read().decode()
        cookie = answer.getheader("Set-Cookie")
        if cookie is not None:
            self._headers["Cookie"] = cookie.partition(";")[0]
        return answer.status, text

    def _send(self, path: str, **fields: str) -> None:
        _, page = self._ask("GET", path)
        token = re.search(r'name="csrf_token"[^>]* value="([^"]*)"', page)
        assert token, page
        status, page = self._ask("POST", path, {"csrf_token": html.unescape(token[1]), **fields})
        assert status == 303, (status, page)

    def sign_in(self) -> float:
        """Sign in, and return the seconds from the first form to the list of tokens."""
        started = time.monotonic()
        self._send("/sign-in", user=self._user, password=PASSWORD)
        self._send("/code", proof=codes(0))
        status, page = self._ask("GET", "/")
        assert (status, "Your tokens" in page) == (200, True)
        return time.monotonic() - started


def crowd(people: int) -> int:
    """Sign in `people` users in parallel, and print the times as JSON. This function runs on the test machine."""
    seconds: list[float] = []
    errors: list[str] = []
    barrier = threading.Barrier(people)

    def sign_in(number: int) -> None:
        person = Person(number)
        barrier.wait()
        try:
            seconds.append(person.sign_in())
        except Exception as e:  # `report` prints the number of errors, and the first errors
            errors.append(repr(e))

    threads = [threading.Thread(target=sign_in, args=(number,)) for number in range(people)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.monotonic() - started
    seconds.sort()
    at = {name: seconds[min(int(share * len(seconds)), len(seconds) - 1)] for name, share in QUANTILES if seconds}
    result = {"people": people, "in": len(seconds), "after": total, **at, "errors": [e[:300] for e in errors]}
    print(json.dumps(result))
    return 1 if errors else 0


QUANTILES = (("p50", 0.5), ("p95", 0.95), ("slowest", 1.0))  # quantiles of the seconds of a sign-in


def debian_hash(password: str) -> str:
    """Return the yescrypt hash that Debian's passwd(1) computes. The tests use a faster hash."""
    crypt = passwords._crypt()
    assert crypt is not None
    data = ctypes.create_string_buffer(passwords._CRYPT_DATA)
    hashed = crypt(password.encode(), passwords._DECOY, data)
    assert isinstance(hashed, bytes)
    return hashed.decode()


def report(result: dict[str, Any], load: float) -> None:
    machine = {"system": platform.platform(), "processors": os.cpu_count(), "load_before": load}
    (TREE / "bench-portal.json").write_text(json.dumps({"machine": machine, "sign_ins": result}, indent=1) + "\n")
    print(f"{result['people']} users at once: {result['in']} signed in after {result['after']:.1f} s")
    print("   " + "   ".join(f"{name} {result[name]:.2f} s" for name, _ in QUANTILES if name in result))
    print(f"   errors: {len(result['errors'])}", *result["errors"][:5], sep="\n      ")
    print(f"   on {os.cpu_count()} processors, load average {load:.1f} before; written to bench-portal.json")


def main(people: int) -> int:
    if os.geteuid() != 0:
        print("make bench-portal: root is required for a private test machine (use sudo)", file=sys.stderr)
        return 3
    temporary = tempfile.TemporaryDirectory
    with temporary(prefix="pam_totp-bench-") as made, temporary() as program, temporary() as home:
        isolate(Path(home))
        machine = Machine(Path(made))
        try:
            hashed = debian_hash(PASSWORD)
            names = [f"person{number}" for number in range(people)]
            with open(machine.path("/etc/passwd"), "a") as file:
                file.writelines(f"{name}:x:{FIRST_UID + n}:{FIRST_UID}::/:/bin/sh\n" for n, name in enumerate(names))
            with open(machine.path("/etc/shadow"), "a") as file:
                file.writelines(f"{name}:{hashed}:19000:0:99999:7:::\n" for name in names)
            TlsPortal(machine, Path(program))
            for name in names:
                machine.enrol(name, fob())
            machine.run("chown", "-R", "pam_totp:pam_totp", STORE)
            python = ["env", f"PYTHONPATH={TREE}:{COPY}:{LIBRARIES}", sys.executable, "-m", "tools.bench.portal"]
            load = os.getloadavg()[0]
            done = machine.run(*python, str(people), "--on-the-machine")
            print(done.stderr, end="", file=sys.stderr)
            report(json.loads(done.stdout), load)
            return done.returncode
        finally:
            machine.stop()


if __name__ == "__main__":
    many = int(sys.argv[1]) if len(sys.argv) > 1 else PEOPLE
    sys.exit(crowd(many) if "--on-the-machine" in sys.argv else main(many))
