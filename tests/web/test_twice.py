"""A form sent twice, as by two clicks where no script stops the second: done once, and the second page says so.

Twins of the forms that enrol and that make recovery codes are in test_tokens.py, old forms in test_signin.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pam_totp.core.record import HotpToken
from tests.site import KEY, codes, fob
from tests.web.kit import Portal

OTHER, HANDED_OUT = KEY[::-1], b"7" * 20
DONE, OLD = "That was done already", "This form is from an earlier page, and was not used. Nothing was changed."


@pytest.mark.parametrize(
    ("path", "fields", "second"),
    [
        ("/rename?token=fob", {"name": "key ring"}, DONE),
        ("/remove?token=fob", {"proof": codes(0, key=OTHER)}, DONE),
        ("/resync?token=fob", {"codes": codes(300, 2)}, "fob is back in step."),
        ("/add-phone/cancel", {}, "Nothing was added."),
        ("/add-token", {"serial": "SM7", "codes": codes(0, 2, HANDED_OUT), "proof": codes(1)}, OLD),
        ("/sign-out", {}, OLD),
    ],
)
def test_it_is_done_once_and_the_second_page_says_so(
    portal: Portal, path: str, fields: dict[str, str], second: str
) -> None:
    waiting = HotpToken(name="SM7", secret=HANDED_OUT, created=0, serial="SM7", confirmed=False)
    portal.site.enrol(fob(), fob(name="other", secret=OTHER), waiting, user="alice")
    browser = portal.signed_in(code=codes(0))
    form = {"csrf_token": browser.open("/").csrf, **fields}
    assert browser.post(path, form).status == 200
    done = portal.site.path("alice").read_bytes()
    assert second in browser.post(path, form).text
    assert portal.site.path("alice").read_bytes() == done


def test_codes_in_a_row_that_are_sent_many_times_at_once_are_used_once_and_all_are_told_so(portal: Portal) -> None:
    portal.site.enrol(user="alice")
    browser = portal.signed_in(code=codes(0))
    form = {"csrf_token": browser.open("/").csrf, "codes": codes(300, 2)}
    twins = [portal.browser() for _ in range(8)]
    for twin in twins:
        twin.use_cookie(browser.cookie)
    with ThreadPoolExecutor(8) as many:
        pages = list(many.map(lambda twin: twin.post("/resync?token=fob", form, follow=False), twins))
    assert {page.response.headers.get("Location") for page in pages} == {"/"}
    assert sum("by=resync" in line for line in portal.log) == 1
    assert portal.site.counter("alice") == 302


def test_a_code_sent_twice_is_used_once_and_the_first_answer_counts(portal: Portal) -> None:
    portal.site.enrol(user="alice")
    browser, twin = portal.browser(), portal.browser()
    form = {"csrf_token": browser.sign_in().csrf, "proof": codes(0)}
    twin.use_cookie(browser.cookie)
    assert browser.post("/code", form).heading == "Your tokens"
    page = twin.post("/code", form)
    assert OLD in page.text
    assert "Set-Cookie" not in page.response.headers, "the session of the first answer stays the browser's"
    assert (portal.site.counter("alice"), portal.site.record("alice").failures) == (1, 0)
