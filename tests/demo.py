"""The main job, shown: press the token, log in through the real libpam and the real module. Run by `make demo`.

Everything happens in a temporary folder; nothing of the host is touched, and no root is needed.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pam_totp.formats.otpauth import typed_secret
from pam_totp.oath import totp
from tests.pamconf import Login, Result
from tests.site import ME, MODULE, TREE, Site, until

PRESSES_IN_THE_POCKET = 40  # more than look_ahead, less than resync_window
LOGINS_TIMED = 20
WIDTH = 76  # of what stands indented: a terminal of 80 columns
PERIOD = 30  # seconds: a phone's
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


def painted(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if COLOUR else text


class Show:
    """Says what is being shown, what happened, and whether it was as it should be."""

    def __init__(self) -> None:
        self.table: list[tuple[str, str]] = []
        self.failed = False
        self._steps = 0

    def step(self, title: str) -> None:
        self._steps += 1
        print(f"\n{painted(f'{self._steps}. {title}', '1')}")

    def told(self, text: str) -> None:
        lines = text.rstrip().splitlines()
        for line in itertools.chain.from_iterable(textwrap.wrap(line, WIDTH) for line in lines):
            print(f"   {painted(line, '2')}")

    def check(self, what: str, happened: str, good: bool) -> None:
        mark = painted("as it should be", "32") if good else painted("NOT AS IT SHOULD BE", "1;31")
        print(f"   {happened}: {mark}", flush=True)
        self.table.append((what, "yes" if good else "NO"))
        self.failed |= not good


class Token:
    """A simulated token on a pseudo-serial port, with a finger on its button."""

    def __init__(self, file: Path, port: Path) -> None:
        self.port = port
        command = [sys.executable, "-m", "token_sim.cli", "run", file, "--link", port]
        self._process = subprocess.Popen(command, cwd=TREE, stdout=subprocess.DEVNULL)
        until(port.exists, "the simulator makes its port")

    def press(self, times: int = 1) -> list[str]:
        command = [sys.executable, "-m", "token_sim.cli", "press", "--port", str(self.port), "-n", str(times)]
        done = subprocess.run(command, cwd=TREE, text=True, stdout=subprocess.PIPE, check=True)
        return done.stdout.split()

    def press_by_hand(self) -> None:
        """The button itself, with nobody on the port but whoever is listening there."""
        self._process.send_signal(signal.SIGUSR1)

    def unplug(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def plugged_in(file: Path, port: Path) -> Iterator[Token]:
    token = Token(file, port)
    try:
        yield token
    finally:
        token.unplug()


def main() -> int:
    print(painted("pam_totp: a one-time code as the second factor, from the button to the login", "1"))
    show = Show()
    with tempfile.TemporaryDirectory(prefix="pam_totp-demo-") as folder:
        site = Site(Path(folder))
        try:
            demonstrate(site, show)
        finally:
            site.stop()
    print(f"\n{painted('What was shown', '1')}")
    for what, good in show.table:
        print(f"   {what:<73} {painted(good, '32' if good == 'yes' else '1;31')}")
    print("\nAll as it should be." if not show.failed else "\nSomething was not as it should be.")
    return int(show.failed)


def demonstrate(site: Site, show: Show) -> None:
    site.start()
    site.configure("demo", way="socket")
    site.configure("demo-spawn", way="spawn")
    print(f"in {site.folder}, as {ME}; the PAM line is\n   auth required {MODULE} …")

    show.step("A token from the factory, and its seed enrolled")
    file, serial, seed, counter = from_the_factory(site)
    with plugged_in(file, site.folder / "token") as token:
        show.told(f"serial number {serial}, plugged into {token.port}")
        (code,) = token.press()
        words = ("enroll", ME, "--type", "hotp", "--name", "fob", "--serial", serial, "--counter", counter)
        done = site.command(*words, "--secret-stdin", stdin=f"hex:{seed}\n{code}\n")
        show.told(f"press: {code}, which confirms the enrolment\n{done.stdout}{done.stderr}")
        show.check("a token from the factory is enrolled, its first code used up", "enrolled", done.returncode == 0)
        hardware_token(site, show, token)
        far_away(site, show, token)
        phone(site, show)
        timing(site, show, token)
    print(f"\n{painted('The log of the service', '1')}")
    show.told("\n".join(site.log.lines()[:12]) + "\n…")


def from_the_factory(site: Site) -> tuple[Path, str, str, str]:
    """The token's file, its serial number, and its seed and counter as the vendor's list has them."""
    out = site.folder / "factory"
    command = [sys.executable, "-m", "token_sim.cli", "factory", "--count", "1", "--out", out]
    subprocess.run(command, cwd=TREE, check=True, stdout=subprocess.DEVNULL)
    serial, seed, _, _, counter = (out / "seeds.csv").read_text().splitlines()[0].split(",")
    return out / f"{serial}.token", serial, seed, counter


def attempt(show: Show, what: str, login: Callable[[], Login], expected: Result) -> None:
    """One login through libpam, and whether it went as told."""
    done = login()
    for message in done.messages:
        show.told(f"{ME} is told: {message.text}")
    show.check(what, f"libpam says {done.result.name} after {1000 * done.seconds:.0f} ms", done.result is expected)


def hardware_token(site: Site, show: Show, token: Token) -> None:
    show.step("Press, and log in")
    (code,) = token.press()
    show.told(f"press: {code}")
    attempt(show, "its code logs in, through the service", lambda: site.login(code), Result.SUCCESS)

    show.step("The same code again")
    attempt(show, "the replay is refused", lambda: site.login(code), Result.AUTH_ERR)

    show.step("Without the service: the module starts the helper itself")
    (code,) = token.press()
    attempt(
        show, "a code logs in by a helper of its own", lambda: site.login(code, service="demo-spawn"), Result.SUCCESS
    )

    show.step(f"The token was pressed {PRESSES_IN_THE_POCKET} times in a pocket")
    token.press(PRESSES_IN_THE_POCKET)
    (code,) = token.press()
    show.told(f"press: {code}")
    attempt(show, "one code from far ahead is refused", lambda: site.login(code), Result.AUTH_ERR)
    row = " ".join([code, *token.press()])
    show.told(f"press again, and both in one answer: {row}")
    attempt(show, "two codes in a row bring it back into step at the prompt", lambda: site.login(row), Result.SUCCESS)


def far_away(site: Site, show: Show, token: Token) -> None:
    show.step("pam-totp resync reads the port while the button is pressed")
    token.press(15)
    command = [sys.executable, "-m", "pam_totp.cli", "resync", ME, "--store", site.store, "--port", token.port]
    with subprocess.Popen(command, cwd=TREE, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as resync:
        assert resync.stderr is not None
        show.told(resync.stderr.readline())
        while resync.poll() is None:  # a press that comes too early is a press that nothing came of
            token.press_by_hand()
            time.sleep(0.2)
        out, err = resync.communicate()
    show.told(out + err)
    show.check("pam-totp resync brings it back, reading the serial port", "resync ended", resync.returncode == 0)
    (code,) = token.press()
    attempt(show, "and the next code logs in", lambda: site.login(code), Result.SUCCESS)


def phone(site: Site, show: Show) -> None:
    show.step("A phone: scan, confirm, log in")
    command = [sys.executable, "-m", "pam_totp.cli", "enroll", ME, "--store", site.store, "--name", "phone"]
    with subprocess.Popen(
        command, cwd=TREE, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as enrolment:
        assert enrolment.stdout is not None
        shown = ""
        for line in enrolment.stdout:
            shown += line
            if line.startswith("     totp"):
                break
        print(shown if COLOUR else re.sub("\x1b.*?m", "", shown))
        key = typed_secret(shown.rpartition("key: ")[2].splitlines()[0])
        until(lambda: time.time() % PERIOD < PERIOD - 5, "time enough in this step")
        now = int(time.time())
        # The phone shows one code in 30 seconds. The one of half a minute ago is still good: it confirms, so that
        # nobody has to wait for the next one to log in.
        out, err = enrolment.communicate(totp(key, now - PERIOD) + "\n")
    show.told(out + err)
    show.check("a phone is enrolled by its QR code and its first code", "enrolled", enrolment.returncode == 0)
    attempt(show, "its code logs in", lambda: site.login(totp(key, now)), Result.SUCCESS)


def timing(site: Site, show: Show, token: Token) -> None:
    show.step("How long a login takes, with its use recorded on disk")
    medians = []
    for service, way in (("demo", "through the service"), ("demo-spawn", "starting the helper")):
        done = [site.login(code, service=service) for code in token.press(LOGINS_TIMED)]
        medians.append(f"{1000 * statistics.median(d.seconds for d in done):.1f} ms {way}")
        if any(d.result is not Result.SUCCESS for d in done):
            show.check(f"{LOGINS_TIMED} logins {way}", "one was refused", False)
            return
    show.check(f"a login takes {', '.join(medians)}", f"{2 * LOGINS_TIMED} logins, all accepted", True)


if __name__ == "__main__":
    sys.exit(main())
