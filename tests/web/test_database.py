"""Tests of the portal with the records in PostgreSQL: the same pages, and the same record after each change."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.store.postgres import PostgresStore
from tests.support.cluster import with_postgresql
from tests.support.site import KEY, PATIENCE, Site, codes
from tests.web.kit import Portal, code_of_app, key_on_page
from tests.web.test_tokens import open_scan_page

pytestmark = with_postgresql


@pytest.fixture
def store(database: str) -> PostgresStore:
    return PostgresStore(database, wait=PATIENCE)


@pytest.fixture
def portal(site: Site, store: PostgresStore) -> Portal:
    return Portal(site, store=store)


def put_fob(store: PostgresStore) -> None:
    fob = HotpToken(name="fob", secret=KEY, created=0, counter=0)
    store.update("alice", lambda record: (record.with_token(fob), None), create=True)


def test_a_user_enrols_a_phone_and_signs_in_with_it(portal: Portal, store: PostgresStore) -> None:
    browser = portal.signed_in()
    key = key_on_page(open_scan_page(browser))
    assert list(store.users()) == []
    assert browser.send(code=code_of_app(key, portal.wall)).notice == "phone is in use now."
    second = portal.browser()
    second.sign_in()
    assert second.send(proof=code_of_app(key, portal.wall)).heading == "Your code", "the code is used up"
    assert second.send(proof=code_of_app(key, portal.wall, 1)).heading == "Your tokens"
    assert [token.name for token in store.read("alice").tokens] == ["phone"]


def test_of_many_browsers_with_one_code_one_signs_in(portal: Portal, store: PostgresStore) -> None:
    put_fob(store)
    browsers = [portal.browser() for _ in range(8)]
    for browser in browsers:
        browser.sign_in()
    with ThreadPoolExecutor(8) as threads:
        headings = list(threads.map(lambda browser: browser.send(proof=codes(0)).heading, browsers))
    assert sorted(headings) == ["Your code"] * 7 + ["Your tokens"]
    (token,) = store.read("alice").tokens
    assert token.next_factor == 1


def test_wrong_codes_are_counted_in_the_database(portal: Portal, store: PostgresStore) -> None:
    put_fob(store)
    browser = portal.browser()
    browser.sign_in()
    for wrong in ("000000", "000001"):
        assert browser.send(proof=wrong).heading == "Your code"
    assert store.read("alice").failures == 2
