"""Tests of the defences that OWASP recommends: headers, CSRF, clickjacking, redirects, limits, caches, disclosure."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from pam_totp.web.filters import duration
from pam_totp.web.host_header import canonical, is_listed
from pam_totp.web.request_limits import LIMITS
from tests.support.site import PATIENCE, Site, codes
from tests.web.kit import ORIGIN, PASSWORD, Browser, Page, Portal, enroll_fob
from tests.web.over_http import served

PUBLIC = (
    "/",
    "/sign-in",
    "/code",
    "/signed-out",
    "/no-such-page",
    "/static/portal.css",
    "/add-phone",
    "/recovery/codes",
)


@pytest.mark.parametrize("path", PUBLIC)
def test_every_response_has_the_security_headers(portal: Portal, path: str) -> None:
    response = portal.browser().client.get(path, base_url=ORIGIN)
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["X-Frame-Options"] == "DENY"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "Server" not in response.headers
    assert response.headers["Cache-Control"] == ("max-age=3600" if path.startswith("/static") else "no-store")


def test_no_page_has_inline_or_third_party_code(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    for path in (
        "/",
        "/add-phone",
        "/add-token",
        "/rename?token=fob",
        "/resync?token=fob",
        "/recovery",
        "/no-such-page",
    ):
        page = browser.open(path).html
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:|<script(?! src=\"/static/)", page), path
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page), path


def test_the_cookie_is_for_this_host_and_not_for_scripts(portal: Portal) -> None:
    response = portal.browser().client.get("/sign-in", base_url=ORIGIN)
    name, *rest = response.headers["Set-Cookie"].split("; ")
    assert name.startswith("__Host-pam_totp=")
    assert set(rest) == {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"}, "the cookie lacks a Domain and an expiry time"


def every_post(portal: Portal) -> list[str]:
    rules = portal.app.url_map.iter_rules()
    return sorted(re.sub("<.*>", "unlock", rule.rule) for rule in rules if rule.methods and "POST" in rule.methods)


def test_every_post_needs_the_csrf_token_of_its_session(portal: Portal) -> None:
    enroll_fob(portal)
    browser, other = portal.signed_in(code=codes(0)), portal.signed_in(code=codes(1))
    other_token = other.open("/").csrf
    before = portal.site.path("alice").read_bytes()
    assert len(every_post(portal)) == 21
    for path in every_post(portal):
        for token in ({}, {"csrf_token": ""}, {"csrf_token": "x"}, {"csrf_token": other_token}):
            page = browser.post(f"{path}?token=fob", {"name": "x", "proof": codes(2), "codes": codes(2, 2), **token})
            assert page.status == 400, path
            assert "was ignored" in page.text
    assert portal.site.path("alice").read_bytes() == before
    assert browser.open("/").heading == "Your tokens", "the user is still signed in"


def test_a_get_changes_nothing(portal: Portal) -> None:
    enroll_fob(portal)
    browser = portal.signed_in(code=codes(0))
    before = portal.site.path("alice").read_bytes()
    for path in every_post(portal):
        browser.open(f"{path}?token=fob&name=x&proof={codes(1)}&codes={codes(1, 2)}".replace(" ", "+"))
    assert portal.site.path("alice").read_bytes() == before
    assert browser.open("/").heading == "Your tokens"


@pytest.mark.parametrize(("fetch_site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200)])
def test_a_form_from_another_site_is_refused_even_with_the_token(portal: Portal, fetch_site: str, status: int) -> None:
    browser = portal.browser()
    csrf = browser.open("/sign-in").csrf
    fields = {"csrf_token": csrf, "user": "alice", "password": PASSWORD}
    assert browser.post("/sign-in", fields, headers={"Sec-Fetch-Site": fetch_site}).status == status


@pytest.mark.parametrize("parameter", ["next", "url", "return_to", "redirect", "continue", "token"])
def test_no_request_chooses_the_target_of_a_redirect(portal: Portal, parameter: str) -> None:
    browser = portal.browser()
    csrf = browser.open(f"/sign-in?{parameter}=https://evil.example/").csrf
    fields = {"csrf_token": csrf, "user": "alice", "password": PASSWORD, parameter: "//evil.example/"}
    page = browser.post(f"/sign-in?{parameter}=https://evil.example/", fields, follow=False)
    assert page.response.headers["Location"] == "/"


def test_the_host_header_does_not_change_a_redirect(portal: Portal) -> None:
    response = portal.browser().client.get("/", base_url=ORIGIN, headers={"Host": "evil.example"})
    assert response.headers["Location"] == "/sign-in"
    assert "evil.example" not in response.get_data(as_text=True)


@pytest.mark.parametrize("path", ["/add-phone//scan", "//add-phone/scan", "/sign-in//", "//evil.example/sign-in"])
def test_no_path_is_answered_by_a_redirect_to_the_host_header(portal: Portal, path: str) -> None:
    client = portal.browser().client
    response = client.open(
        "/", base_url=ORIGIN, headers={"Host": "evil.example"}, environ_overrides={"PATH_INFO": path}
    )
    assert "//" not in response.headers.get("Location", "")
    assert response.status_code == (303 if path == "//add-phone/scan" else 404)


@pytest.mark.parametrize("path", ["", "?x"])
def test_an_empty_path_is_no_redirect_to_the_host_header(site: Site, path: str) -> None:
    with served(Portal(site).app) as port:
        answer = raw(port, f"GET http://evil.example{path} HTTP/1.1", host="evil.example")
        assert b"\r\nLocation: /sign-in\r\n" in answer
        if path:
            assert raw(port, f"GET {path} HTTP/1.1", host="evil.example").partition(b"\r\nDate")[0] in answer


HOSTS = (
    *(
        "portal.example",
        "PORTAL.example.",
        "a_b.example:8443",
        "192.0.2.1:",
        "[::1]",
        "[2001:db8::1]:443",
        "xn--zzzz",
        "",
    ),
    *(f"{'x' * 63}.example", ".".join(["a"] * 128)),
)
NO_HOSTS = (
    *(
        ".a",
        "a..b",
        ".",
        "..",
        "-",
        "a-.b",
        f"{'x' * 64}.example",
        f"{'a.' * 128}",
        "x" * 5000,
        "a b",
        "a, b",
        "@",
        "u@a",
    ),
    *(
        "[",
        "[]",
        "[::1",
        "[::1]x",
        "[::1%25eth0]",
        "[fe80::1%1]",
        "[192.0.2.1]",
        "::1",
        "a:b",
        "a:b:c",
        "a:999999",
        ":80",
    ),
    *("/", "a/b", "a?b", "a#b", "%", "a%2eb", "a\\b", "\xe4.example", "\xff", "a;b", "*", "a\tb"),
)


@pytest.mark.parametrize("hosts", [(), ("portal.example",)], ids=["any", "listed"])
def test_an_invalid_host_header_gets_a_short_answer_and_no_log_line(
    site: Site, hosts: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    portal = Portal(site, hosts=hosts)
    with served(portal.app) as port:
        for host in NO_HOSTS:
            for line in ("GET /sign-in HTTP/1.1", "GET /no-such-page HTTP/1.1", "POST /sign-in HTTP/1.1"):
                answer = raw(port, line, host=host)
                assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), (host, answer)
                assert answer.endswith(b"The Host header of the request must name one host.\n"), (host, answer)
                assert b"X-Frame-Options: DENY" in answer
        known = [raw(port, "GET /sign-in HTTP/1.1", host=host)[9:12] for host in HOSTS]
    assert known == ([b"200"] * len(HOSTS) if not hosts else [b"200"] * 2 + [b"400"] * (len(HOSTS) - 2))
    assert portal.log == []
    assert "Traceback" not in "".join(capfd.readouterr())


def raw(port: int, line: str, *, host: str) -> bytes:
    """Send a request with the first line `line` and the Host header `host`, as from a proxy. Return the response."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        forwarded = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n"
        connection.sendall(f"{line}\r\nHost: {host}\r\n{forwarded}\r\n".encode("latin-1"))
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_portal_answers_only_to_the_configured_host_names(site: Site) -> None:
    client = Portal(site, hosts=("portal.example",)).browser().client
    assert client.get("/sign-in", base_url=ORIGIN).status_code == 200
    response = client.get("/sign-in", base_url="https://evil.example")
    assert response.status_code == 400
    assert response.headers["X-Frame-Options"] == "DENY"


@pytest.mark.parametrize(
    ("host", "requested"),
    [
        ("Portal.Example", "portal.example"),
        ("portal.example", "PORTAL.example:8443"),
        ("0:0:0:0:0:0:0:1", "[::1]:8443"),
        ("::1", "[0:0:0:0:0:0:0:1]"),
        ("[::1]:8443", "[::1]"),
        ("portal.example:443", "portal.example:8443"),
        ("portal.example.", "portal.example"),
        ("portal.example", "portal.example."),
        ("portal.example.", "portal.example.:8443"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("bu\u0308cher\u3002example", "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", "XN--BCHER-KVA.example"),
        ("192.0.2.7:443", "192.0.2.7"),
        ("::ffff:192.0.2.7", "[::ffff:c000:207]"),
    ],
)
def test_a_host_is_recognised_in_every_spelling(site: Site, host: str, requested: str) -> None:
    client = Portal(site, hosts=(host,)).browser().client
    assert client.get("/sign-in", base_url=ORIGIN, headers={"Host": requested}).status_code == 200


def test_a_host_with_sharp_s_is_known_as_browsers_send_it() -> None:
    # UTS #46, non-transitional. werkzeug's test client cannot send this name.
    assert is_listed("xn--strae-oqa.example:443", [canonical("STRASSE.example"), canonical("straße.example")])
    assert not is_listed("xn--strae-oqa.example", [canonical("strasse.example")])


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            " ",
            ".",
            "https://portal.example",
            "portal.example/otp",
            "*.example",
            "a b",
            "portal..example",
            "-.example",
        ),
        *("portal.example:http", "portal.example:123456", "[::1", "[::1]x", "fe80::1%eth0", "[127.0.0.1]", "1:2:3"),
        *(
            "127.1",
            "0x7f.0.0.1",
            "a\u200db.example",
            "a\u2488b.example",
            "256.1.1.1",
            "portal.1",
            "a@portal.example",
            f"{'a' * 64}.example",
            "é" * 70,
        ),
    ],
)
def test_a_host_that_no_browser_can_send_is_refused_at_the_start(site: Site, host: str) -> None:
    with pytest.raises(ValueError, match="must be one host name or address"):
        Portal(site, hosts=(host,))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--host", "https://portal.example"], "pam-totp: https://portal.example: must be one host name or address "),
        (["--issuer", "Example: ours"], "pam-totp: the issuer must not contain a colon: "),
        (["--issuer", ""], "pam-totp: the issuer: must be 1 to 255 printable characters "),
    ],
)
def test_it_does_not_start_with_an_impossible_host_or_issuer(site: Site, words: list[str], message: str) -> None:
    done = site.command("portal", *words)
    assert (done.returncode, done.stderr[: len(message)], done.stderr.count("\n")) == (2, message, 1)


def test_behind_tls_plain_http_is_refused(portal: Portal) -> None:
    response = portal.browser().client.get("/sign-in", base_url="http://portal.example")
    assert response.status_code == 400
    assert "Set-Cookie" not in response.headers


def test_without_tls_the_cookie_is_renamed_and_hsts_is_off(site: Site) -> None:
    response = Portal(site, tls=False).browser().client.get("/sign-in", base_url="http://127.0.0.1:8443")
    assert response.headers["Set-Cookie"].startswith("pam_totp_plain_http_8443=")
    assert "Strict-Transport-Security" not in response.headers


# Limits


def test_guesses_of_one_password_from_one_address_are_limited(site: Site) -> None:
    portal = Portal(site, rate_limits=True)
    statuses = [portal.browser().sign_in("alice", "wrong").status for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    assert portal.passwords.users == ["alice"] * 10, "the portal checks only as many passwords as the limit allows"
    page = portal.browser().sign_in("bob")
    assert page.heading == "Your tokens", "another user at the same address can sign in"


def test_too_many_attempts_get_the_time_to_wait(site: Site) -> None:
    portal = Portal(site, rate_limits=True)
    for _ in range(10):
        portal.browser().sign_in("alice", "wrong")
        portal.clock.advance(1)
    for wait, text in ((49.5, "50 seconds"), (0.5, "1 second")):
        page = portal.browser().sign_in("alice", "wrong")
        assert (page.status, page.heading) == (429, "Too many attempts")
        assert f"Try again in {text}." in page.text
        assert page.response.headers["Retry-After"] == text.partition(" ")[0]
        portal.clock.advance(wait)
    assert portal.browser().sign_in("alice", "wrong").status == 401


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1, "1 second"), (119, "119 seconds"), (121, "3 minutes"), (7199, "120 minutes"), (7201, "3 hours")],
)
def test_a_time_to_wait_is_rounded_up(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_another_address_is_not_blocked(site: Site) -> None:
    portal = Portal(site, rate_limits=True)
    for _ in range(11):
        portal.browser().sign_in("alice", "wrong")
    browser = portal.browser()
    browser.client.environ_base["REMOTE_ADDR"] = "192.0.2.9"
    csrf = browser.open("/sign-in").csrf
    page = browser.post("/sign-in", {"csrf_token": csrf, "user": "alice", "password": PASSWORD})
    assert page.heading == "Your tokens", "guesses from another address do not lock out the user"


def test_attempts_on_many_users_from_one_address_are_limited(site: Site) -> None:
    portal = Portal(site, rate_limits=True)
    statuses = [portal.browser().sign_in(f"user{i}", "wrong").status for i in range(61)]
    assert statuses == [401] * 60 + [429]


def test_per_address_raises_the_limit_of_one_address(site: Site) -> None:
    portal = Portal(site, rate_limits=True, per_address=70)
    assert [portal.browser().sign_in(f"user{i}").status for i in range(71)] == [200] * 70 + [429]


def test_addresses_of_one_ipv6_network_count_as_one(site: Site) -> None:
    portal = Portal(site, rate_limits=True)
    statuses = []
    for i in range(11):
        browser = portal.browser()
        browser.client.environ_base["REMOTE_ADDR"] = f"2001:db8::{i}"
        statuses.append(browser.sign_in("alice", "wrong").status)
    assert statuses[-1] == 429


def test_code_attempts_from_one_address_are_limited(site: Site) -> None:
    portal = Portal(site, rate_limits=True)
    enroll_fob(portal)
    browser = portal.browser()
    browser.sign_in()
    statuses = [browser.send(proof="blank").status for _ in range(61)]
    assert statuses == [422] * 60 + [429]
    assert browser.page is not None
    assert "Too many attempts." in browser.page.text


def test_every_page_that_takes_a_code_or_a_password_is_limited(portal: Portal) -> None:
    endpoints = {"signin.sign_in", "signin.code", "desk.change"} | {
        f"tokens.{name}" for name in ("scan", "add_token", "next_code", "resync", "remove", "recovery")
    }
    endpoints |= {f"guided.{name}" for name in ("start", "lost_phone", "scan")}
    assert set(LIMITS) == endpoints


# Clients without a session


@pytest.mark.parametrize(
    "path", ["/no-such-page", "/static/../app.py", "/static/%2e%2e/app.py", "/sign-in/", "/.git/config"]
)
def test_an_unknown_page_discloses_nothing(portal: Portal, path: str) -> None:
    page = portal.browser().open(path)
    assert (page.status, page.heading) == (404, "Page not found")


def test_every_error_page_has_a_title_of_its_own(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    portal = Portal(site, hosts=("portal.example",))
    enroll_fob(portal)
    browser = portal.browser()
    long = {"user": "alice", "password": "x" * 20_000}
    pages = [
        (browser.open("/no-such-page"), 404, "Page not found"),
        (Page(browser.client.delete("/", base_url=ORIGIN)), 405, "Request not supported"),
        (browser.open("/", headers={"Host": "evil.example"}), 400, "Unknown host name"),
        (Page(browser.client.get("/", base_url=ORIGIN.replace("https", "http"))), 400, "https is required"),
        (browser.open("/", headers={"Sec-Fetch-Site": "cross-site"}), 403, "Part of another site"),
        (browser.post("/sign-in", {}, headers={"Sec-Fetch-Site": "cross-site"}), 403, "Form of another site"),
        (browser.post("/sign-in", {"user": "alice"}), 400, "Your browser blocks cookies"),
        (browser.post("/sign-in", {}, content_type="text/plain"), 415, "The request failed"),
        (browser.post("/sign-in", {"csrf_token": browser.open("/sign-in").csrf, **long}), 413, "The form is too long"),
        (browser.post("/sign-in", {"csrf_token": "x"}), 400, "The form has expired"),
    ]
    browser.sign_in()
    monkeypatch.setattr(portal.app.extensions["pam_totp"].second_factor, "verify", None)
    portal.app.logger.disabled = True
    pages.append((browser.send(proof=codes(0)), 500, "Internal error"))
    site.store.chmod(0o755)
    pages.append((browser.sign_in(), 503, "Not available now"))
    site.store.chmod(0o700)
    assert pages[-1][0].response.headers["Retry-After"] == "60"
    for page, status, title in pages:
        assert (page.status, page.heading) == (status, title)
        assert f"<title>{title} – portal.example</title>" in page.html
    assert portal.site.counter("alice") == 0


def test_a_browser_that_blocks_cookies_is_told_so(portal: Portal) -> None:
    csrf = portal.browser().open("/sign-in").csrf
    page = portal.browser().post("/sign-in", {"csrf_token": csrf, "user": "alice", "password": PASSWORD})
    assert (page.status, "Allow cookies for this site" in page.text) == (400, True)
    assert portal.passwords.users == []


def test_a_request_that_is_too_long_is_rejected(portal: Portal) -> None:
    browser = portal.browser()
    csrf = browser.open("/sign-in").csrf
    page = browser.post("/sign-in", {"csrf_token": csrf, "user": "x" * 20_000, "password": "x"})
    assert page.status == 413


@pytest.mark.parametrize("user", ["x" * 256, "alice\0", "../alice", "\ud7ff", "a\r\nb", "%00", "alice "])
def test_unusual_user_names_are_refused_as_wrong(portal: Portal, user: str) -> None:
    page = portal.browser().sign_in(user, "wrong")
    assert page.status in (401, 422)
    assert page.heading == "Sign in"


def test_an_internal_error_discloses_nothing(portal: Portal, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("internal detail")

    monkeypatch.setattr(portal.passwords, "verify", broken)
    page = portal.browser().sign_in("alice")
    assert page.status == 500
    assert "internal detail" not in page.html
    assert page.response.headers["X-Frame-Options"] == "DENY"


def test_unsupported_methods_are_refused(portal: Portal) -> None:
    client = portal.browser().client
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert client.open("/sign-in", method=method, base_url=ORIGIN).status_code in (400, 405)


def test_a_user_name_cannot_forge_a_log_line(portal: Portal) -> None:
    portal.browser().sign_in("x\npam_totp(sshd:auth): accepted user=root", "wrong")
    assert not any("\n" in line for line in portal.log)


def test_a_password_typed_as_the_user_name_is_not_logged(site: Site) -> None:
    portal = Portal(site, rate_limits=True, is_account=lambda name: name == "alice")
    statuses = [portal.browser().sign_in(user, "wrong").status for user in ["alice", *["s3cret"] * 11]]
    assert statuses == [401] * 11 + [429]
    assert [line.split()[2] for line in portal.log] == ["user=alice"] + ['user="?"'] * 11
    assert "s3cret" not in "".join(portal.log)


def test_every_field_has_a_label_and_the_right_keyboard(portal: Portal) -> None:
    enroll_fob(portal)
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


def test_static_files_load_nothing_from_other_sites() -> None:
    static = Path(__file__).resolve().parents[2] / "pam_totp" / "web" / "static"
    for file in static.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|url\(|@import", text), file
