"""Tests of password guesses at the portal, from one network and from many, and of the owner's sign-ins meanwhile."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

import pytest

from pam_totp.system.passwords import SystemPasswords
from pam_totp.web.limits import BYTES_OF_KEY, BYTES_OF_TIME, DAY, HOUR, MAX_KEYS, MAX_TIMES, MINUTE
from pam_totp.web.request_limits import OF_ONE_NETWORK, OF_UNKNOWN_NETWORKS, TABLES
from pam_totp.web.server import THREADS
from tests.support.site import Site, codes, until
from tests.web.kit import ORIGIN, PASSWORD, Portal, enroll_fob
from tests.web.over_http import HttpBrowser, served
from tests.web.test_passwords import pam  # noqa: F401  a fixture

OWNER = "192.0.2.7"
HOURLY, DAILY = (count for count, _ in OF_UNKNOWN_NETWORKS.rates)


class Limited(Portal):
    """A portal with rate limits. Guesses at the same time share the form that the first guess loads.

    The session of a form is valid at every address.
    """

    def __init__(self, site: Site, **config: Any) -> None:
        super().__init__(site, rate_limits=True, **config)
        self._form = ("", "")  # the session's cookie, and the field against forged requests
        self._loaded_at = 0.0

    def guess(self, address: str, user: str, password: str) -> int:
        browser = self.browser(address)
        if self._loaded_at != self.clock():
            self._loaded_at, csrf = self.clock(), browser.open("/sign-in").csrf
            self._form = browser.cookie, csrf
        cookie, csrf = self._form
        browser.use_cookie(cookie)
        return browser.post("/sign-in", {"csrf_token": csrf, "user": user, "password": password}).status


def limited(site: Site, **config: Any) -> Limited:
    return Limited(site, **config)


def guess(portal: Limited, address: str, user: str = "alice", password: str = "wrong") -> int:
    if password == PASSWORD:
        return portal.browser(address).sign_in(user, password).status
    return portal.guess(address, user, password)


def guess_from_networks(portal: Limited, attempts: int, first: int = 0) -> list[int]:
    """Guess once from each of `attempts` networks. Return the statuses."""
    return [guess(portal, f"2001:db8:{first + i:x}::1") for i in range(attempts)]


# One network


def test_of_600_guesses_from_one_site_20_are_checked_and_no_user_waits(site: Site) -> None:
    portal = limited(site)
    with served(portal.app) as port:

        def guess_over_http(number: int) -> int:
            browser = HttpBrowser(port, f"2001:db8:0:{number * 109:x}::1")  # a /64 in each of many /56 of one /48
            try:
                return browser.sign_in("alice", "wrong")
            finally:
                browser.close()

        with ThreadPoolExecutor(60) as threads:
            statuses = list(threads.map(guess_over_http, range(600)))
        assert HttpBrowser(port, OWNER).sign_in("alice", PASSWORD) == 303, "the owner signs in from another network"
    assert (statuses.count(401), statuses.count(429)) == (20, 580)
    assert len(portal.passwords.users) == 21


@pytest.mark.parametrize(
    ("first", "step", "neighbours", "attempts"),
    [  # `neighbours`: an address inside the network, and another outside; `step`: between the addresses of attempts
        ("2001:db8::", 1, ("2001:db8::ffff", "2001:db8:0:1::1"), 10),  # a /64
        ("2001:db8::", 1 << 64, ("2001:db8:0:ff::1", "2001:db8:0:100::1"), 15),  # a /56
        ("2001:db8::", 1 << 72, ("2001:db8:0:ffff::1", "2001:db8:1::1"), 20),  # a /48
        ("192.0.2.0", 0, ("192.0.2.0", "192.0.2.1"), 10),
        ("192.0.2.0", 1, ("192.0.2.15", "192.0.2.16"), 15),  # a /28
        ("192.0.2.0", 12, ("192.0.2.255", "192.0.3.1"), 20),  # a /24
    ],
)
def test_guesses_are_counted_in_networks_of_three_sizes(
    site: Site, first: str, step: int, neighbours: tuple[str, str], attempts: int
) -> None:
    portal = limited(site)
    inside, outside = neighbours
    places = [str(ip_address(first) + i * step) for i in range(attempts)]
    assert [guess(portal, place) for place in places] == [401] * attempts
    assert guess(portal, inside, password=PASSWORD) == 429
    assert guess(portal, inside, user="bob", password=PASSWORD) == 200, "another user of this network can sign in"
    assert guess(portal, outside, password=PASSWORD) == 200


def test_a_refused_attempt_uses_up_no_limit(site: Site) -> None:
    portal = limited(site)
    assert [guess(portal, OWNER, user="bob") for _ in range(70)] == [401] * 10 + [429] * 60
    assert [guess(portal, OWNER, user=f"user{i}") for i in range(51)] == [401] * 50 + [429]
    assert [guess(portal, OWNER, user=f"user{i}") for i in range(30)] == [429] * 30
    portal.clock.advance(MINUTE)
    assert [guess(portal, OWNER, user="user1") for _ in range(11)] == [401] * 10 + [429], "refusals are not counted"


def test_one_network_cannot_use_up_the_budget_of_an_account(site: Site) -> None:
    """A patient attacker owns a /48, and guesses all day as fast as the limits allow."""
    portal = limited(site)
    accepted = 0
    for hour in range(24):
        for minute in range(2):
            statuses = [guess(portal, f"2001:db8:0:{(hour * 2 + minute) * 31 + i:x}::1") for i in range(22)]
            accepted += statuses.count(401)
            portal.clock.advance(60)
        portal.clock.advance(3600 - 120)
    assert accepted == 80
    assert guess(portal, OWNER, password=PASSWORD) == 200


def test_two_networks_but_not_one_use_up_the_attempts_of_an_hour(site: Site) -> None:
    portal = limited(site)
    admitted = []
    for network in ("198.51.100", "203.0.113"):
        assert guess(portal, OWNER, password=PASSWORD, user="bob") == 200
        for minute in range(3):
            statuses = [guess(portal, f"{network}.{16 * i + minute}") for i in range(16) for _ in range(2)]
            admitted.append(statuses.count(401))
            portal.clock.advance(MINUTE)
        if network == "198.51.100":
            assert guess(portal, "192.0.2.200", password=PASSWORD) == 200, "one network cannot use up the limit"
    assert admitted == [20, 20, 20, 20, 19, 0]
    assert guess(portal, OWNER, password=PASSWORD) == 429
    portal.clock.advance(HOUR)
    assert guess(portal, OWNER, password=PASSWORD) == 200


def test_four_networks_are_needed_to_use_up_the_budget_of_an_account() -> None:
    site = {seconds: count for count, seconds in OF_ONE_NETWORK[-1].rates}
    assert 3 * site[DAY] < DAILY
    assert site[HOUR] < HOURLY
    assert [budget.rates[-1][1] for budget in OF_ONE_NETWORK] == [DAY] * 3
    assert all(budget.rates[0][1] == MINUTE for budget in OF_ONE_NETWORK)


# Many networks


def test_guesses_for_one_account_are_limited_over_all_networks(site: Site) -> None:
    portal = limited(site)
    assert guess_from_networks(portal, HOURLY + 10) == [401] * HOURLY + [429] * 10
    assert portal.passwords.users == ["alice"] * HOURLY
    assert guess(portal, OWNER, user="bob", password=PASSWORD) == 200, "another account has a separate limit"
    assert any("refused user=alice reason=too-many-attempts rhost=2001:db8" in line for line in portal.log)
    portal.clock.advance(HOUR)
    assert guess_from_networks(portal, 1) == [401]


def test_guesses_for_one_account_are_limited_over_the_day(site: Site) -> None:
    portal = limited(site)
    count = 0
    for hour in range(23):
        count += guess_from_networks(portal, HOURLY, hour * HOURLY).count(401)
        if count == DAILY:
            break
        portal.clock.advance(HOUR)
    assert guess_from_networks(portal, 3, 9000) == [429] * 3


@pytest.mark.parametrize("enrolled", [True, False])
def test_an_owner_who_has_signed_in_before_cannot_be_locked_out(site: Site, enrolled: bool) -> None:
    portal = limited(site)
    if enrolled:
        enroll_fob(portal)
    browser = portal.browser(OWNER)
    browser.sign_in()
    if enrolled:
        browser.send(proof=codes(0))
    guess_from_networks(portal, HOURLY)
    assert guess(portal, "192.0.2.99", password=PASSWORD) == 429, "an unknown address is refused"
    assert guess(portal, OWNER, password=PASSWORD) == 200
    assert guess(portal, OWNER, user="bob", password="wrong") == 401


@pytest.mark.parametrize(
    ("owner", "neighbours"),
    [
        ("192.0.2.7", [f"192.0.2.{i}" for i in (8, 20, 130, 140, 150, 200)]),
        ("2001:db8:0:700::7", [f"2001:db8:0:{i:x}::1" for i in (0x701, 0x702, 0x100, 0x200, 0x300, 0x400)]),
    ],
)
def test_neighbours_cannot_lock_an_owner_out_of_a_known_address(site: Site, owner: str, neighbours: list[str]) -> None:
    portal = limited(site, per_address=20)
    assert guess(portal, owner, password=PASSWORD) == 200
    accepted = 0
    for _ in range(6):
        accepted += [guess(portal, neighbour) for _ in range(10) for neighbour in neighbours].count(401)
        for neighbour in neighbours:  # use up all attempts of the network
            [guess(portal, neighbour, user=f"user{i}") for i in range(21)]
        assert guess(portal, neighbours[0], password=PASSWORD) == 429
        assert guess(portal, owner, password=PASSWORD) == 200
        portal.clock.advance(MINUTE)
    assert accepted == 59, "59, because the first sign-in of the owner also counts"


def test_only_a_password_with_its_code_makes_a_network_known(site: Site) -> None:
    portal = limited(site)
    enroll_fob(portal)
    thief = portal.browser("198.51.100.1")
    assert thief.sign_in().heading == "Your code"
    thief.send(proof="000000")
    guess_from_networks(portal, HOURLY)
    assert guess(portal, "198.51.100.1") == 429


def test_a_known_network_has_the_limits_of_its_own_size(site: Site) -> None:
    portal = limited(site)
    portal.browser(OWNER).sign_in()
    assert [guess(portal, OWNER) for _ in range(10)] == [401] * 9 + [429]


def test_all_spellings_of_an_account_share_one_count(site: Site) -> None:
    spellings = ["alice", "ALICE", "Alice", "alice@corp"]
    portal = limited(site, passwd_name=lambda name: "alice" if name.lower().startswith("alice") else name)
    statuses = [guess(portal, OWNER, user=spellings[i % len(spellings)]) for i in range(12)]
    assert statuses == [401] * 10 + [429] * 2


@pytest.mark.parametrize(
    ("account", "made_up"), [("alice", "zelda"), ("ALICE", "ZELDA"), ("Alice", "Zelda"), ("strasse", "fluesse")]
)
def test_no_count_shows_whether_a_name_is_an_account(site: Site, account: str, made_up: str) -> None:
    """An attacker uses up the limit of a name, and then tries other spellings of the name."""
    portal = limited(site, is_account=lambda name: name == account)

    def probe(name: str, network: str) -> list[int]:
        spellings = (name, name.upper(), name.lower(), name.title(), name.replace("ss", "\u00df"), f"{name} ", name)
        return [guess(portal, f"{network}:{place:x}::1", user=each) for place, each in enumerate([name] * 10)] + [
            guess(portal, f"{network}:0:1::1", user=each) for each in spellings for _ in range(6)
        ]

    assert probe(account, "2001:db8:1") == probe(made_up, "2001:db8:2")


def test_accounts_that_differ_in_case_have_separate_counts(site: Site) -> None:
    portal = limited(site)
    assert guess(portal, OWNER, user="Bob", password=PASSWORD) == 200
    guesses = [guess(portal, f"2001:db8:{i:x}::1", user="bob") for i in range(HOURLY + 1)]
    assert guesses == [401] * HOURLY + [429]
    assert guess(portal, "198.51.100.1", user="Bob", password=PASSWORD) == 200, "the guesses were for another account"
    assert guess(portal, OWNER, user="bob") == 429, "the address is known for another account"


# Codes


CODE_FORMS = (
    "/code",
    "/code?recovery=1",
    "/recovery",
    "/remove?token=fob",
    "/resync?token=fob",
    "/add-token",
    "/add-phone/scan",
)


@pytest.mark.parametrize("path", CODE_FORMS)
def test_only_a_right_password_counts_towards_the_limit_of_codes(site: Site, path: str) -> None:
    portal = limited(site, per_address=60)
    enroll_fob(portal)
    for place in (1, 2, 17, 33, 200):  # each attacker sends as many forms as the limit of pages admits
        attacker = portal.browser(f"192.0.2.{place}")
        form = {"csrf_token": attacker.open("/sign-in").csrf, "proof": "1", "code": "1", "codes": "1", "serial": "1"}
        assert {attacker.post(path, form, follow=False).status for _ in range(100)} == {303}
    owner = portal.browser(OWNER)
    owner.sign_in()
    assert owner.send(proof=codes(0)).heading == "Your tokens"
    owner.open("/recovery")
    assert owner.send(proof=codes(1)).heading == "Your recovery codes"


def test_codes_of_one_user_do_not_count_for_another_user(site: Site) -> None:
    portal = limited(site)
    for user in ("alice", "mallory"):
        enroll_fob(portal, user)
    mallory = portal.browser(OWNER)
    mallory.sign_in("mallory")
    assert [mallory.send(proof="blank").status for _ in range(61)] == [422] * 60 + [429]
    owner = portal.browser(OWNER)
    owner.sign_in()
    assert owner.send(proof=codes(0)).heading == "Your tokens"


def test_an_attacker_with_the_password_cannot_block_a_known_address(site: Site) -> None:
    """The attacker sends codes from the owner's large network."""
    portal = limited(site, per_address=2)
    enroll_fob(portal)
    owner = portal.browser(OWNER)
    owner.sign_in()
    assert owner.send(proof=codes(0)).heading == "Your tokens"
    portal.clock.advance(MINUTE)
    statuses = []
    for place in (130, 150, 170, 190, 210):
        thief = portal.browser(f"192.0.2.{place}")
        thief.sign_in()
        statuses += [thief.post("/code", {"csrf_token": thief.page.csrf, "proof": "1"}).status for _ in range(2)]  # type: ignore[union-attr]
    assert statuses == [422] * 8 + [429] * 2, "a /24 has four times the limit of an address"


# Pages


def test_pages_are_limited_for_each_network_and_files_are_not(site: Site) -> None:
    portal = limited(site, per_address=2)
    browser = portal.browser("2001:db8::1")
    assert [browser.open("/sign-in").status for _ in range(21)] == [200] * 20 + [429]
    assert "Too many attempts." in browser.open("/sign-in").text
    assert browser.open("/static/portal.css").status == 200
    assert portal.browser("2001:db8:0:1::1").open("/sign-in").status == 200
    assert [portal.browser(f"2001:db8:0:{i:x}::1").open("/sign-in").status for i in range(1, 21)][-1] == 429


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_pages_embedded_in_another_site_do_not_count(site: Site, headers: dict[str, str]) -> None:
    portal = limited(site, per_address=2)
    browser = portal.browser(OWNER)
    assert {browser.open(f"/sign-in?{i}", headers=headers).status for i in range(30)} == {403}
    assert "This page cannot be part of another site." in browser.open("/sign-in", headers=headers).text
    assert browser.open("/sign-in").status == 200


def test_a_link_of_another_site_opens_the_portal(portal: Portal) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert portal.browser().open("/sign-in", headers=link).status == 200


def test_forms_of_another_site_are_limited_but_do_not_count_as_attempts(site: Site) -> None:
    portal = limited(site, per_address=2)
    browser = portal.browser(OWNER)
    form = {"csrf_token": browser.open("/sign-in").csrf, "user": "alice", "password": PASSWORD}
    assert [browser.post("/sign-in", form | {"csrf_token": "x"}).status for _ in range(18)] == [400] * 18
    assert browser.post("/sign-in", form, follow=False).status == 303
    assert browser.post("/sign-in", form | {"csrf_token": "x"}).status == 429


def test_the_memory_of_all_limits_is_bounded(site: Site) -> None:
    """Each table has a maximum size (test_limits.py). The unit of the portal sets MemoryMax=512M."""
    portal = limited(site, is_account=lambda name: name == "alice")
    enroll_fob(portal)
    for user in ("alice", "x" * 255, "\u0390" * 255):
        portal.browser(OWNER).sign_in(user)
    browser = portal.browser(OWNER)
    browser.sign_in()
    browser.send(proof=codes(0))
    for path in ("/add-token", "/recovery", "/resync?token=fob"):
        browser.open(path)
        browser.send(proof="1", codes="1", serial="1")
    tables = portal.app.extensions["pam_totp"].limits._tables
    assert sorted(tables) == sorted(TABLES)
    assert len(TABLES) * (MAX_KEYS * BYTES_OF_KEY + MAX_TIMES * BYTES_OF_TIME) < 256e6


# Forms that no person sends


@pytest.mark.parametrize("invalid", [{"password": "x" * 513}, {"user": "x" * 256}, {"user": ""}])
def test_an_invalid_form_counts_as_a_page_only(site: Site, invalid: dict[str, str]) -> None:
    portal = limited(site, per_address=10)  # and 100 pages
    browser = portal.browser(OWNER)
    form = {"csrf_token": browser.open("/sign-in").csrf, "user": "alice", "password": "wrong"} | invalid
    assert [browser.post("/sign-in", form).status for _ in range(70)] == [422] * 70
    assert portal.passwords.users == []
    assert guess(portal, OWNER, password=PASSWORD) == 200
    assert [browser.post("/sign-in", form).status for _ in range(100)][-1] == 429


def test_made_up_names_displace_no_count_of_an_account(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pam_totp.web.limits.MAX_KEYS", 20)
    portal = limited(site, is_account=lambda name: name == "alice")
    assert guess(portal, "192.0.2.1") == 401
    for i in range(40):
        assert guess(portal, f"2001:db8:{i:x}::1", user=f"made-up {i}") == 401
        assert guess(portal, f"2001:db8:{i:x}::1", user=f"made-up {i}") == 401
    assert [guess(portal, "192.0.2.1") for _ in range(10)] == [401] * 9 + [429]


def test_made_up_names_have_the_limits_of_an_account(site: Site) -> None:
    portal = limited(site, is_account=lambda name: name == "alice")
    for user in ("alice", "made-up"):
        statuses = [guess(portal, f"2001:db8:{i:x}::{user == 'alice':d}", user=user) for i in range(HOURLY + 2)]
        assert statuses == [401] * HOURLY + [429] * 2


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", '{"user": "alice", "password": "correct horse"}'),
        ("application/json", "[1]"),
        ("application/vnd.api+json", "[" * 9000),
        ("multipart/form-data; boundary=x", "--x--"),
        ("text/plain", "user=alice"),
        (None, "user=alice"),
    ],
)
def test_only_the_unchanged_forms_of_the_portal_are_accepted(site: Site, content_type: str | None, body: str) -> None:
    portal = limited(site)
    browser = portal.browser(OWNER)
    headers = {"X-CSRFToken": browser.open("/sign-in").csrf}
    page = browser.client.post("/sign-in", data=body, content_type=content_type, headers=headers, base_url=ORIGIN)
    assert page.status_code == 415
    assert "The request failed." in page.get_data(as_text=True)
    assert portal.passwords.users == []


def test_requests_without_a_valid_address_share_one_budget(site: Site) -> None:
    portal = limited(site)
    assert [guess(portal, f"no-address-{i}") for i in range(11)] == [401] * 10 + [429]


# The delay of a refusal


@pytest.mark.usefixtures("pam")
def test_no_thread_waits_for_the_delay_of_a_refusal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pam_totp.system.passwords.is_account", lambda _: True)
    portal = limited(site, passwords=SystemPasswords("fake", lambda *_: None, refusal_delay=10_000.0))
    with served(portal.app) as port:
        guessers = [HttpBrowser(port, f"2001:db8:{i:x}::1") for i in range(2 * THREADS)]
        for number, browser in enumerate(guessers):
            browser.post("/sign-in", user=f"user{number}", password="wrong")
        until(lambda: sum("reason=password" in line for line in portal.log) == len(guessers), "all are refused")
        assert HttpBrowser(port, OWNER).sign_in("alice", "right") == 303
        for browser in guessers:
            browser.close()


@pytest.mark.usefixtures("pam")
def test_a_delayed_refusal_arrives_whole_and_the_connection_stays(site: Site) -> None:
    portal = limited(site, passwords=SystemPasswords("fake", lambda *_: None, refusal_delay=0.3))
    with served(portal.app) as port:
        browser = HttpBrowser(port, OWNER)
        form = browser.form("/sign-in")
        started = time.monotonic()
        status, page = browser.ask("POST", "/sign-in", form | {"user": "no-such-user", "password": "wrong"})
        assert time.monotonic() - started >= 0.3
        assert (status, page.count("User name and password do not match."), page[-7:]) == (401, 1, "</html>")
        assert browser.ask("GET", "/sign-in")[0] == 200


@pytest.mark.usefixtures("pam")
def test_a_browser_that_disconnects_in_the_delay_affects_no_other(site: Site) -> None:
    portal = limited(site, passwords=SystemPasswords("fake", lambda *_: None, refusal_delay=0.2))
    with served(portal.app) as port:
        for number in range(5):
            browser = HttpBrowser(port, OWNER)
            browser.post("/sign-in", user=f"user{number}", password="wrong")
            browser.close()
        until(lambda: sum("reason=password" in line for line in portal.log) == 5, "all are refused")
        assert HttpBrowser(port, OWNER).sign_in("no-such-user", "wrong") == 401
