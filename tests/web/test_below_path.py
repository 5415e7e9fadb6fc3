"""Tests of a portal below a path of a host name, behind nginx and Caddy, and of several portals on one host name."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pam_totp.system.portal_table import Appearance, Logo
from pam_totp.web.connections import channel_class
from tests.support.fleet import free_ports
from tests.support.isolation import installed_browser
from tests.support.site import PATIENCE, TREE, Site, codes, until
from tests.support.tls import self_signed
from tests.web.accessible import NARROW_DARK, NARROW_LIGHT, assert_no_violations, in_looks
from tests.web.chromium import ALL_NAMES_HERE, running
from tests.web.kit import ORIGIN, PASSWORD, Portal, enroll_fob
from tests.web.over_http import served
from tests.web.people import Person
from tests.web.test_nginx_limit import FOLDERS, NGINX

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium

NAME = "www.example.org"  # the host name in docs/web.md
LOGO = Logo(b'<svg xmlns="http://www.w3.org/2000/svg" width="80" height="20"/>', "image/svg+xml")
OURS = Appearance(name="Example", logo=LOGO, accent="#7a1020", accent_dark="#f0a0b0")


# Without a web server


@pytest.mark.parametrize("path", ["/otp", "otp", "/otp/", "/a/b.c/~d"])
def test_every_link_and_redirect_begins_with_the_path(site: Site, path: str) -> None:
    portal = Portal(site, path=path, appearance=OURS)
    prefix = f"/{path.strip('/')}"
    enroll_fob(portal)
    browser = portal.browser()
    browser.open(f"{prefix}/sign-in?lang=de")
    browser.send(user="alice", password=PASSWORD)
    browser.send(proof=codes(0))
    for page in ("/", "", "/add-phone", "/resync?token=fob", "/recovery", "/no-such-page", "/code", "/sign-in"):
        opened = browser.open(prefix + page)
        assert opened.response.request.path.startswith(prefix)
        links = re.findall(r'(?:href|src|action)="([^"]*)"', opened.html)
        assert len(links) > 8
        assert [link for link in links if not link.startswith((f"{prefix}/", "?", "#"))] == [], page
    for file in ("/static/portal.css", "/static/portal.js", "/site/logo", "/site/colours.css"):
        assert browser.open(prefix + file).status == 200
    response = browser.client.get(f"{prefix}/code", base_url=ORIGIN)
    assert (response.status_code, response.headers["Location"]) == (303, f"{prefix}/")


def test_a_web_server_may_remove_the_path_from_requests(site: Site) -> None:
    browser = Portal(site, path="/otp").browser()
    for path in ("/sign-in", "/otp/sign-in"):
        assert 'action="/otp/sign-in"' in browser.open(path).html
    for path in ("/otp/otp/sign-in", "/otpx/sign-in", "/OTP/sign-in", "/other/sign-in"):
        assert browser.open(path).status == 404
    assert browser.client.get("/", base_url=ORIGIN).headers["Location"] == "/otp/sign-in"


@pytest.mark.parametrize(
    "path",
    ["//otp", "/a//b", "/..", "/a/../b", "/a/.", "/a b", "/ä", "/%41", "/a?b", "https://a/b", "/" + "x" * 100, "/a;b"],
)
def test_a_path_that_browsers_change_is_refused_at_the_start(site: Site, path: str) -> None:
    with pytest.raises(ValueError, match="the path of the portal must be"):
        Portal(site, path=path)


def test_it_does_not_start_with_an_impossible_path(site: Site) -> None:
    done = site.command("portal", "--path", "/a//b")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("pam-totp: /a//b: the path of the portal must be ")


@pytest.mark.parametrize(
    "path",
    [
        *("/otp/sign-in", "//otp/sign-in", "/otp//sign-in", "/sign-in", "//sign-in", "/otp", "/otp/code"),
        *("/otp/otp/sign-in", "/otpsign-in", "/other/sign-in", "/otp/sign-in/", "/sign-in/otp"),
    ],
)
def test_the_server_knows_a_sign_in_by_the_same_paths_as_the_pages(site: Site, path: str) -> None:
    channel = object.__new__(channel_class("127.0.0.1", "/otp"))
    request = SimpleNamespace(error=None, command="POST", path=path)
    channel.requests = [request]
    portal = Portal(site, path="/otp")
    environ: dict[str, Any] = {"PATH_INFO": re.sub("^/+", "/", path)}  # as waitress does
    response = portal.browser().client.open("/", method="GET", base_url=ORIGIN, environ_overrides=environ)
    is_sign_in = response.status_code == 200 and b'name="password"' in response.data
    assert channel.checks_password == is_sign_in


def test_the_names_of_cookies_contain_port_and_path(site: Site) -> None:
    def name(url: str, **config: Any) -> str:
        response = Portal(site, **config).browser().client.get("/sign-in", base_url=url)
        assert "Path=/" in response.headers["Set-Cookie"].split("; ")
        return response.headers["Set-Cookie"].partition("=")[0]

    assert name("https://portal.example") == name("https://portal.example:443") == "__Host-pam_totp"
    assert name("https://portal.example:8444") == "__Host-pam_totp_8444"
    assert name("https://[2001:db8::1]") == "__Host-pam_totp"
    assert name("https://[2001:db8::1]:8444", path="/a/b.c") == "__Host-pam_totp_8444+a+b.c"
    assert name("http://127.0.0.1:8443", tls=False) == "pam_totp_plain_http_8443"


# Behind a web server


class Front:
    """A web server with TLS for the host name NAME. `ports` are the ports of its two sites."""

    password = PASSWORD

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self._folder, self.ports = kind, folder, free_ports(2)
        signed = self_signed()
        (folder / "site.crt").write_bytes(signed.certificate)
        (folder / "site.key").write_bytes(signed.key)
        self.url = self.at(0)

    def at(self, site: int, path: str = "") -> str:
        """Return the URL of a portal on one of the two sites."""
        return f"https://{NAME}:{self.ports[site]}{path}"

    def context(self) -> ssl.SSLContext:
        """Return a context that trusts the certificate of the web server, but does not check the name."""
        context = ssl.create_default_context(cafile=str(self._folder / "site.crt"))
        context.check_hostname = False
        return context

    def start(self, first: dict[str, int], second: int) -> subprocess.Popen[bytes]:
        """Start the web server, and return the process.

        `first` maps the path of each portal on the first site to its port. `second` is the port of the portal on the
        second site.
        """
        write = self._write_nginx if self.kind == "nginx" else self._write_caddy
        command = write(first, second)
        log = self._folder / "log"
        variables = {"HOME": str(self._folder), "PATH": "/usr/bin:/bin"}
        with open(log, "wb") as output:
            server = subprocess.Popen(command, cwd=self._folder, env=variables, stdout=output, stderr=output)
        until(lambda: all(map(_listens, self.ports)) or server.poll() is not None, "the web server listens")
        assert server.poll() is None, log.read_text()
        return server

    def _write_nginx(self, first: dict[str, int], second: int) -> list[str]:
        whole, location = _examples("nginx")
        tls = f"ssl_certificate {self._folder}/site.crt; ssl_certificate_key {self._folder}/site.key;"
        locations = "\n".join(_at(location, path, port) for path, port in first.items())
        own = f"server {{ listen 127.0.0.1:{self.ports[0]} ssl; server_name {NAME}; {tls}\n{locations} }}"
        whole = whole.replace("/etc/ssl/portal.example.org.crt", f"{self._folder}/site.crt")
        whole = whole.replace("/etc/ssl/private/portal.example.org.key", f"{self._folder}/site.key")
        whole = whole.replace("443 ssl", f"127.0.0.1:{self.ports[1]} ssl").replace("portal.example.org", NAME)
        (self._folder / "nginx.conf").write_text(
            "daemon off; master_process off; pid pid; error_log stderr; events {}\n"
            f"http {{ access_log off; {FOLDERS}\n{own}\n{_at(whole, '/otp', second)} }}"
        )
        return [NGINX, "-p", str(self._folder), "-c", "nginx.conf"]

    def _write_caddy(self, first: dict[str, int], second: int) -> list[str]:
        whole, below = _examples("caddy")
        own = f"bind 127.0.0.1\ntls {self._folder}/site.crt {self._folder}/site.key\n"
        head, inner = below.split("{\n", 1)
        inner = inner.rstrip().removesuffix("}")
        inner = "\n".join(_at(inner, path, port) for path, port in first.items())
        whole = whole.replace("portal.example.org {\n", f"{NAME}:{self.ports[1]} {{\n{own}")
        below = f"{head.strip()}:{self.ports[0]} {{\n{own}{inner}}}\n"
        # Caddy requires its global options in the first block.
        settings = "{\nadmin off\nauto_https disable_redirects\n}\n"
        (self._folder / "Caddyfile").write_text(settings + below + _at(whole, "/otp", second))
        return [str(shutil.which("caddy")), "run", "--config", "Caddyfile", "--adapter", "caddyfile"]


def _examples(language: str) -> list[str]:
    """Return the two examples for a web server in docs/web.md: for a whole host name, and below a path."""
    found = re.findall(rf"```{language}\n(.*?)```", (TREE / "docs" / "web.md").read_text(), re.S)
    assert len(found) == 2
    return found


def _at(example: str, path: str, port: int) -> str:
    """Return the example with `path` and `port` as the path and the port of the portal."""
    return example.replace("/otp", path).replace("127.0.0.1:8443", f"127.0.0.1:{port}")


def _listens(port: int) -> bool:
    return f":{port:04X} 00000000:0000 0A " in Path("/proc/net/tcp").read_text()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    browser = installed_browser()
    if browser is None:
        pytest.skip("requires chromium-headless-shell")
    with running(browser, ALL_NAMES_HERE) as started:
        yield started


@pytest.fixture(params=["nginx", "caddy"])
def front(request: pytest.FixtureRequest, tmp_path: Path) -> Front:
    if shutil.which(NGINX if request.param == "nginx" else "caddy") is None:
        pytest.skip(f"requires {request.param}")
    (tmp_path / "front").mkdir()
    return Front(request.param, tmp_path / "front")


Portals = dict[str, Portal]


@pytest.fixture
def portals(front: Front, tmp_path: Path) -> Iterator[Portals]:
    """Yield three running portals behind the web server, each with a store: at /otp, at /lab, and on another port.

    The next code of alice's key fob differs between the portals.
    """
    with ExitStack() as running:
        made, ports = Portals(), dict[str, int]()
        for number, path in enumerate(("/otp", "/lab", "")):
            (tmp_path / f"store{number}").mkdir()
            site = Site(tmp_path / f"store{number}")
            running.callback(site.stop)
            made[path] = Portal(site, path=path, hosts=(NAME.upper() + ".",), issuer=f"portal{number}", appearance=OURS)
            enroll_fob(made[path], counter=10 * number)
            ports[path] = running.enter_context(served(made[path].app, path=path))
        own = ports.pop("")
        server = front.start(ports, own)
        yield made
        server.terminate()
        server.wait(PATIENCE)


@pytest.fixture
def person(chromium: Chromium, front: Front, portals: Portals) -> Iterator[Callable[..., Person]]:
    with ExitStack() as made:

        def make(**context: Any) -> Person:
            person = Person(chromium, cast(Any, front), **context)
            made.callback(person.close)
            return person

        yield make


def test_a_person_uses_the_portal_below_a_path(front: Front, portals: Portals, person: Callable[..., Person]) -> None:
    alice = person()
    alice.page.goto(front.at(0, "/otp"))
    assert (alice.heading, alice.page.url) == ("Sign in", front.at(0, "/otp/sign-in"))
    _check(alice)
    alice.press("Deutsch")
    assert alice.heading == "Anmelden"
    alice.press("English")
    alice.sign_in(code=codes(0), at=front.at(0, "/otp"))
    assert (alice.heading, alice.page.url) == ("Your tokens", front.at(0, "/otp/"))
    _check(alice)
    for link in ("Add a phone", "Show the QR code"):
        alice.press(link)
        _check(alice)
    assert alice.page.url.partition("?")[0] == front.at(0, "/otp/add-phone/scan")
    alice.press("Sign out")
    assert alice.page.url == front.at(0, "/otp/signed-out")
    assert [url for url in alice.requests if not url.startswith(front.at(0, "/otp"))] == []
    assert alice.console_messages == []
    assert any("rhost=127.0.0.1" in line for line in portals["/otp"].log), "the log contains the client's address"


def _check(person: Person) -> None:
    """Check that the page uses the style sheets, the script and the logo, and that axe reports no violation."""
    page = person.page
    assert page.locator("header .logo").evaluate("image => image.naturalWidth") == 80
    assert page.evaluate("[...document.styleSheets].map(sheet => sheet.cssRules.length > 0)") == [True, True]
    for look in in_looks(page, (NARROW_LIGHT, NARROW_DARK)):
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (page.url, look)
        assert_no_violations(page)


def test_one_browser_is_signed_in_to_several_portals_on_a_host(
    front: Front, portals: Portals, person: Callable[..., Person]
) -> None:
    alice = person()
    addresses = {front.at(0, "/otp"): codes(0), front.at(0, "/lab"): codes(10), front.at(1): codes(20)}
    for address, code in addresses.items():
        alice.sign_in(code=code, at=address)
        assert (alice.heading, alice.page.url) == ("Your tokens", f"{address}/")
    names = sorted(cookie["name"] for cookie in alice.context.cookies())
    first, second = front.ports
    assert names == sorted(
        [f"__Host-pam_totp_{first}+lab", f"__Host-pam_totp_{first}+otp", f"__Host-pam_totp_{second}"]
    )
    for address in addresses:
        alice.page.goto(f"{address}/")
        assert alice.heading == "Your tokens", address
    alice.page.goto(f"{front.at(0, '/lab')}/")
    alice.press("Sign out")
    headings = []
    for address in addresses:
        alice.page.goto(f"{address}/")
        headings.append(alice.heading)
    assert headings == ["Your tokens", "Sign in", "Your tokens"]


def test_a_form_that_is_too_long_is_refused_behind_a_web_server(front: Front, portals: Portals) -> None:
    for site, path in ((0, "/otp"), (1, "")):
        connection = http.client.HTTPConnection(NAME, front.ports[site])
        plain = socket.create_connection(("127.0.0.1", front.ports[site]), PATIENCE)
        connection.sock = front.context().wrap_socket(plain, server_hostname=NAME)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", f"{path}/sign-in", "x" * 70_000, form)
        answer = connection.getresponse()
        connection.close()
        assert answer.status == 413
