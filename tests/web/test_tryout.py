"""`make portal`: what it prints is enough to sign in, put a token into use and come back with a code of it."""

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

from tests.site import PATIENCE, TREE


class Visitor:
    """A browser without scripts or pictures."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = build_opener(HTTPCookieProcessor(CookieJar()))

    def send(self, path: str, **fields: str) -> str:
        """Open a page, fill in its form and send it; the heading of the page that comes back."""
        token = re.search(r'name="csrf_token"[^>]* value="([^"]*)"', self._read(path))
        assert token, path
        page = self._read(path, urlencode({"csrf_token": html.unescape(token[1]), **fields}).encode())
        return "".join(re.findall("<h1>(.*?)</h1>", page))

    def _read(self, path: str, data: bytes | None = None) -> str:
        with self._opener.open(self._url + path, data, timeout=PATIENCE) as answer:
            text: str = answer.read().decode()
            return text


def test_a_newcomer_tries_all_of_it_by_what_is_printed_and_nothing_is_left() -> None:
    command = [sys.executable, "-m", "demo.portal", "0"]
    with subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as portal:
        assert portal.stdout is not None
        try:
            lines = iter(portal.stdout.readline, "")
            said = ""
            while "The store is" not in said:
                said += next(lines)

            def find(pattern: str) -> str:
                found = re.search(pattern, said, re.MULTILINE)
                assert found, said
                return found[1]

            me = {"user": find(r"user name +(.*)$"), "password": find(r"password +(.*)$")}
            press = find(r"^ +(.* press \\\n.*)$")

            def two_codes() -> str:
                shown = subprocess.run(["sh", "-c", press], cwd=TREE, check=True, capture_output=True, text=True).stdout
                return " ".join(shown.split())

            url = find(r"(http://\S+)/ ")
            visitor = Visitor(url)
            assert visitor.send("/sign-in", **me) == "Your tokens"
            assert visitor.send("/add-token", serial=find(r"serial number\s(\w+)"), codes=two_codes()) == "Your tokens"
            again = Visitor(url)
            assert again.send("/sign-in", **me) == "Your code", "the password is not enough any more"
            assert again.send("/code", proof=two_codes()) == "Your tokens"
        finally:
            portal.send_signal(signal.SIGINT)
    assert portal.returncode == 0
    assert not Path(find(r"The store is (\S+)\.")).exists()
    assert [line for line in said.splitlines() if len(line) > 80 and str(TREE) not in line] == [], "80 columns"


def test_told_to_end_again_and_again_it_still_leaves_nothing_behind(tmp_path: Path) -> None:
    """timeout(1) tells make, and then all of make's children once more."""
    command = [sys.executable, "-m", "demo.portal", "0"]
    with (
        open(tmp_path / "complaints", "w") as complaints,
        subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=complaints, text=True) as portal,
    ):
        assert portal.stdout is not None
        store = next(filter(None, (re.search(r"The store is (\S+)\.", line) for line in portal.stdout)))
        while portal.poll() is None:
            portal.send_signal(signal.SIGTERM)
    assert (portal.returncode, (tmp_path / "complaints").read_text()) == (0, "")
    assert not Path(store[1]).exists()


@pytest.mark.parametrize("port", ["foo", "-1", "65536", ""])
def test_what_is_no_port_is_one_line_that_says_how_to_name_one(port: str) -> None:
    command = [sys.executable, "-m", "demo.portal", port]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{port}: not a port number (example: make portal ARGS=9000)\n"
