"""Tests of forms that a browser sends twice, as at a double click.

The portal makes the change once. The second page reports the change, or an expired form.

test_tokens.py tests the forms for enrolment and recovery codes, and test_signin.py tests old forms.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from pam_totp.core.record import HotpToken
from tests.support.site import KEY, codes, fob
from tests.web.kit import Portal

OTHER, HANDED_OUT = KEY[::-1], b"7" * 20
DONE, OLD = "This change was already made", "This form has expired and was ignored. Nothing was changed."


@pytest.mark.parametrize(
    ("path", "fields", "second_page"),
    [
        ("/rename?token=fob", {"name": "key ring"}, DONE),
        ("/remove?token=fob", {"proof": codes(0, key=OTHER)}, DONE),
        ("/resync?token=fob", {"codes": codes(300, 2)}, "fob is back in step."),
        ("/add-phone/cancel", {}, "Nothing was added."),
        ("/add-token", {"serial": "SM7", "codes": codes(0, 2, HANDED_OUT), "proof": codes(1)}, OLD),
        ("/sign-out", {}, "You are signed out."),
    ],
)
def test_a_form_sent_twice_makes_its_change_once_and_reports_it(
    portal: Portal, path: str, fields: dict[str, str], second_page: str
) -> None:
    waiting = HotpToken(name="SM7", secret=HANDED_OUT, created=0, serial="SM7", confirmed=False)
    portal.site.enrol(fob(), fob(name="other", secret=OTHER), waiting, user="alice")
    browser = portal.signed_in(code=codes(0))
    form = {"csrf_token": browser.open("/").csrf, **fields}
    assert browser.post(path, form).status == 200
    after_first = portal.site.path("alice").read_bytes()
    assert second_page in browser.post(path, form).text
    assert portal.site.path("alice").read_bytes() == after_first


def test_codes_in_a_row_sent_many_times_resynchronise_once(portal: Portal) -> None:
    portal.site.enrol(user="alice")
    browser = portal.signed_in(code=codes(0))
    form = {"csrf_token": browser.open("/").csrf, "codes": codes(300, 2)}
    twins = [portal.browser() for _ in range(8)]
    for twin in twins:
        twin.use_cookie(browser.cookie)
    with ThreadPoolExecutor(8) as threads:
        pages = list(threads.map(lambda twin: twin.post("/resync?token=fob", form, follow=False), twins))
    assert {page.response.headers.get("Location") for page in pages} == {"/"}
    assert sum("what=resync" in line for line in portal.log) == 1
    assert portal.site.counter("alice") == 302


def test_a_code_sent_twice_is_used_once_and_signs_in(portal: Portal) -> None:
    portal.site.enrol(user="alice")
    browser, twin = portal.browser(), portal.browser()
    form = {"csrf_token": browser.sign_in().csrf, "proof": codes(0)}
    twin.use_cookie(browser.cookie)
    assert browser.post("/code", form).heading == "Your tokens"
    page = twin.post("/code", form)
    assert OLD in page.text
    assert "Set-Cookie" not in page.response.headers, "the browser keeps the session of the first response"
    assert (portal.site.counter("alice"), portal.site.record("alice").failures) == (1, 0)
