"""grace_period: a while after a code, the same login needs none. Through the real libpam, with the real clock; how
long ago a code was is written into the record."""

from __future__ import annotations

import os
import time

import pytest

from pam_totp.answer import recovery_digest
from pam_totp.pam import grace
from pam_totp.pam.admission import admit
from pam_totp.pam.handle import Hello
from pam_totp.policy import Policy
from pam_totp.record import MAX_GRACE, Grace, UserRecord
from pam_totp.settings import Site as SiteFile
from tests.conftest import as_root
from tests.pamconf import Login, Result
from tests.site import ME, Site, codes, fob

HERE = "192.0.2.7"
HOUR = 3600


@pytest.fixture(autouse=True)
def an_hour_of_grace(site: Site, way: str) -> None:
    site.configure("demo", "grace_period=3600", way)
    site.configure("other", "grace_period=3600", way)
    if os.geteuid() != 0 and way == "socket":
        pytest.skip("the service keeps no grace for hosts that are not root")


def asked(done: Login) -> bool:
    """Whether the person was asked; nothing but a code gets in then, and there is none in these scripts."""
    assert done.result is (Result.CONV_ERR if done.prompts else Result.SUCCESS), done
    return bool(done.prompts)


def come(site: Site, rhost: str | None = HERE, service: str = "demo") -> Login:
    return site.login(service=service, items={} if rhost is None else {"rhost": rhost})


def get_in(site: Site, answer: str, rhost: str = HERE) -> None:
    assert site.login(answer, items={"rhost": rhost}).result is Result.SUCCESS


def ago(seconds: int, rhost: str = HERE, service: str = "demo") -> Grace:
    return Grace(service=service, rhost=rhost, granted=int(time.time()) - seconds)


def test_after_a_code_the_same_login_needs_none(site: Site) -> None:
    site.enrol()
    assert asked(come(site))
    get_in(site, codes(0))
    assert not asked(come(site))
    assert site.counter() == 1


def test_grace_is_for_one_address_and_one_service(site: Site) -> None:
    site.enrol(grace=(ago(60),))
    assert not asked(come(site))
    assert asked(come(site, "192.0.2.8"))
    assert asked(come(site, service="other"))


@pytest.mark.parametrize(
    "rhost", [None, "", "laptop.example.org", "localhost", "192.0.2", "192.0.2.07", "fe80::1%eth0", " 192.0.2.7"]
)
def test_without_a_numeric_address_there_is_none(site: Site, rhost: str | None) -> None:
    site.enrol()
    assert site.login(codes(0), items={} if rhost is None else {"rhost": rhost}).result is Result.SUCCESS
    assert site.record().grace == ()
    assert asked(come(site, rhost))


def test_an_address_is_known_in_every_spelling(site: Site) -> None:
    site.enrol()
    get_in(site, codes(0), "2001:DB8:0::7")
    assert not asked(come(site, "2001:db8::7"))


def test_grace_ends_and_a_login_without_a_code_does_not_extend_it(site: Site) -> None:
    site.enrol(grace=(ago(HOUR - 60),))
    before = site.path().read_bytes()
    assert not asked(come(site))
    assert site.path().read_bytes() == before
    site.enrol(grace=(ago(HOUR),))
    assert asked(come(site))


def test_grace_from_the_future_is_void(site: Site) -> None:
    """The clock went back."""
    site.enrol(grace=(ago(-60),))
    assert asked(come(site))
    site.enrol(fob(last_used=int(time.time()) + 60), grace=(ago(60),))
    assert asked(come(site)), "what else is in the record tells of it too"


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
    assert asked(come(site))


def test_who_has_no_tokens_left_has_no_grace(site: Site) -> None:
    site.enrol(grace=(ago(60),))
    assert site.command("remove", ME, "--all", "--yes").returncode == 0
    assert asked(come(site))


def test_a_recovery_code_grants_none(site: Site) -> None:
    salt, code = "00" * 16, "0123456789ABCDEF"
    site.enrol(salt=salt, recovery=(recovery_digest(salt, code),))
    get_in(site, code)
    assert site.record().grace == ()
    assert asked(come(site))


def test_a_refused_code_grants_none(site: Site) -> None:
    site.enrol()
    assert site.login("000000", items={"rhost": HERE}).result is Result.AUTH_ERR
    assert site.record().grace == ()


def test_the_locked_have_none(site: Site, way: str) -> None:
    site.configure("demo", "grace_period=3600 lock_after=3", way)
    site.enrol(grace=(ago(60),), failures=3, failures_at=int(time.time()))
    assert asked(come(site))


def test_a_shared_record_has_none(site: Site, way: str) -> None:
    """user=NAME: the code of one account is not to let another one in."""
    site.configure("demo", f"grace_period=3600 user={ME}", way)
    site.enrol(grace=(ago(60),))
    assert asked(come(site))


def test_without_the_argument_nothing_is_kept(site: Site, way: str) -> None:
    site.configure("demo", "", way)
    site.enrol()
    get_in(site, codes(0))
    assert site.record().grace == ()


@as_root
def test_the_site_file_grants_it_too(site: Site, way: str) -> None:
    if way == "spawn":
        pytest.skip("a helper reads /etc/pam_totp.toml, which is the host's")
    site.config.write_text("[service.demo]\ngrace_period = 3600\n")
    site.configure("demo", "", way)
    site.enrol()
    get_in(site, codes(0))
    assert not asked(come(site))


# Pure


AT = ("demo", HERE)


def test_the_newest_are_kept_and_what_nobody_could_honour_is_dropped() -> None:
    full = tuple(Grace(service="demo", rhost=f"192.0.2.{n}", granted=900_000 + n) for n in range(MAX_GRACE))
    kept = grace.granted(UserRecord(user="alice", grace=full), ("demo", "::1"), 900_100).grace
    assert len(kept) == MAX_GRACE
    assert kept[-1] == Grace(service="demo", rhost="::1", granted=900_100)
    assert full[0] not in kept
    assert set(full[1:]) < set(kept)
    old = (Grace(service="a", rhost="::1", granted=900_000 - 86_400), Grace(service="b", rhost="::1", granted=900_101))
    assert [g.service for g in grace.granted(UserRecord(user="alice", grace=old), AT, 900_000).grace] == ["demo"]


def test_a_new_code_at_the_same_place_replaces_the_old_grace() -> None:
    record = grace.granted(grace.granted(UserRecord(user="alice"), AT, 100), AT, 200)
    assert record.grace == (Grace(service="demo", rhost=HERE, granted=200),)


@pytest.mark.parametrize(("now", "holds"), [(99, False), (100, True), (109, True), (110, False)])
def test_grace_holds_from_the_code_for_the_period(now: int, holds: bool) -> None:
    record = grace.granted(UserRecord(user="alice"), AT, 100)
    assert grace.holds(record, AT, now, 10, Policy()) is holds


@pytest.mark.parametrize("service", ["", " sshd", "x" * 65, "sshd\n", "über"])
def test_a_strange_service_has_no_place(service: str) -> None:
    assert grace.place(service, HERE) is None


def test_nobody_but_root_gets_or_leaves_grace() -> None:
    uid = os.geteuid() or 65534
    hello = Hello(version="1", service="demo", user="nobody" if uid == 65534 else ME, arguments=("grace_period=60",))
    admitted = admit(uid, hello, SiteFile(policy={"grace_period": 3600}, services={}, clients={}))
    assert admitted is not None
    assert admitted.arguments == ("grace_period=0",)
