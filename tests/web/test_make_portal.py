"""Tests of `make portal`: its printed instructions, its clean-up, and invalid ports."""

from __future__ import annotations

import html
import re
import signal
import subprocess
import sys
from http.cookiejar import CookieJar
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, build_opener

import pytest

from tests.support.site import PATIENCE, TREE


class MinimalBrowser:
    """A browser without scripts and pictures."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = build_opener(HTTPCookieProcessor(CookieJar()))

    def send(self, path: str, **fields: str) -> str:
        """Open a page, send its form with `fields`, and return the heading of the next page."""
        token = re.search(r'name="csrf_token"[^>]* value="([^"]*)"', self._read(path))
        assert token, path
        page = self._read(path, urlencode({"csrf_token": html.unescape(token[1]), **fields}).encode())
        return "".join(re.findall("<h1>(.*?)</h1>", page))

    def _read(self, path: str, data: bytes | None = None) -> str:
        with self._opener.open(self._url + path, data, timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
            return text


def test_the_printed_instructions_work_and_the_store_is_deleted() -> None:
    command = [sys.executable, "-m", "demo.portal", "0"]
    with subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as portal:
        assert portal.stdout is not None
        try:
            lines = iter(portal.stdout.readline, "")
            output = ""
            while "The store is" not in output:
                output += next(lines)

            def find(pattern: str) -> str:
                match = re.search(pattern, output, re.MULTILINE)
                assert match, output
                return match[1]

            user = {"user": find(r"user name +(.*)$"), "password": find(r"password +(.*)$")}
            press = find(r"^ +(.* press \\\n.*)$")

            def two_codes() -> str:
                shown = subprocess.run(["sh", "-c", press], cwd=TREE, check=True, capture_output=True, text=True).stdout
                return " ".join(shown.split())

            url = find(r"(http://\S+)/ ")
            browser = MinimalBrowser(url)
            assert browser.send("/sign-in", **user) == "Set up your second factor", "a password alone is not enough"
            newcomer = MinimalBrowser(url)
            newcomer.send("/sign-in", **user)
            assert newcomer.send("/set-up", proof=find(r"ticket +(.*)$")) == "Get an app on your phone"
            serial = find(r"serial\s+number is (\w+)")
            assert browser.send("/add-token", serial=serial, codes=two_codes()) == "Your tokens"
            second = MinimalBrowser(url)
            assert second.send("/sign-in", **user) == "Your code", "a user with a token must also enter a code"
            assert second.send("/code", proof=two_codes()) == "Your tokens"
        finally:
            portal.send_signal(signal.SIGINT)
    assert portal.returncode == 0
    assert not Path(find(r"The store is (\S+)\.")).exists()
    assert [line for line in output.splitlines() if len(line) > 80 and str(TREE) not in line] == [], (
        "every line without the path of the tree fits in 80 columns"
    )


def test_the_portal_deletes_its_store_after_repeated_signals(tmp_path: Path) -> None:
    """The portal receives the signal twice under `timeout make portal`: from timeout(1) and from make."""
    command = [sys.executable, "-m", "demo.portal", "0"]
    with (
        open(tmp_path / "stderr", "w") as stderr,
        subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=stderr, text=True) as portal,
    ):
        assert portal.stdout is not None
        store = next(filter(None, (re.search(r"The store is (\S+)\.", line) for line in portal.stdout)))
        while portal.poll() is None:
            portal.send_signal(signal.SIGTERM)
    assert (portal.returncode, (tmp_path / "stderr").read_text()) == (0, "")
    assert not Path(store[1]).exists()


@pytest.mark.parametrize("port", ["foo", "-1", "65536", ""])
def test_an_invalid_port_prints_one_line_with_an_example(port: str) -> None:
    command = [sys.executable, "-m", "demo.portal", port]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{port}: must be a port number (example: make portal ARGS=9000)\n"
