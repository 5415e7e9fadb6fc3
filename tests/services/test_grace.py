"""Tests of grace_period: for some time after a code, a repeated login requires no code.

The tests use the real libpam and the real clock, and write the time of the last code into the record.
"""

from __future__ import annotations

import os
import time

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.record import Grace
from tests.support.pamconf import Login, Result
from tests.support.site import ME, Site, codes, fob

HERE = "192.0.2.7"
HOUR = 3600


@pytest.fixture(autouse=True)
def an_hour_of_grace(site: Site, way: str) -> None:
    site.configure("demo", "grace_period=3600", way)
    site.configure("other", "grace_period=3600", way)
    if os.geteuid() != 0 and way == "socket":
        pytest.skip("requires root: the service records grace only if the caller is root")


def was_prompted(done: Login) -> bool:
    """Return True if the login prompted the user. A login with a prompt must fail, because the test gives no answer."""
    assert done.result is (Result.CONV_ERR if done.prompts else Result.SUCCESS), done
    return bool(done.prompts)


def log_in(site: Site, rhost: str | None = HERE, service: str = "demo") -> Login:
    return site.login(service=service, items={} if rhost is None else {"rhost": rhost})


def get_in(site: Site, answer: str, rhost: str = HERE) -> None:
    assert site.login(answer, items={"rhost": rhost}).result is Result.SUCCESS


def ago(seconds: int, rhost: str = HERE, service: str = "demo") -> Grace:
    return Grace(service=service, rhost=rhost, granted=int(time.time()) - seconds)


def test_after_a_code_the_same_login_requires_no_code(site: Site) -> None:
    site.enrol()
    assert was_prompted(log_in(site))
    get_in(site, codes(0))
    assert not was_prompted(log_in(site))
    assert site.counter() == 1


def test_grace_is_for_one_address_and_one_service(site: Site) -> None:
    site.enrol(grace=(ago(60),))
    assert not was_prompted(log_in(site))
    assert was_prompted(log_in(site, "192.0.2.8"))
    assert was_prompted(log_in(site, service="other"))


@pytest.mark.parametrize(
    "rhost",
    [
        *(None, "", "laptop.example.org", "localhost", "192.0.2", "192.0.2.07", "fe80::1%eth0", " 192.0.2.7"),
        *("2001:db8::1%eth0", "[2001:db8::1]", "192.0.2.7:22", "3221225991"),
    ],
)
def test_without_a_numeric_address_there_is_no_grace(site: Site, rhost: str | None) -> None:
    site.enrol()
    assert site.login(codes(0), items={} if rhost is None else {"rhost": rhost}).result is Result.SUCCESS
    assert site.record().grace == ()
    assert was_prompted(log_in(site, rhost))


@pytest.mark.parametrize(
    "rhost",
    [
        *("127.0.0.1", "127.9.9.9", "::1", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"),
        *("169.254.7.7", "fe80::1", "febf::1", "::ffff:169.254.7.7", "0.0.0.0", "::", "::ffff:0.0.0.0"),  # noqa: S104
    ],
)
def test_an_address_that_identifies_no_other_host_has_no_grace(site: Site, rhost: str) -> None:
    site.enrol()
    get_in(site, codes(0), rhost)
    assert site.record().grace == ()
    site.enrol(grace=(ago(60, rhost),))  # an entry of an older version
    assert was_prompted(log_in(site, rhost))


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:DB8:0::7", "2001:db8::7"), (HERE, f"::ffff:{HERE}"), (f"::FFFF:{HERE}", HERE), ("::ffff:c000:207", HERE)],
)
def test_an_address_is_recognised_in_every_spelling(site: Site, one: str, other: str) -> None:
    site.enrol()
    get_in(site, codes(0), one)
    assert not was_prompted(log_in(site, other))


def test_grace_ends_and_a_login_without_a_code_does_not_extend_it(site: Site) -> None:
    site.enrol(grace=(ago(HOUR - 60),))
    before = site.path().read_bytes()
    assert not was_prompted(log_in(site))
    assert site.path().read_bytes() == before
    site.enrol(grace=(ago(HOUR),))
    assert was_prompted(log_in(site))


def test_grace_from_the_future_is_void(site: Site) -> None:
    """A record can contain times in the future after the clock was set back."""
    site.enrol(grace=(ago(-60),))
    assert was_prompted(log_in(site))
    site.enrol(fob(last_used=int(time.time()) + 60), grace=(ago(60),))
    assert was_prompted(log_in(site)), "a last use in the future voids grace, too"


@pytest.mark.parametrize("change", [["rename", "fob", "stick"], ["disable-token", "fob"], ["remove", "two", "--yes"]])
def test_grace_is_void_when_the_tokens_change(site: Site, change: list[str]) -> None:
    site.enrol(fob(), fob(name="two", secret=b"x" * 20), grace=(ago(60),))
    record = site.record()
    first, second = record.tokens
    changed = {
        "rename": lambda: record.with_changed(first, first.renamed("stick")),
        "disable-token": lambda: record.with_changed(first, first.switched(False)),
        "remove": lambda: record.without_token(second.name),
    }[change[0]]()
    assert changed.grace == ()
    site.enrol(*changed.tokens, grace=changed.grace)
    assert was_prompted(log_in(site))


def test_a_user_without_tokens_has_no_grace(site: Site) -> None:
    site.enrol(grace=(ago(60),))
    assert site.command("remove", ME, "--all", "--yes").returncode == 0
    assert was_prompted(log_in(site))


def test_a_recovery_code_grants_no_grace(site: Site) -> None:
    salt, code = "00" * 16, "0123456789ABCDEF"
    site.enrol(salt=salt, recovery=(recovery_digest(salt, code),))
    get_in(site, code)
    assert site.record().grace == ()
    assert was_prompted(log_in(site))


def test_a_refused_code_grants_no_grace(site: Site) -> None:
    site.enrol()
    assert site.login("000000", items={"rhost": HERE}).result is Result.AUTH_ERR
    assert site.record().grace == ()


def test_a_locked_user_has_no_grace(site: Site, way: str) -> None:
    site.configure("demo", "grace_period=3600 lock_after=3", way)
    site.enrol(grace=(ago(60),), failures=3, failures_at=int(time.time()))
    assert was_prompted(log_in(site))


def test_a_shared_record_has_no_grace(site: Site, way: str) -> None:
    """A code of one account must not give grace to another account that uses the same record by user=NAME."""
    site.configure("demo", f"grace_period=3600 user={ME}", way)
    site.enrol(grace=(ago(60),))
    assert was_prompted(log_in(site))


def test_without_the_argument_no_grace_is_kept(site: Site, way: str) -> None:
    site.configure("demo", "", way)
    site.enrol()
    get_in(site, codes(0))
    assert site.record().grace == ()
