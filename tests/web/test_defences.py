"""OWASP's lists, gone through: headers, CSRF, clickjacking, redirects, limits, caches, what is told to strangers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pam_totp.web.app import LIMITS
from tests.site import Site, codes
from tests.web.kit import ORIGIN, PASSWORD, Browser, Page, Portal, enrolled

PUBLIC = ("/", "/sign-in", "/code", "/signed-out", "/nix", "/static/portal.css", "/add-phone", "/recovery/codes")


@pytest.mark.parametrize("path", PUBLIC)
def test_every_answer_has_the_headers(portal: Portal, path: str) -> None:
    answer = portal.browser().client.get(path, base_url=ORIGIN)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "Server" not in answer.headers
    assert answer.headers["Cache-Control"] == ("max-age=3600" if path.startswith("/static") else "no-store")


def test_no_page_has_inline_script_or_style_or_anything_of_a_third_party(portal: Portal) -> None:
    enrolled(portal)
    browser = portal.signed_in(code=codes(0))
    for path in ("/", "/add-phone", "/add-token", "/rename?token=fob", "/resync?token=fob", "/recovery", "/nix"):
        found = browser.open(path).html
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?! src=\"/static/)", found), path
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', found), path


def test_the_cookie_is_this_hosts_alone_and_out_of_scripts_reach(portal: Portal) -> None:
    answer = portal.browser().client.get("/sign-in", base_url=ORIGIN)
    name, *rest = answer.headers["Set-Cookie"].split("; ")
    assert name.startswith("__Host-pam_totp=")
    assert set(rest) == {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"}, "no Domain, and gone with the browser"


def every_post(portal: Portal) -> list[str]:
    rules = portal.app.url_map.iter_rules()
    return sorted(rule.rule for rule in rules if rule.methods and "POST" in rule.methods)


def test_every_post_takes_this_sessions_own_token(portal: Portal) -> None:
    enrolled(portal)
    browser, other = portal.signed_in(code=codes(0)), portal.signed_in(code=codes(1))
    foreign = other.open("/").csrf
    before = portal.site.path("alice").read_bytes()
    assert len(every_post(portal)) == 12
    for path in every_post(portal):
        for token in ({}, {"csrf_token": ""}, {"csrf_token": "x"}, {"csrf_token": foreign}):
            page = browser.post(f"{path}?token=fob", {"name": "x", "proof": codes(2), "codes": codes(2, 2), **token})
            assert page.status == 400, path
            assert "was not used" in page.text
    assert portal.site.path("alice").read_bytes() == before
    assert browser.open("/").heading == "Your tokens", "not even signed out"


def test_nothing_is_changed_by_a_get(portal: Portal) -> None:
    enrolled(portal)
    browser = portal.signed_in(code=codes(0))
    before = portal.site.path("alice").read_bytes()
    for path in every_post(portal):
        browser.open(f"{path}?token=fob&name=x&proof={codes(1)}&codes={codes(1, 2)}".replace(" ", "+"))
    assert portal.site.path("alice").read_bytes() == before
    assert browser.open("/").heading == "Your tokens"


@pytest.mark.parametrize(("came_from", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200)])
def test_a_form_from_another_site_is_refused_even_with_the_token(portal: Portal, came_from: str, status: int) -> None:
    browser = portal.browser()
    csrf = browser.open("/sign-in").csrf
    fields = {"csrf_token": csrf, "user": "alice", "password": PASSWORD}
    assert browser.post("/sign-in", fields, headers={"Sec-Fetch-Site": came_from}).status == status


@pytest.mark.parametrize("given", ["next", "url", "return_to", "redirect", "continue", "token"])
def test_no_request_names_the_place_that_it_is_sent_to(portal: Portal, given: str) -> None:
    browser = portal.browser()
    csrf = browser.open(f"/sign-in?{given}=https://evil.example/").csrf
    fields = {"csrf_token": csrf, "user": "alice", "password": PASSWORD, given: "//evil.example/"}
    page = browser.post(f"/sign-in?{given}=https://evil.example/", fields, follow=False)
    assert page.response.headers["Location"] == "/"


def test_the_name_that_it_is_called_by_leads_nowhere_else(portal: Portal) -> None:
    answer = portal.browser().client.get("/", base_url=ORIGIN, headers={"Host": "evil.example"})
    assert answer.headers["Location"] == "/sign-in"
    assert "evil.example" not in answer.get_data(as_text=True)


def test_it_answers_only_to_the_names_that_were_given(site: Site) -> None:
    client = Portal(site, hosts=("portal.example",)).browser().client
    assert client.get("/sign-in", base_url=ORIGIN).status_code == 200
    answer = client.get("/sign-in", base_url="https://evil.example")
    assert answer.status_code == 400
    assert answer.headers["X-Frame-Options"] == "DENY"


def test_behind_tls_nothing_is_served_in_the_clear(portal: Portal) -> None:
    answer = portal.browser().client.get("/sign-in", base_url="http://portal.example")
    assert answer.status_code == 400
    assert "Set-Cookie" not in answer.headers


def test_without_tls_the_cookie_has_another_name_and_nothing_claims_tls(site: Site) -> None:
    answer = Portal(site, tls=False).browser().client.get("/sign-in", base_url="http://127.0.0.1:8443")
    assert answer.headers["Set-Cookie"].startswith("pam_totp_plain_http=")
    assert "Strict-Transport-Security" not in answer.headers


# Limits


def test_one_address_cannot_go_on_guessing_one_password(site: Site) -> None:
    portal = Portal(site, limited=True)
    statuses = [portal.browser().sign_in("alice", "wrong").status for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert portal.passwords.asked == ["alice"] * 10, "the password is not even looked at"
    page = portal.browser().sign_in("bob")
    assert page.heading == "Your tokens", "somebody else at the same address gets in"


def test_another_address_is_not_kept_out(site: Site) -> None:
    portal = Portal(site, limited=True)
    for _ in range(11):
        portal.browser().sign_in("alice", "wrong")
    browser = portal.browser()
    browser.client.environ_base["REMOTE_ADDR"] = "192.0.2.9"
    csrf = browser.open("/sign-in").csrf
    page = browser.post("/sign-in", {"csrf_token": csrf, "user": "alice", "password": PASSWORD})
    assert page.heading == "Your tokens", "nobody can lock the holder out"


def test_one_address_cannot_go_on_trying_users(site: Site) -> None:
    portal = Portal(site, limited=True)
    statuses = [portal.browser().sign_in(f"user{i}", "wrong").status for i in range(61)]
    assert statuses == [401] * 60 + [429]


def test_a_site_says_how_many_people_share_one_address(site: Site) -> None:
    portal = Portal(site, limited=True, per_address=70)
    assert [portal.browser().sign_in(f"user{i}").status for i in range(71)] == [200] * 70 + [429]


def test_the_addresses_of_one_ipv6_customer_count_as_one(site: Site) -> None:
    portal = Portal(site, limited=True)
    statuses = []
    for i in range(11):
        browser = portal.browser()
        browser.client.environ_base["REMOTE_ADDR"] = f"2001:db8::{i}"
        statuses.append(browser.sign_in("alice", "wrong").status)
    assert statuses[-1] == 429


def test_codes_are_limited_too(site: Site) -> None:
    portal = Portal(site, limited=True)
    enrolled(portal)
    browser = portal.browser()
    browser.sign_in()
    statuses = [browser.send(proof="blank").status for _ in range(61)]
    assert statuses == [401] * 60 + [429]
    assert browser.page is not None
    assert "Too many tries." in browser.page.text


def test_every_page_that_takes_a_code_or_a_password_is_limited(portal: Portal) -> None:
    taking = {"signin.sign_in", "signin.code"} | {
        f"tokens.{name}" for name in ("scan", "add_token", "resync", "remove", "recovery")
    }
    assert set(LIMITS) == taking


# What strangers learn


@pytest.mark.parametrize("path", ["/nix", "/static/../app.py", "/static/%2e%2e/app.py", "/sign-in/", "/.git/config"])
def test_an_unknown_page_says_so_and_no_more(portal: Portal, path: str) -> None:
    page = portal.browser().open(path)
    assert page.status == 404
    assert "There is no such page." in page.text


def test_a_request_that_is_too_long_is_not_read(portal: Portal) -> None:
    browser = portal.browser()
    csrf = browser.open("/sign-in").csrf
    page = browser.post("/sign-in", {"csrf_token": csrf, "user": "x" * 20_000, "password": "x"})
    assert page.status == 413


@pytest.mark.parametrize("user", ["x" * 256, "alice\0", "../alice", "\ud7ff", "a\r\nb", "%00", "alice "])
def test_strange_user_names_are_wrong_ones(portal: Portal, user: str) -> None:
    page = portal.browser().sign_in(user, "wrong")
    assert page.status in (401, 422)
    assert page.heading == "Sign in"


def test_a_defect_shows_nothing_of_itself(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the inner workings")

    monkeypatch.setattr(portal.passwords, "right", broken)
    page = portal.browser().sign_in("alice")
    assert page.status == 500
    assert "inner workings" not in page.html
    assert page.response.headers["X-Frame-Options"] == "DENY"


def test_methods_that_no_page_has_are_refused(portal: Portal) -> None:
    client = portal.browser().client
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert client.open("/sign-in", method=method, base_url=ORIGIN).status_code in (400, 405)


def test_names_cannot_forge_a_line_in_the_log(portal: Portal) -> None:
    portal.browser().sign_in("x\npam_totp(sshd:auth): accepted user=root", "wrong")
    assert not any("\n" in line for line in portal.log)


def test_every_form_has_labels_and_keyboards_as_they_should_be(portal: Portal) -> None:
    enrolled(portal)
    browser: Browser = portal.browser()
    pages: list[Page] = [browser.sign_in()]
    assert 'inputmode="numeric"' in pages[0].html
    assert 'autocomplete="one-time-code"' in pages[0].html
    browser.send(proof=codes(0))
    pages += [browser.open(path) for path in ("/add-phone", "/add-token", "/rename?token=fob", "/resync?token=fob")]
    for page in pages:
        for name in re.findall(r'<input (?![^>]*type="hidden")[^>]*id="([^"]+)"', page.html):
            assert f'<label for="{name}"' in page.html
        assert '"None"' not in page.html


def test_the_style_sheet_calls_nobody() -> None:
    static = Path(__file__).resolve().parents[2] / "pam_totp" / "web" / "static"
    for file in static.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|url\(|@import", text), file
