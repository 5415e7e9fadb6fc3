"""Tests with Debian's pam_google_authenticator and pam_oath: used codes remain used after an import or an export."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken, TotpToken
from tests.support.pamconf import Result, login, service
from tests.support.site import KEY, ME, Site, fob, phone, until

PERIOD = 30


def step() -> int:
    """Return the current time step. First wait for the next time step if the current step ends within 8 s."""
    until(lambda: time.time() % PERIOD < PERIOD - 8, "the time step lasts at least 8 s longer")
    return int(time.time()) // PERIOD


def made_by_google_authenticator(path: Path, *options: str) -> bytes:
    """Write the file `path` with Debian's google-authenticator. Return the key in the file."""
    command = ["google-authenticator", *options, "--no-confirm", "--quiet", "--force", "--secret", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    text = path.read_text().splitlines()[0]
    return base64.b32decode(text + "=" * (-len(text) % 8))


def gets_in_at(name: str, site: Site, answer: str) -> bool:
    result = login(name, ME, [answer], site.confdir).result
    assert result in (Result.SUCCESS, Result.AUTH_ERR), result
    return result is Result.SUCCESS


def google_authenticator_at(site: Site, path: Path) -> None:
    service(site.confdir, "ga", f"auth required pam_google_authenticator.so secret={path} user={ME}")


def pam_oath_at(site: Site, path: Path) -> None:
    service(site.confdir, "oath", f"auth required pam_oath.so usersfile={path} window=10")


def test_a_google_authenticator_counter_continues_in_pam_totp(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "ga"
    key = made_by_google_authenticator(file, "--counter-based", "--window-size=3", "--rate-limit=3", "--rate-time=30")
    google_authenticator_at(site, file)
    assert gets_in_at("ga", site, hotp(key, 1))
    assert gets_in_at("ga", site, hotp(key, 3)), "pam_google_authenticator accepts a code within its window"

    done = site.command("import", "google-authenticator", file, "--user", ME)
    assert done.returncode == 0, done.stderr
    assert "5 scratch codes dropped" in done.stdout
    assert "RATE_LIMIT dropped" in done.stdout
    site.configure()
    assert not site.gets_in(hotp(key, 3))
    assert not site.gets_in(hotp(key, 1))
    assert site.gets_in(hotp(key, 4))


def test_the_used_steps_of_google_authenticator_continue_in_pam_totp(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "ga"
    limit = ("--window-size=3", "--rate-limit=3", "--rate-time=30")
    key = made_by_google_authenticator(file, "--time-based", "--disallow-reuse", *limit)
    google_authenticator_at(site, file)
    now = step()
    assert gets_in_at("ga", site, hotp(key, now))
    assert gets_in_at("ga", site, hotp(key, now - 1)), "pam_google_authenticator accepts a code of the previous step"

    assert site.command("import", "google-authenticator", file, "--user", ME).returncode == 0
    site.configure()
    assert not site.gets_in(hotp(key, now))
    assert not site.gets_in(hotp(key, now - 1))
    assert site.gets_in(hotp(key, now + 1))


def test_a_skew_of_google_authenticator_is_kept(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "ga"
    key = made_by_google_authenticator(file, "--time-based", "--disallow-reuse", "--minimal-window", "--no-rate-limit")
    file.chmod(0o600)
    file.write_text(file.read_text().replace('" TOTP_AUTH', '" TIME_SKEW -100\n" TOTP_AUTH'))
    google_authenticator_at(site, file)
    now = step()
    assert gets_in_at("ga", site, hotp(key, now - 100)), "a negative TIME_SKEW means a slow clock"
    assert site.command("import", "google-authenticator", file, "--user", ME).returncode == 0
    site.configure()
    assert not site.gets_in(hotp(key, now - 100))
    assert site.gets_in(hotp(key, now - 99))


def test_a_used_users_oath_file_continues_in_pam_totp(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "users.oath"
    clock = b"another key of 20 by"
    file.write_text(f"# fleet\nHOTP {ME} - {KEY.hex()}\nHOTP/T30 {ME} - {clock.hex()}\n")
    file.chmod(0o600)
    pam_oath_at(site, file)
    assert gets_in_at("oath", site, hotp(KEY, 0))
    assert gets_in_at("oath", site, hotp(KEY, 3))
    now = step()
    assert gets_in_at("oath", site, hotp(clock, now))

    done = site.command("import", "users-oath", file)
    assert done.returncode == 0, done.stderr
    site.configure()
    for used in (hotp(KEY, 0), hotp(KEY, 3), hotp(clock, now), hotp(clock, now - 1)):
        assert not site.gets_in(used)
    assert site.gets_in(hotp(KEY, 4))
    assert site.gets_in(hotp(clock, now + 1))
    hardware, phone = site.record().tokens
    assert isinstance(hardware, HotpToken)
    assert isinstance(phone, TotpToken)
    assert (hardware.counter, phone.last_step) == (5, now + 1)


@pytest.mark.parametrize("kind", ["hotp", "totp"])
def test_other_modules_accept_exported_files(site: Site, tmp_path: Path, kind: str) -> None:
    now = step()
    site.configure()
    first = hotp(KEY, 7 if kind == "hotp" else now)
    following = hotp(KEY, 8 if kind == "hotp" else now + 1)
    words = ["--type", kind, *(["--counter", "7"] if kind == "hotp" else [])]
    stdin = f"hex:{KEY.hex()}\n{first}\n"
    assert site.command("enroll", ME, *words, "--secret-stdin", stdin=stdin).returncode == 0
    for name, prepare, at in (
        ("google-authenticator", google_authenticator_at, "ga"),
        ("users-oath", pam_oath_at, "oath"),
    ):
        file = tmp_path / name
        done = site.command("export", ME, "--format", name, "--output", file)
        assert done.returncode == 0, done.stderr
        assert file.stat().st_mode & 0o777 == 0o600
        prepare(site, file)
        # Enter the right code first, because a wrong code moves google-authenticator's counter past the right code.
        assert gets_in_at(at, site, following), name
        assert not gets_in_at(at, site, first), f"a code that pam_totp accepted before the export is refused: {name}"


def test_every_user_can_return_to_pam_oath_and_google_authenticator(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(5))
    site.enrol(phone(), user="bob")
    oath, folder = tmp_path / "users.oath", tmp_path / "ga"
    assert site.command("export", "--all", "--format", "users-oath", "--output", oath).returncode == 0
    assert site.command("export", "--all", "--format", "google-authenticator", "--output", folder).returncode == 0
    pam_oath_at(site, oath)
    assert not gets_in_at("oath", site, hotp(KEY, 4))
    assert gets_in_at("oath", site, hotp(KEY, 6))
    google_authenticator_at(site, folder / ME)
    assert not gets_in_at("ga", site, hotp(KEY, 4))
    assert gets_in_at("ga", site, hotp(KEY, 6))
