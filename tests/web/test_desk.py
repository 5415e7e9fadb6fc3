"""Tests of the desk in the portal: its rules, attacks on it, and its pages in a real browser."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pam_totp.core.record import HotpToken
from pam_totp.operations import stock
from pam_totp.operations.desk import DeskSettings, recent_changes
from pam_totp.store.file import FileStore
from pam_totp.store.stock import StockEntry, stock_of
from pam_totp.web.pages_desk import KINDS
from tests.support.desk import Host
from tests.support.site import KEY, Site, codes, fob, phone
from tests.web import pseudo
from tests.web.chromium import running
from tests.web.kit import PASSWORD, REFUSAL, Browser, Page, Portal, enroll_fob
from tests.web.people import Person
from tests.web.served import PlainPortal, missing_programs, plain_portal
from tests.web.test_languages import TRANSLATED, assert_fits, enter, long_texts, untranslated  # noqa: F401  a fixture

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium

SETTINGS = DeskSettings(group="helpdesk")
PAGES = ("/desk", "/desk/person?user=alice", "/desk/code", *(f"/desk/{what}?user=alice" for what in KINDS))
OWN = b"dora's key, 20 bytes"
DAY = 86_400  # seconds


def own(first: int, count: int = 1) -> str:
    """Return `count` codes in a row of dora's key fob, from counter `first`."""
    return codes(first, count, OWN)


def add_stock(store: FileStore, *serials: str) -> None:
    entries = [
        StockEntry(
            serial=serial,
            imported=0,
            token=HotpToken(name="token", serial=serial, secret=serial.encode() * 5, created=0, confirmed=False),
        )
        for serial in serials
    ]
    assert stock_of(store).add(entries) == [None] * len(entries)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def desk(site: Site, host: Host) -> Portal:
    """Return a portal with a desk. The desk member dora and the user alice have key fobs, and S-1 is in stock."""
    portal = Portal(site, desk=SETTINGS, accounts=host)
    enroll_fob(portal, "dora", name="own", secret=OWN)
    enroll_fob(portal, "alice", serial="S-OLD")
    add_stock(FileStore(str(site.store)), "S-1")
    return portal


def dora(portal: Portal, code: str | None = None) -> Browser:
    return portal.signed_in("dora", own(0) if code is None else code)


FIELDS = {
    "unlock": {},
    "temporary-code": {"valid": "4"},
    "ticket": {"valid": "7"},
    "disable": {},
    "enable": {},
    "assign": {"serial": "S-1"},
    "replace": {"serial": "S-1", "lost": "no"},
}


def address(what: str, user: str = "alice") -> str:
    return f"/desk/{what}?user={user}" + ("&old=S-OLD" if what == "replace" else "")


def make(browser: Browser, what: str, proof: str, user: str = "alice", **fields: str) -> Page:
    """Open the page of the change `what`, and send the form with `fields`."""
    browser.open(address(what, user))
    return browser.send(proof=proof, **FIELDS[what] | fields)


# Access to the desk


def test_the_desk_does_not_exist_for_others(desk: Portal, host: Host) -> None:
    alice = desk.signed_in("alice", codes(0))
    assert "Help desk" not in alice.open("/").text
    for path in PAGES:
        assert alice.open(path).status == 404, path
    for what in KINDS:
        page = alice.post(address(what, "dora"), {"csrf_token": alice.open("/").csrf, "proof": codes(1)})
        assert page.status == 404, what
    assert desk.browser().open("/desk").heading == "Sign in"
    assert desk.site.record("dora").changes == ""


def test_a_password_alone_opens_no_desk(site: Site, host: Host) -> None:
    portal = Portal(site, desk=SETTINGS, accounts=host)
    browser = portal.signed_in("dora")
    assert "Help desk" not in browser.open("/").text
    assert [browser.open(path).status for path in PAGES] == [404] * len(PAGES)
    half = Portal(site, desk=SETTINGS, accounts=host)
    enroll_fob(half, "dora", name="own", secret=OWN)
    browser = half.browser()
    browser.sign_in("dora")
    assert browser.open("/desk").heading == "Your code"


@pytest.mark.parametrize("config", [{}, {"store": None, "socket": "/nonexistent"}])
def test_without_a_group_or_a_store_there_is_no_desk(site: Site, host: Host, config: dict[str, Any]) -> None:
    settings = {} if not config else {"desk": SETTINGS}
    portal = Portal(site, accounts=host, **settings, **config)
    if config:
        browser = portal.browser()
        browser.sign_in("dora")
        assert browser.open("/desk").status != 200 or (browser.page and browser.page.heading != "Help desk")
        return
    enroll_fob(portal, "dora", name="own", secret=OWN)
    assert dora(portal).open("/desk").status == 404


def test_a_member_who_left_the_group_sees_and_changes_nothing(desk: Portal, host: Host) -> None:
    browser = dora(desk)
    assert "Help desk" in browser.open("/").text
    browser.open(address("ticket"))
    host.groups["helpdesk"] = (500, {"dieter"})
    assert browser.send(proof=own(1), valid="7").status == 404
    assert [browser.open(path).status for path in PAGES] == [404] * len(PAGES)
    assert "Help desk" not in browser.open("/").text
    record = desk.site.record("alice")
    assert (record.ticket, record.changes) == (None, "")


def test_a_group_that_changes_during_the_request_stops_the_change(desk: Portal, host: Host) -> None:
    browser = dora(desk)
    browser.open(address("unlock"))
    looks = []

    def leave() -> None:
        looks.append(1)
        if len(looks) > 8:  # after the look-ups for the page and for the form
            host.groups["helpdesk"] = (500, {"dieter"})

    host.before = leave
    assert browser.send(proof=own(1)).status in (403, 404)
    assert desk.site.record("alice").changes == ""


# Changes


@pytest.mark.parametrize("what", KINDS)
def test_a_change_needs_a_new_code_of_the_member(desk: Portal, what: str) -> None:
    browser = dora(desk)
    before = desk.site.record("alice")
    for proof in ("000000", own(0), codes(0), ""):
        page = make(browser, what, proof)
        assert page.status == 422, (proof, page.text)
    assert desk.site.record("alice") == before
    assert desk.site.record("dora").failures == 2, "only the unknown code and the user's code are counted"
    page = make(browser, what, own(1))
    assert page.status == 200, page.text
    after = desk.site.record("alice")
    assert [c.by for c in recent_changes(after)] == ["dora"]
    lines = [line for line in desk.log if " changed " in line]
    assert lines
    assert all(" user=alice " in line and " by=dora " in line and line.endswith(" rhost=127.0.0.1") for line in lines)


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("user", ["root", "toor", "dora", "dieter", "dieter-2", "prima", "admin"])
def test_only_an_administrator_changes_factors_of_root_and_of_the_desk(desk: Portal, what: str, user: str) -> None:
    browser = dora(desk)
    if user != "dora":
        enroll_fob(desk, user, secret=b"another key 20 bytes")
    before = desk.site.record(user)
    page = browser.open(address(what, user))
    assert (page.status, "Only an administrator" in page.text) == (403, True)
    assert f" user={user} " in desk.log[-1]
    assert "reason=root-only" in desk.log[-1]
    csrf = browser.open("/desk/person?user=alice").csrf
    page = browser.post(address(what, user), {"csrf_token": csrf, "proof": own(1), **FIELDS[what]})
    assert page.status == 403
    assert desk.site.record(user) == before
    page = browser.open(f"/desk/person?user={user}")
    assert "Only an administrator" in page.text
    assert "/desk/ticket" not in page.html
    assert browser.open(address("unlock")).status == 200, "the code of the refused form was not used up"


def test_a_foreign_serial_number_replaces_no_token_of_another_user(desk: Portal) -> None:
    """The page is for alice, but the serial number belongs to root's token."""
    enroll_fob(desk, "root", secret=b"another key 20 bytes", serial="R-1")
    browser = dora(desk)
    browser.open("/desk/replace?user=alice&old=R-1")
    page = browser.send(proof=own(1), serial="S-1", lost="no")
    assert page.status == 403
    assert [t.serial for t in desk.site.record("root").tokens] == ["R-1"]


def test_a_temporary_code_is_shown_once_and_opens_one_login(desk: Portal) -> None:
    browser = dora(desk)
    page = make(browser, "temporary-code", own(1))
    assert page.heading == "Temporary code for alice"
    (code,) = _codes(page)
    assert _codes(browser.open("/desk/code")) == [code], "after a reload"
    page = browser.send()
    assert page.heading == "alice"
    assert "dora created a temporary code." in page.text
    assert code not in page.text
    assert "shown only once" in browser.open("/desk/code").notice
    alice = desk.browser()
    alice.sign_in()
    page = alice.send(proof=code)
    assert page.heading == "Your tokens"
    assert "Changes by the help desk" in page.text
    assert "dora created a temporary code." in page.text
    thief = desk.browser()
    thief.sign_in()
    assert thief.send(proof=code).status == 401, "a second time"
    assert code not in "".join(desk.log)
    assert code.replace("-", "") not in "".join(desk.log)


def test_a_temporary_code_is_refused_after_its_end(desk: Portal) -> None:
    (code,) = _codes(make(dora(desk), "temporary-code", own(1), valid="1"))
    desk.wall.advance(3600)
    alice = desk.browser()
    alice.sign_in()
    assert alice.send(proof=code).status == 401


@pytest.mark.parametrize("valid", ["25", "0", "-1", "x", "", "4 "])
def test_the_page_offers_only_its_own_times(desk: Portal, valid: str) -> None:
    browser = dora(desk)
    assert make(browser, "temporary-code", own(1), valid=valid).status == 422
    assert make(browser, "ticket", own(1), valid=valid).status == 422
    assert desk.site.record("alice").changes == ""


def _codes(page: Page) -> list[str]:
    import re

    return re.findall(r"<code>([0-9A-Z-]{19})</code>", page.html)


def test_a_form_that_is_sent_twice_shows_the_same_code(desk: Portal) -> None:
    browser = dora(desk)
    csrf = browser.open(address("ticket")).csrf
    first, second = (
        browser.post(address("ticket"), {"csrf_token": csrf, "proof": own(1), "valid": "7"}) for _ in range(2)
    )
    assert _codes(first) == _codes(second) != []
    assert len(recent_changes(desk.site.record("alice"))) == 1


@pytest.mark.parametrize("what", [what for what in KINDS if what != "temporary-code"])
def test_a_refused_change_is_refused_while_another_code_waits(desk: Portal, what: str) -> None:
    """The page of the earlier code would hide the refusal: a phone would seem to be disabled."""
    browser = dora(desk)
    make(browser, "temporary-code", own(1))
    page = make(browser, what, own(1))
    assert (page.status, page.error) == (422, REFUSAL)
    assert len(recent_changes(desk.site.record("alice"))) == 1


def test_of_two_changes_with_one_code_at_the_same_time_one_is_made(desk: Portal) -> None:
    browser = dora(desk)
    csrf, cookie = browser.open(address("assign")).csrf, browser.cookie
    add_stock(FileStore(str(desk.site.store)), *(f"T-{number}" for number in range(8)))
    start, statuses = threading.Barrier(8), []

    def send(number: int) -> None:
        racer = desk.browser()
        racer.use_cookie(cookie)
        start.wait()
        fields = {"csrf_token": csrf, "proof": own(1), "serial": f"T-{number}"}
        statuses.append(racer.post(address("assign"), fields, follow=False).status)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [303] + [422] * 7
    assert len(desk.site.record("alice").tokens) == 2


def test_one_serial_number_goes_to_one_user_when_two_members_race(desk: Portal, host: Host) -> None:
    enroll_fob(desk, "dieter", name="own", secret=b"dieter's key 20 byte")
    browsers = [dora(desk), desk.signed_in("dieter", codes(0, 1, b"dieter's key 20 byte"))]
    proofs = [own(1), codes(1, 1, b"dieter's key 20 byte")]
    forms = [
        (b, b.open(address("assign", user)).csrf, user) for b, user in zip(browsers, ("alice", "bob"), strict=True)
    ]
    start, statuses = threading.Barrier(2), []

    def send(number: int) -> None:
        browser, csrf, user = forms[number]
        start.wait()
        fields = {"csrf_token": csrf, "proof": proofs[number], "serial": "S-1"}
        statuses.append(browser.post(address("assign", user), fields, follow=False).status)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) in ([303, 403], [303, 422])
    item = stock.find(FileStore(str(desk.site.store)), "S-1")
    assert item is not None
    assert item.user in ("alice", "bob")


def test_a_serial_number_that_is_not_in_stock_uses_up_no_code(desk: Portal) -> None:
    browser = dora(desk)
    for serial, said in (("S-9", "No key fob"), ("S-OLD", "Another user"), ("\x01", "printable"), ("", "Enter")):
        page = make(browser, "assign", own(1), serial=serial)
        assert (page.status, said in page.error) == (422, True), page.text
    assert make(browser, "assign", own(1)).status == 200
    assert [t.serial for t in desk.site.record("alice").tokens] == ["S-OLD", "S-1"]


def test_disabling_everything_ends_the_sessions_of_the_user(desk: Portal) -> None:
    alice = desk.signed_in("alice", codes(0))
    page = make(dora(desk), "disable", own(1))
    assert page.notice == "1 token was disabled."
    assert alice.open("/").heading != "Your tokens"
    alice.sign_in()
    assert alice.send(proof=codes(1)).status == 401


def test_one_token_is_disabled_and_enabled_by_its_name(desk: Portal) -> None:
    desk.site.enrol(fob(), phone(name="<b>&\"'"), user="alice")
    browser = dora(desk)
    page = browser.open("/desk/person?user=alice")
    assert "<b>&" not in page.html
    browser.open("/desk/disable?user=alice&token=fob")
    assert browser.send(proof=own(1)).status == 200
    assert [t.enabled for t in desk.site.record("alice").tokens] == [False, True]
    browser.open("/desk/enable?user=alice&token=fob")
    assert browser.send(proof=own(2)).status == 200
    assert [t.enabled for t in desk.site.record("alice").tokens] == [True, True]
    browser.open("/desk/disable?user=alice&token=gone")
    assert browser.send(proof=own(3)).status == 403


def test_an_assigned_fob_gets_a_ticket(desk: Portal) -> None:
    browser = dora(desk)
    make(browser, "assign", own(1), "bob")
    name = desk.site.record("bob").tokens[0].name
    browser.open(f"/desk/ticket?user=bob&token={name}")
    page = browser.send(proof=own(2), valid="7")
    assert page.heading == "Ticket for bob"
    assert "The user enters it where a login asks for a code" in page.text
    ticket = desk.site.record("bob").ticket
    assert ticket is not None
    assert (ticket.token, ticket.picture) == (name, None)


def test_the_page_says_that_a_login_takes_no_ticket_of_an_enrolled_user(desk: Portal) -> None:
    browser = dora(desk)
    browser.open(address("ticket"))
    page = browser.send(proof=own(1), valid="7")
    assert "A login does not take it, because the user has a token." in page.text


# Searches


@pytest.mark.parametrize(
    ("text", "heading"),
    [("alice", "alice"), ("s-old", "alice"), ("ali", "alice"), (" alice ", "alice"), ("bob", "bob")],
)
def test_one_result_is_shown_at_once(desk: Portal, text: str, heading: str) -> None:
    assert dora(desk).open(f"/desk?find={text}").heading == heading


def test_several_results_are_listed_and_a_token_in_stock_is_named(desk: Portal) -> None:
    browser = dora(desk)
    enroll_fob(desk, "alicia", secret=b"another key 20 bytes")
    page = browser.open("/desk?find=ALI")
    assert page.html.count("/desk/person?user=ali") == 2
    assert "The key fob S-1 is in stock." in browser.open("/desk?find=S-1").text
    assert "No user and no key fob was found." in browser.open("/desk?find=zzz").text


@pytest.mark.parametrize(
    "name",
    ["<script>x</script>", "a&b", '"', "../root", "a%00b", "a%0Ab", "%F0%9F%98%80", "x" * 2000, "%FF", "{{7*7}}"],
)
def test_a_name_with_odd_characters_harms_nothing(desk: Portal, name: str) -> None:
    browser = dora(desk)
    for path in (f"/desk?find={name}", f"/desk/person?user={name}", address("ticket", name)):
        page = browser.open(path)
        assert page.status in (200, 404, 403), path
        assert "<script>x" not in page.html
        assert "49" not in page.text or "{{7*7}}" not in name
    csrf = browser.open("/desk/person?user=alice").csrf
    page = browser.post(address("ticket", name), {"csrf_token": csrf, "proof": own(1), "valid": "7"})
    assert page.status == 404, page.text
    assert {name for name in desk.site.files() if name.endswith(".record")} == {"alice.record", "dora.record"}


def test_the_desk_sees_no_key(desk: Portal) -> None:
    browser = dora(desk)
    shown = "".join(browser.open(path).html for path in ("/desk/person?user=alice", "/desk?find=S"))
    assert KEY.hex() not in shown
    assert "GEZDGNBV" not in shown


# Sessions and forms


def test_a_get_request_changes_nothing(desk: Portal) -> None:
    browser = dora(desk)
    before = desk.site.record("alice"), desk.site.record("dora")
    for path in PAGES:
        browser.open(f"{path}{'&' if '?' in path else '?'}proof={own(1)}&valid=4&serial=S-1")
    assert (desk.site.record("alice"), desk.site.record("dora")) == before


@pytest.mark.parametrize("what", KINDS)
def test_a_form_without_the_token_of_its_session_changes_nothing(desk: Portal, what: str) -> None:
    browser, other = dora(desk), desk.signed_in("alice", codes(0))
    before = desk.site.record("alice")
    for csrf in ("", "x", other.open("/").csrf):
        page = browser.post(address(what), {"csrf_token": csrf, "proof": own(1), **FIELDS[what]})
        assert page.status == 400
    page = browser.post(
        address(what),
        {"csrf_token": browser.open("/desk/person?user=alice").csrf, "proof": own(1), **FIELDS[what]},
        headers={"Sec-Fetch-Site": "cross-site"},
    )
    assert page.status == 403
    assert desk.site.record("alice") == before


def test_a_session_planted_before_the_sign_in_of_a_member_opens_no_desk(desk: Portal) -> None:
    """The attacker plants two sessions: before the password, and after the password of another account."""
    attacker = desk.browser()
    attacker.open("/sign-in")
    victim = desk.browser()
    victim.use_cookie(attacker.cookie)
    victim.sign_in("dora")
    after_password = victim.cookie
    victim.send(proof=own(0))
    assert victim.open("/desk").heading == "Help desk"
    for planted in (attacker.cookie, after_password):
        thief = desk.browser()
        thief.use_cookie(planted)
        assert thief.open("/desk").heading in ("Sign in", "Your session has ended")
    mallory = desk.signed_in("alice", codes(0))
    victim = desk.browser()
    victim.use_cookie(mallory.cookie)
    assert victim.open("/desk").status == 404, "the session still belongs to alice"


def test_a_code_to_hand_over_belongs_to_its_session(desk: Portal) -> None:
    first = dora(desk)
    make(first, "ticket", own(1))
    second = dora(desk, own(2))
    assert _codes(second.open("/desk/code")) == []
    assert len(_codes(first.open("/desk/code"))) == 1
    first.open("/")
    first.post("/sign-out", {"csrf_token": first.open("/").csrf})
    assert first.open("/desk/code").heading == "Sign in"


def test_pages_of_the_desk_have_the_strict_headers(desk: Portal) -> None:
    browser = dora(desk)
    usual = browser.open("/").response.headers
    for path in PAGES:
        page = browser.open(path)
        for name in ("Content-Security-Policy", "Cache-Control", "Referrer-Policy", "X-Frame-Options"):
            assert page.response.headers.get(name) == usual.get(name), (path, name)
        assert "style=" not in page.html
        assert "onclick" not in page.html


def test_changes_of_the_desk_are_limited(site: Site, host: Host) -> None:
    portal = Portal(site, desk=SETTINGS, accounts=host, rate_limits=True)
    enroll_fob(portal, "dora", name="own", secret=OWN)
    enroll_fob(portal, "alice")
    browser = dora(portal)
    csrf = browser.open(address("unlock")).csrf
    statuses = [browser.post(address("unlock"), {"csrf_token": csrf, "proof": "1"}).status for _ in range(21)]
    assert statuses == [422] * 20 + [429]


# Languages, and a real browser


def desk_pages(browser: Browser) -> Iterator[Page]:
    """Yield the pages of the desk and their errors. The language is that of the browser's cookie."""
    yield browser.open("/desk")
    yield browser.open("/desk?find=a")
    yield browser.open("/desk?find=S-1")
    yield browser.open("/desk?find=zzz")
    for user in ("alice", "bob", "root", "gone", "nobody"):
        yield browser.open(f"/desk/person?user={user}")
    for what in KINDS:
        yield browser.open(address(what))
    yield browser.open("/desk/ticket?user=alice&token=gone")
    yield browser.send(proof="1", valid="7")
    yield browser.send(proof=own(1), valid="7")
    yield make(browser, "assign", own(2), serial="none")
    yield make(browser, "ticket", own(2))
    yield browser.send()
    yield browser.open("/desk/code")
    yield make(browser, "temporary-code", own(3))
    for counter, what in enumerate(("unlock", "disable", "enable", "assign"), 4):
        yield make(browser, what, own(counter))
    yield browser.open(address("ticket", "root"))
    yield make(browser, "replace", own(8), serial="S-2")
    yield browser.open("/desk/person?user=alice")


def test_every_text_of_the_desk_is_translated(site: Site, host: Host, long_texts: None) -> None:  # noqa: F811
    portal = Portal(site, desk=SETTINGS, accounts=host)
    now = int(portal.wall())
    enroll_fob(portal, "dora", name="own", secret=OWN)
    site.enrol(
        fob(serial="S-OLD", created=now - DAY),
        phone(confirmed=False, serial="P"),
        fob(name="off", enabled=False, secret=b"a" * 20),
        fob(name="row", row_needed=True, secret=b"b" * 20),
        user="alice",
        failures=9,
        failures_at=now,
    )
    site.enrol(fob(secret=b"c" * 20), user="gone")
    site.enrol(user="adam")
    add_stock(FileStore(str(site.store)), "S-1", "S-2")
    browser = portal.browser()
    browser.open(f"/sign-in?lang={pseudo.LANGUAGE}")
    browser.sign_in("dora")
    browser.send(proof=own(0))
    names = ("S-OLD", "dora", "off", "row", "fob", "phone", "token", "root", "gone", "adam", "zzz", "S-1", "S-2", "bob")
    for page in desk_pages(browser):
        left = untranslated(page, *names).split()
        assert [w for w in left if w not in ("P", "none")] == [], (page.response.request.path, left)


@pytest.fixture(scope="module")
def speaking() -> Iterator[PlainPortal]:
    reason = missing_programs()
    if reason is not None:
        pytest.skip(reason)
    with plain_portal(desk=SETTINGS, accounts=Host()) as served:
        yield served


@pytest.fixture(scope="module")
def chromium(speaking: PlainPortal) -> Iterator[Chromium]:
    with running(speaking.browser) as browser:
        yield browser


@pytest.fixture
def member(chromium: Chromium, speaking: PlainPortal, request: pytest.FixtureRequest) -> Iterator[Person]:
    """Yield the desk member dora with a browser. The user alice has a key fob, and a phone that is not confirmed."""
    speaking.delete_all_users()
    now = int(time.time())
    speaking.enrol("dora", HotpToken(name="own", secret=OWN, created=now))
    speaking.enrol(
        "alice", fob(serial="S-OLD", created=now - 90 * DAY, last_used=now - 7000), phone(confirmed=False, serial="P-1")
    )
    person = Person(chromium, speaking, **request.param)
    yield person
    assert [line for line in person.console_messages if "401" not in line and "422" not in line] == []
    person.close()


@pytest.mark.parametrize("member", [{}], indirect=True)
def test_the_pages_of_the_desk_fit_and_axe_finds_nothing(member: Person) -> None:
    walk_the_desk(member, "en")


@pytest.mark.parametrize("member", [{}], indirect=True)
@pytest.mark.parametrize("language", TRANSLATED)
def test_the_pages_of_the_desk_fit_in_each_language(language: str, member: Person) -> None:
    walk_the_desk(member, language)


@pytest.mark.parametrize("member", [{}], indirect=True)
def test_the_pages_of_the_desk_fit_with_long_texts(long_texts: None, member: Person) -> None:  # noqa: F811
    walk_the_desk(member, pseudo.LANGUAGE)


def walk_the_desk(person: Person, language: str) -> None:
    person.page.goto(f"/sign-in?lang={language}")
    enter(person, user="dora", password=PASSWORD)
    enter(person, proof=own(0))
    assert_fits(person, language)
    for path in ("/desk", "/desk?find=a", "/desk?find=zzz", "/desk/person?user=alice", "/desk/person?user=root"):
        person.page.goto(path)
        assert_fits(person, language)
    for what in KINDS:
        person.page.goto(address(what))
        assert_fits(person, language)
    person.page.goto(address("temporary-code"))
    enter(person, proof="000000")
    assert_fits(person, language)
    enter(person, proof=own(1))
    assert_fits(person, language)
    enter(person)
    assert_fits(person, language)


@pytest.mark.parametrize("member", [{"java_script_enabled": False}, {}], indirect=True)
def test_the_keyboard_alone_makes_a_temporary_code(member: Person) -> None:
    page = member.page
    page.goto("/sign-in")
    enter(member, user="dora", password=PASSWORD)
    enter(member, proof=own(0))
    page.goto("/desk")
    member.wait_for_focus("User name or serial number")
    page.keyboard.type("s-old")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert member.heading == "alice"
    page.get_by_role("link", name="Temporary code", exact=True).focus()
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.get_by_label("Valid for").focus()
    page.keyboard.press("Tab")
    page.keyboard.type(own(1))
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert member.heading == "Temporary code for alice"
    assert len(page.locator("code").inner_text()) == 19


# The command


@pytest.mark.parametrize("table", ["group = 1", "[desk.group]", 'members = "a"'])
def test_the_portal_does_not_start_with_an_invalid_table(site: Site, table: str) -> None:
    site.config.write_text(f"[desk]\n{table}\n")
    done = site.command("portal", "--config", str(site.config))
    assert done.returncode == 1
    assert "desk" in done.stderr
