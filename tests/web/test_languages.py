"""Tests of the languages: complete catalogues, the choice of the language, and pages in long translations."""

from __future__ import annotations

import html
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from babel.messages.catalog import Catalog, Message

from pam_totp.core.oath import hotp
from pam_totp.core.record import HotpToken
from pam_totp.core.secretfile import unbase32
from pam_totp.system.portal_table import Appearance
from pam_totp.web import texts
from pam_totp.web.portal import App, FirstToken
from tests.support.site import KEY, TREE, Site, codes, phone
from tests.web import pseudo
from tests.web.accessible import NARROW_LIGHT, WIDE_DARK, assert_no_violations, in_looks
from tests.web.chromium import running
from tests.web.kit import PASSWORD, Browser, Page, Portal, code_of_app, enroll_fob, key_on_page
from tests.web.people import Person
from tests.web.served import PlainPortal, missing_programs, plain_portal
from tests.web.test_guided import recovery_codes, temporary_code, ticket
from tools import texts as tool

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium

TRANSLATED = sorted({"de", "fr", "es"} | (set(texts.languages()) - {texts.ENGLISH}))
PLACEHOLDERS = re.compile(r"%\(\w+\)[sd]|<[^>]*>|&\w+;|%(?!\()")
DAY = 86_400  # seconds


# Catalogues


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_catalogue_has_exactly_the_texts_of_the_code(language: str) -> None:
    """Assert that `make texts` would not change the catalogue."""
    assert texts.path_of(language).read_text("utf-8") == tool.as_text(tool.updated(language)), "run 'make texts'"


@pytest.mark.parametrize("language", TRANSLATED)
def test_every_text_is_translated_and_none_is_fuzzy(language: str) -> None:
    catalog = texts.read_catalog(language)
    assert len(catalog) > 150
    assert list(tool.missing(catalog)) == []


def _forms(message: Message) -> Iterator[tuple[str, str]]:
    """Yield each form of a text in English and in translation: first the singular, then the plural forms."""
    if isinstance(message.id, str):
        yield message.id, str(message.string)
    else:
        for number, translation in enumerate(message.string or ()):
            yield message.id[min(number, 1)], translation


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translation_has_the_values_and_the_full_stop_of_its_text(language: str) -> None:
    for message in texts.read_catalog(language):
        for english, translation in _forms(message) if message.id else ():
            values = sorted(PLACEHOLDERS.findall(english))
            assert sorted(PLACEHOLDERS.findall(translation)) == values, translation
            assert translation == translation.strip(), translation
            assert english[-1] not in ".?" or translation.endswith(english[-1]), translation


@pytest.mark.parametrize(
    ("language", "words"),
    [
        ("de", ("Einmalcode", "Sicherheitstoken", "Wiederherstellungscode")),
        ("fr", ("Code à usage unique", "jeton", "Code de récupération")),
        ("es", ("Código de un solo uso", "token", "Código de recuperación")),
    ],
)
def test_a_language_has_the_usual_words_and_the_formal_address(language: str, words: tuple[str, ...]) -> None:
    everything = " ".join(translation for m in texts.read_catalog(language) if m.id for _, translation in _forms(m))
    for word in words:
        assert word in everything
    informal = {"de": r"\b(du|dein\w*|dir|dich)\b", "fr": r"\b(tu|ton|ta|tes|toi)\b", "es": r"\b(tú|tu|tus|te|ti)\b"}
    assert re.findall(informal[language], everything, re.I) == []


def test_make_texts_keeps_translations_and_removes_unused_texts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(texts, "FOLDER", tmp_path)
    monkeypatch.setattr(texts, "languages", lambda: {"en": "English"})
    monkeypatch.setattr(tool, "marked", lambda: _catalog("Sign in", "Gone"))
    tool.main(["it"])
    assert capsys.readouterr().out == "Italian: 2 texts, 2 to translate\n"
    path = texts.path_of("it")
    path.write_text(path.read_text().replace('msgid "Sign in"\nmsgstr ""', 'msgid "Sign in"\nmsgstr "Accedi"'))
    monkeypatch.setattr(texts, "languages", lambda: {"en": "English", "it": "Italiano"})
    monkeypatch.setattr(tool, "marked", lambda: _catalog("Sign in", "Sign on"))
    tool.main([])
    assert capsys.readouterr().out == "Italian: 2 texts, 1 to translate\n", "a similar text is not a translation"
    assert {m.id: m.string for m in texts.read_catalog("it") if m.id} == {"Sign in": "Accedi", "Sign on": ""}


def test_make_texts_refuses_an_unknown_language(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="klingon: unknown language"):
        tool.main(["klingon"])


def _catalog(*ids: str) -> Catalog:
    made = Catalog()
    for text in ids:
        made.add(text)
    return made


# The choice of the language


def language_of(page: Page) -> str:
    (found,) = re.findall(r'<html lang="([^"]*)">', page.html)
    assert page.response.headers["Content-Language"] == found
    return str(found)


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de", "de"),
        ("de-AT, en;q=0.5", "de"),
        ("fr-CH, fr;q=0.9, en;q=0.8, de;q=0.7", "fr"),
        ("it, es;q=0.4, de;q=0.6", "de"),
        ("ES-mx", "es"),
        ("de;q=0, es;q=0.1", "es"),
        ("en-GB, de;q=0.9", "en"),
        ("it, *;q=0.5", "en"),
        ("zh-Hant-TW", "en"),
        ("../../etc, \x7f;q=x, " + "a" * 5000, "en"),
        (None, "en"),
    ],
)
def test_a_page_has_the_first_language_that_the_browser_accepts(
    portal: Portal, accepted: str | None, language: str
) -> None:
    headers = {} if accepted is None else {"Accept-Language": accepted}
    page = portal.browser().open("/sign-in", headers=headers)
    assert language_of(page) == language
    assert {"Accept-Language", "Cookie"} <= set(re.split(", ?", page.response.headers["Vary"]))
    assert page.heading == {"de": "Anmelden", "en": "Sign in", "es": "Iniciar sesión", "fr": "Se connecter"}[language]


def test_a_chosen_language_is_remembered_before_and_after_the_sign_in(portal: Portal) -> None:
    browser = portal.browser()
    (link,) = re.findall(r'<a href="([^"]*)" lang="fr" hreflang="fr">Français</a>', browser.open("/sign-in").html)
    page = browser.open(f"/sign-in{html.unescape(link)}", headers={"Accept-Language": "de"})
    assert (language_of(page), page.heading) == ("fr", "Se connecter")
    assert 'lang="fr" hreflang="fr" aria-current="true">Français</a>' in page.html
    page = browser.sign_in()
    assert (language_of(page), page.heading) == ("fr", "Vos jetons")
    browser.open("/add-phone")
    assert browser.send(name="").error == "Saisissez un nom."
    assert language_of(browser.open("/no-such-page")) == "fr"


@pytest.mark.parametrize(("tls", "name"), [(True, "__Host-pam_totp_language"), (False, "pam_totp_language")])
def test_the_language_cookie_is_limited_to_this_host_and_to_a_year(site: Site, tls: bool, name: str) -> None:
    page = Portal(site, tls=tls).browser().open("/sign-in?lang=es")
    (cookie,) = [c for c in page.response.headers.get_all("Set-Cookie") if "language" in c]
    assert cookie.startswith(f"{name}=es; ")
    attributes = {part.strip() for part in cookie.split(";")[1:]} - {cookie.split("; ")[1]}
    assert attributes == {"Max-Age=31536000", "HttpOnly", "Path=/", "SameSite=Lax"} | ({"Secure"} if tls else set())


@pytest.mark.parametrize("unknown", ["xx", "", "dee", "../de", "%00", "en%0d%0aSet-Cookie:x=y"])
def test_an_unknown_language_is_ignored(portal: Portal, unknown: str) -> None:
    browser = portal.browser()
    page = browser.open(f"/sign-in?lang={unknown}")
    assert language_of(page) == "en"
    assert not [c for c in page.response.headers.get_all("Set-Cookie") if "language" in c]
    browser.client.set_cookie("__Host-pam_totp_language", "xx", domain="portal.example", secure=True)
    assert language_of(browser.open("/sign-in", headers={"Accept-Language": "de"})) == "de"


def test_a_page_of_another_site_does_not_change_the_language(portal: Portal) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    page = portal.browser().open("/sign-in?lang=de", headers=headers)
    assert (page.status, page.response.headers.get_all("Set-Cookie")) == (403, [])
    headers |= {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert language_of(portal.browser().open("/sign-in?lang=de", headers=headers)) == "de", "a link can have a language"


def test_the_links_to_other_languages_keep_the_page(portal: Portal) -> None:
    portal.site.enrol(HotpToken(name='a&"b"', secret=KEY, created=0), phone(), user="alice")
    browser = portal.signed_in(code=codes(0))
    page = browser.open("/rename?token=a%26%22b%22&token=x")
    (link,) = re.findall(r'<a href="([^"]*)" lang="de"', page.html)
    page = browser.open(f"/rename{html.unescape(link)}")
    assert page.heading == 'a&"b" umbenennen'
    browser.client.delete_cookie("__Host-pam_totp", domain="portal.example")
    page = browser.post("/set-up/cancel", {"csrf_token": page.csrf})
    assert (page.status, language_of(page)) == (400, "de")
    assert 'href="/?lang=fr"' in page.html, "a page at a path that refuses GET links to the overview"


def test_the_languages_of_two_users_do_not_mix(portal: Portal) -> None:
    german, english = portal.browser(), portal.browser()
    for _ in range(2):
        assert german.open("/sign-in", headers={"Accept-Language": "de"}).heading == "Anmelden"
        assert english.open("/sign-in").heading == "Sign in"


# Texts


@pytest.fixture
def long_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Replace the portal's languages with the pseudo-language."""
    monkeypatch.setattr(texts, "FOLDER", tmp_path / "translations")
    texts.languages.cache_clear()
    path = texts.path_of(pseudo.LANGUAGE)
    path.parent.mkdir(parents=True)
    path.write_text(tool.as_text(pseudo.catalog()))
    yield
    texts.languages.cache_clear()
    texts._translations.cache_clear()


def untranslated(page: Page, *names: str) -> str:
    """Return the untranslated words of a page, except `names`, numbers, and the names of languages."""
    body = re.sub(r"<code>.*?</code>|<script.*?</script>|<svg.*?</svg>", " ", page.html, flags=re.DOTALL)
    attributes = re.findall(r'(?:aria-label|alt|title|placeholder|data-copied|data-now)="([^"]*)"', body)
    options = re.sub(r"<option[^>]*>(?:\d|SHA\d+)</option>", " ", body)
    text = html.unescape(" ".join((re.sub(r"<[^>]*>", " ", options), *attributes)))
    while "⟦" in text:  # a translation can contain another translation
        text, count = re.subn(r"⟦[^⟦⟧]*⟧", " ", text)
        assert count, text
    for name in (*names, "portal.example", "alice", "English", "Esperanto", "UTC"):
        text = text.replace(name, " ")
    return " ".join(re.findall(r"[^\W\d_]+", text))


def sign_in_pages(browser: Browser) -> Iterator[Page]:
    """Yield the pages before the sign-in of alice, in the pseudo-language, and their errors."""
    yield browser.open(f"/sign-in?lang={pseudo.LANGUAGE}")
    yield browser.send(user="", password="x" * 2000)
    yield browser.send(user="alice", password="wrong")
    yield browser.send(user="alice", password=PASSWORD)
    yield browser.send(proof="1")
    yield browser.send(proof="")
    yield browser.send(proof="000000")
    yield browser.open("/code?recovery=yes")
    yield browser.send(proof="1")
    yield browser.send(proof="AAAA-AAAA-AAAA-AAAA")
    browser.open("/code")
    yield browser.send(proof=codes(0))


def token_pages(portal: Portal, browser: Browser) -> Iterator[Page]:
    """Yield the pages for the tokens of alice, and their errors."""
    yield browser.open("/add-phone")
    yield browser.send(name="fob")
    yield browser.send(name="")
    yield browser.send(name="\x01")
    yield browser.send(name="fone")
    yield browser.send(code="1", proof="2")
    key = key_on_page(browser.page or browser.open("/add-phone/scan"))
    yield browser.send(code="000000", proof=codes(1))
    yield browser.send(code=code_of_app(key, portal.wall), proof=codes(1))
    yield browser.post("/add-phone/cancel", {"csrf_token": browser.open("/add-phone").csrf})
    yield browser.open("/add-token")
    for serial in ("none", "\x01"):
        yield browser.send(serial=serial, codes=codes(8, 2), proof=codes(1))
    yield browser.send(serial="own", codes=codes(8, 2), proof=codes(2), key="hex:1", kind="at every press")
    yield browser.send(serial="D1", codes=codes(2))
    yield browser.send(codes="")
    yield browser.send(codes=codes(2))
    for token in ("fob", "fone"):
        for path in ("resync", "rename", "remove"):
            yield browser.open(f"/{path}?token={token}")
    browser.open("/resync?token=fob")
    yield browser.send(codes=codes(30))
    yield browser.send(codes=codes(31))
    yield browser.open("/remove?token=gone")
    yield browser.open("/recovery")
    yield browser.send(proof=codes(32))
    yield browser.post("/recovery/kept", {"csrf_token": browser.open("/recovery/codes").csrf})
    yield browser.open("/recovery")
    yield browser.open("/recovery/codes")
    browser.open("/rename?token=b")
    yield browser.send(name="fone 2")
    browser.open("/remove?token=c")
    yield browser.send(proof=codes(33))


def error_pages(portal: Portal, browser: Browser) -> Iterator[Page]:
    """Yield the pages of errors, and the page after the sign-out."""
    yield browser.open("/no-such-page")
    yield browser.post("/", {"a": "b"})
    yield browser.post("/", {})
    yield browser.post("/sign-out", {"csrf_token": "wrong"})
    yield browser.post("/sign-out", {}, headers={"Sec-Fetch-Site": "cross-site"})
    yield browser.post("/sign-out", {"csrf_token": "x" * 20_000})
    yield browser.open("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"})
    portal.clock.advance(5000)
    yield browser.open("/")
    browser.sign_in()
    yield browser.send(proof=codes(34))
    yield browser.post("/sign-out", {"csrf_token": browser.open("/").csrf})


def test_every_text_of_every_page_is_translated(portal: Portal, long_texts: None, site: Site) -> None:
    portal = Portal(site)  # with the pseudo-language
    now = int(portal.wall())
    tokens = (
        HotpToken(name="fob", secret=KEY, created=now - 90 * DAY, last_used=now - 100),
        phone(name="b", drift=2, last_used=now - 7_300, created=now - 3 * DAY),
        phone(name="c", secret=b"c" * 20, enabled=False, drift=-1),
        HotpToken(name="d", secret=b"d" * 20, created=0, confirmed=False, serial="D1"),
        phone(name="e", secret=b"e" * 20, serial="E1", period=60, last_used=now - 90, drift=-2),
    )
    site.enrol(*tokens, user="alice")
    names = ("fob", "fone", "D1", "E1")
    seen = set()
    browser = portal.browser()
    for page in chain(sign_in_pages(browser), token_pages(portal, browser), error_pages(portal, browser)):
        seen.add(page.heading)
        left = [w for w in untranslated(page, *names).split() if w not in ("b", "c", "d", "e")]
        assert left == [], (page.response.request.path, page.status, left)
    assert len(seen) >= 20, seen


def test_pages_without_a_store_or_a_token_and_limits_are_translated(long_texts: None, site: Site) -> None:
    def start(**config: Any) -> Browser:
        browser = Portal(site, **config).browser()
        shown.append(browser.open(f"/sign-in?lang={pseudo.LANGUAGE}"))
        return browser

    shown: list[Page] = []
    limited = start(rate_limits=True, per_address=1)
    shown += [limited.sign_in(password="wrong"), limited.sign_in(password="wrong")]
    without_store = start(store=None, socket="/nonexistent")
    shown += [without_store.sign_in(), without_store.send(proof="123456")]
    without_token = start(first_token=FirstToken.OFF)
    shown += [without_token.sign_in(), without_token.open("/add-phone")]
    start(hosts=("other.example",))
    assert [p.status for p in shown] == [200, 401, 429, 200, 200, 503, 200, 200, 403, 400]
    for page in shown:
        assert untranslated(page) == "", (page.status, page.text)


def beginnings(portal: Portal, browser: Browser) -> Iterator[Page]:
    """Yield the pages of the guided enrolment of alice, from a ticket, and their errors."""
    yield browser.open(f"/sign-in?lang={pseudo.LANGUAGE}")
    yield browser.sign_in()
    for proof in ("", "1", "0000-0000-0000-0000"):
        yield browser.send(proof=proof)
    handed_out = HotpToken(name="F1", secret=KEY, created=0, serial="F1", confirmed=False)
    yield browser.send(proof=ticket(portal, handed_out))
    yield browser.send(code=codes(0))
    yield browser.send(code=codes(7))
    ticket(portal)
    yield browser.open("/set-up/scan")
    yield browser.send()
    yield browser.open("/set-up")
    yield browser.send(proof=ticket(portal))
    yield browser.open("/set-up/scan")
    for code in ("", "1", "000000"):
        yield browser.send(code=code)
    for steps in (2, -2, 14, -14):
        yield browser.send(code=code_of_app(b"n" * 20, portal.wall, steps))
    yield browser.send(code=code_of_app(b"n" * 20, portal.wall))
    yield browser.open("/")
    browser.open("/set-up/codes")
    yield browser.send()


def replacements(portal: Portal, browser: Browser) -> Iterator[Page]:
    """Yield the pages for a lost phone of alice, a user with two tokens."""
    portal.site.enrol(HotpToken(name="fob", secret=KEY, created=0), phone(name="phone"), user="alice")
    proofs = recovery_codes(portal)
    browser.open(f"/sign-in?lang={pseudo.LANGUAGE}")
    yield browser.sign_in()
    yield browser.open("/lost-phone")
    for proof in ("", "1", "0000-0000-0000-0000"):
        yield browser.send(proof=proof)
    yield browser.send(proof=proofs[0], lost="")
    yield browser.open("/set-up/scan")
    browser.post("/set-up/cancel", {"csrf_token": browser.page.csrf if browser.page else ""})
    yield browser.send(proof=temporary_code(portal))


def test_every_text_of_the_guided_way_is_translated(long_texts: None, site: Site) -> None:
    helped, apps = Appearance(telephone="12 34"), (App("Aegis", "https://a.example"),)
    portal = Portal(site, first_token=FirstToken.TICKET, appearance=helped, apps=apps)
    browser = portal.browser()
    pages = [*beginnings(portal, browser), *replacements(portal, portal.browser())]
    by_password = Portal(site).browser()
    by_password.open(f"/sign-in?lang={pseudo.LANGUAGE}")
    pages += [by_password.sign_in("bob"), by_password.open("/set-up"), by_password.send()]
    assert len({page.heading for page in pages}) == 11
    for page in pages:
        left = untranslated(page, "F1", "fob", "new phone", "phone", "Aegis", "bob")
        assert left == "", (page.response.request.path, page.text)
    file = at_codes(portal).open("/recovery/codes.txt").html
    assert [line[:1] for line in file.splitlines() if line and "-" not in line[:5]] == [*"⟦⟦⟦1"]


def at_codes(portal: Portal) -> Browser:
    """Return a browser of alice with new recovery codes, in the pseudo-language."""
    portal.site.enrol(user="alice")
    browser = portal.browser()
    browser.open(f"/sign-in?lang={pseudo.LANGUAGE}")
    browser.sign_in()
    browser.send(proof=codes(0))
    browser.open("/recovery")
    browser.send(proof=codes(1))
    return browser


def test_templates_have_no_text_outside_of_translations() -> None:
    """Check also the text that no page of the tests above shows."""
    templates = sorted((Path(texts.__file__).parent / "templates").glob("*.html"))
    assert len(templates) > 10
    for template in templates:
        code = re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<!doctype html>", " ", template.read_text(), flags=re.DOTALL)
        attributes = re.findall(r'(?:aria-label|alt|title|placeholder|data-copied|data-now)="([^"]*)"', code)
        words = re.findall(r"[^\W\d_]+", " ".join((re.sub(r"<[^>]*>", " ", code), *attributes)))
        assert words == [], template.name


def test_a_name_with_markup_is_escaped_in_every_language(portal: Portal) -> None:
    name = "<b>%(x)s&amp;</b>"
    portal.site.enrol(HotpToken(name=name, secret=KEY, created=0), phone(), user="alice")
    browser = portal.signed_in(code=codes(0))
    for language in texts.languages():
        page = browser.open(f"/rename?token=%3Cb%3E%25(x)s%26amp;%3C/b%3E&lang={language}")
        assert name in page.heading
        assert "<b>" not in page.html
        new = f"{name}{language}"
        browser.post("/rename?token=" + "%3Cb%3E%25(x)s%26amp;%3C/b%3E", {"csrf_token": page.csrf, "name": new})
        assert browser.page is not None
        assert (name in browser.page.notice, "<b>" in browser.page.html) == (True, False)
        portal.site.enrol(HotpToken(name=name, secret=KEY, created=0, counter=1), phone(), user="alice")


@pytest.mark.parametrize(
    ("language", "notice"),
    [
        ("de", "Seit der letzten Anmeldung wurde 1 Antwort abgelehnt."),
        ("es", "Se ha rechazado 1 respuesta desde el último inicio de sesión."),
        ("fr", "1 réponse a été refusée depuis la dernière connexion."),
    ],
)
def test_numbers_and_remarks_are_in_the_language(portal: Portal, language: str, notice: str) -> None:
    enroll_fob(portal)
    browser = portal.browser()
    other = portal.browser()
    other.sign_in()
    other.send(proof="000000")
    browser.open(f"/sign-in?lang={language}")
    browser.sign_in()
    assert browser.send(proof=codes(0)).notice == notice


# In a real browser


@pytest.fixture(scope="module")
def speaking() -> Iterator[PlainPortal]:
    reason = missing_programs()
    if reason is not None:
        pytest.skip(reason)
    with plain_portal() as served:
        yield served


@pytest.fixture(scope="module")
def chromium(speaking: PlainPortal) -> Iterator[Chromium]:
    with running(speaking.browser) as browser:
        yield browser


@pytest.fixture
def alice(chromium: Chromium, speaking: PlainPortal, request: pytest.FixtureRequest) -> Iterator[Person]:
    """Yield a user with a key fob, a phone, and a browser with the options of `request.param`."""
    speaking.delete_all_users()
    now = int(time.time())
    fob = HotpToken(name="fob", secret=KEY, created=now - 90 * DAY, serial="SM00000042")
    speaking.enrol("alice", fob, phone(name="phone", created=now - 4000, last_used=now - 7000, drift=1))
    person = Person(chromium, speaking, **request.param)
    yield person
    person.close()


def enter(person: Person, **fields: str) -> None:
    """Fill in the form of the page by the names of its fields, and send it."""
    for name, text in fields.items():
        person.page.locator(f"main [name={name}]").fill(text)
    with person.page.expect_navigation():
        person.page.locator("main form button").first.click()


OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter(e => e.checkVisibility()
    && !e.closest('.for-screen-readers, .skip') && e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1
    && getComputedStyle(e).display !== 'inline' && !['INPUT', 'SELECT'].includes(e.tagName))
    .map(e => e.outerHTML.slice(0, 120))"""


BROKEN_WORDS = r"""() => {
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let text; (text = texts.nextNode());) {
        if (!text.parentElement.checkVisibility() || text.parentElement.closest('code, .for-screen-readers')) continue;
        for (const word of text.data.matchAll(/\p{L}+/gu)) {
            const range = document.createRange();
            range.setStart(text, word.index);
            range.setEnd(text, word.index + word[0].length);
            if (new Set([...range.getClientRects()].map(r => Math.round(r.top))).size > 1) found.push(word[0]);
        }
    }
    return found;
}"""


def assert_fits(person: Person, language: str) -> None:
    """Check that all elements fit, that each word of a real language is unbroken, and that axe reports nothing.

    Translations are shorter than the texts of the pseudo-language, and a page has the same elements in each language.
    The narrow page without axe is therefore enough for translations.
    """
    page = person.page
    assert page.locator("html").get_attribute("lang") == language
    is_translation = language in TRANSLATED
    for look in in_looks(page, [NARROW_LIGHT] if is_translation else [NARROW_LIGHT, WIDE_DARK]):
        if language != pseudo.LANGUAGE:
            assert page.evaluate(BROKEN_WORDS) == [], (page.url, look)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (page.url, look)
        assert page.evaluate(OVERFLOWING) == [], (page.url, look)
        if not is_translation:
            assert_no_violations(page)


ADDRESSES = (
    *("/", "/add-phone", "/add-token", "/add-token/next", "/resync?token=fob", "/rename?token=fob"),
    *("/remove?token=phone", "/recovery", "/no-such-page"),
)


def walk(person: Person, language: str) -> None:
    """Open and check each page. The user has the key fob `fob`."""
    person.page.goto(f"/sign-in?lang={language}")
    assert_fits(person, language)
    enter(person, user="alice", password="wrong")
    assert_fits(person, language)
    enter(person, user="alice", password=person.served.password)
    enter(person, proof="000000")
    assert_fits(person, language)
    enter(person, proof=codes(0))
    for path in ADDRESSES:
        person.page.goto(path)
        for summary in person.page.locator("summary").all():
            summary.click()
        assert_fits(person, language)
    person.page.goto("/add-phone")
    enter(person)
    person.page.evaluate("document.querySelector('.ending').hidden = false")
    assert_fits(person, language)
    person.page.goto("/recovery")
    enter(person, proof=codes(1))
    assert_fits(person, language)
    walk_guided(person, language, person.page.locator(".codes code").first.inner_text())


def walk_guided(person: Person, language: str, proof: str) -> None:
    """Open and check each page of the guided enrolment. `proof` is a recovery code of the user."""
    person.context.clear_cookies()
    person.page.goto(f"/sign-in?lang={language}")
    enter(person, user="bob", password=person.served.password)
    for path in ("/set-up", "/set-up?ticket=yes"):
        person.page.goto(path)
        assert_fits(person, language)
    person.context.clear_cookies()
    person.page.goto(f"/sign-in?lang={language}")
    enter(person, user="alice", password=person.served.password)
    person.page.goto("/lost-phone")
    assert_fits(person, language)
    enter(person, proof="0000-0000-0000-0000")
    assert_fits(person, language)
    enter(person, proof=proof)
    assert_fits(person, language)
    person.page.goto("/set-up/scan")
    person.page.locator("summary").click()
    key = unbase32(person.page.locator(".key code").inner_text().replace(" ", ""))
    assert_fits(person, language)
    enter(person, code=hotp(key, int(time.time()) // 30 + 100))
    assert_fits(person, language)
    enter(person, code=hotp(key, int(time.time()) // 30))
    assert_fits(person, language)
    enter(person)
    assert_fits(person, language)


@pytest.mark.parametrize("alice", [{}], indirect=True)
def test_no_page_overflows_with_long_texts(long_texts: None, alice: Person) -> None:
    walk(alice, pseudo.LANGUAGE)


@pytest.mark.parametrize("alice", [{}], indirect=True)
@pytest.mark.parametrize("language", TRANSLATED)
def test_no_page_overflows_in_a_real_language(language: str, alice: Person) -> None:
    walk(alice, language)


BERLIN = {"locale": "de-DE", "timezone_id": "Europe/Berlin"}


@pytest.mark.parametrize("alice", [BERLIN, BERLIN | {"java_script_enabled": False}], indirect=True)
def test_times_are_local_with_scripts_and_utc_without(alice: Person, speaking: PlainPortal) -> None:
    (fob, _) = speaking.record("alice").tokens
    alice.page.goto("/sign-in")
    enter(alice, user="alice", password=alice.served.password)
    enter(alice, proof=codes(0))
    old, used, *_ = alice.page.locator("time").all()
    utc = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(fob.created))
    assert used.inner_text() == "vor weniger als einer Minute"
    if old.inner_text() == utc:
        assert (used.get_attribute("title") or "").endswith(" UTC")
        return
    offset = 2 if time.gmtime(fob.created).tm_mon in range(4, 10) else None
    hour = (time.gmtime(fob.created).tm_hour + (offset or 1)) % 24
    shown = old.inner_text()
    assert re.fullmatch(rf"\d\d\.\d\d\.\d{{4}}, (\d\d):{utc[14:16]}", shown), shown
    assert shown == old.get_attribute("title")
    assert offset is None or int(shown[12:14]) == hour


@pytest.mark.parametrize("alice", [{"locale": "de-DE"}], indirect=True)
def test_the_countdown_and_the_copy_button_speak_the_language(alice: Person, speaking: PlainPortal) -> None:
    now = int(time.time())
    speaking.delete_all_users()
    speaking.enrol("alice", phone(secret=KEY, created=now, period=60))
    alice.page.goto("/sign-in")
    enter(alice, user="alice", password=alice.served.password)
    alice.page.clock.install()
    enter(alice, proof=hotp(KEY, int(time.time()) // 60))
    alice.page.goto("/recovery")
    countdown = alice.page.locator("[data-countdown]")
    alice.page.clock.run_for(1000)
    assert re.fullmatch(r"in \d+ Sekunden?|jetzt", countdown.inner_text())
    alice.page.clock.run_for(60_000)
    assert countdown.inner_text() == "jetzt"
    alice.page.goto("/add-phone")
    alice.context.grant_permissions(["clipboard-read", "clipboard-write"])
    enter(alice)
    button = alice.page.locator("[data-copy]")
    assert button.inner_text() == "Kopieren"
    button.click()
    alice.page.get_by_role("button", name="Kopiert").wait_for()


@pytest.mark.parametrize("alice", [{"java_script_enabled": False}], indirect=True)
def test_the_keyboard_alone_switches_the_language_without_scripts(alice: Person) -> None:
    alice.page.goto("/sign-in")
    alice.wait_for_focus("User name")
    for _ in range(20):
        alice.page.keyboard.press("Tab")
        if alice.page.locator("a[lang=de]:focus").count():
            break
    with alice.page.expect_navigation():
        alice.page.keyboard.press("Enter")
    assert (alice.heading, alice.page.locator("html").get_attribute("lang")) == ("Anmelden", "de")
    alice.page.goto("/")
    assert alice.heading == "Anmelden"


def test_a_portal_without_flask_babel_names_the_missing_package() -> None:
    program = "import sys; sys.modules['flask_babel'] = None; from pam_totp.cli import main; sys.exit(main(['portal']))"
    done = subprocess.run([sys.executable, "-c", program], cwd=TREE, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr.partition(" (")[0]) == (3, "pam-totp: the portal needs flask_babel")
    assert "pam-totp-portal" in done.stderr
