"""Tests of rename, enable-token, disable-token, remove and recovery."""

from __future__ import annotations

import re

import pytest

from tests.support.pamconf import Result
from tests.support.site import ME, PIPE, Site, codes, fob, phone

NO_ACCOUNT = "no account has that name (see 'pam-totp list')"
SHOWN = re.compile(r"(?:[0-9A-HJKMNP-TV-Z]{4}-){3}[0-9A-HJKMNP-TV-Z]{4}")


def test_a_token_is_renamed_and_keeps_its_counter(site: Site, way: str) -> None:
    site.enrol(fob(5), phone())
    done = site.command("rename", ME, "fob", "blue fob")
    assert (done.returncode, done.stdout) == (0, f"{ME}: token 'fob' renamed to 'blue fob'\n")
    assert [t.name for t in site.record().tokens] == ["blue fob", "phone"]
    assert site.gets_in(codes(5))
    refused = site.command("rename", ME, "blue fob", "phone")
    assert refused.returncode == 1 and f"{ME} already has a token named 'phone'" in refused.stderr
    assert site.command("rename", ME, "phone", "phone").returncode == 0, "`rename` accepts the current name"
    assert site.command("rename", ME, "nosuch", "x").stderr == (
        f"pam-totp: {ME} has no token named 'nosuch' (see 'pam-totp list {ME}')\n"
    )
    assert [t.name for t in site.record().tokens] == ["blue fob", "phone"]


def test_a_disabled_token_is_refused_until_it_is_enabled(site: Site, way: str) -> None:
    site.enrol()
    assert site.command("disable-token", ME).returncode == 0
    assert not site.gets_in(codes(0))
    assert site.command_json("list", ME)[0]["tokens"][0]["enabled"] is False
    assert site.command("enable-token", ME, "fob").returncode == 0
    assert site.gets_in(codes(0))


def test_only_the_removal_of_the_last_token_asks(site: Site) -> None:
    site.enrol(fob(), phone())
    assert site.command("remove", ME).returncode == 2, "`remove` requires a name if the user has several tokens"
    assert site.command("remove", ME, "phone").returncode == 0
    asked = site.command("remove", ME, stdin="\n")
    assert asked.returncode == 1
    assert "remove the last token" in asked.stdout + asked.stderr or "cancelled" in asked.stderr
    unasked = site.command("remove", ME, stdin="")
    told = "pam-totp: missing answer; nothing was changed (without a terminal, give --yes)"
    assert (unasked.returncode, unasked.stderr.splitlines()[-1]) == (1, told)
    assert len(site.record().tokens) == 1
    assert site.command("remove", ME, stdin="y\n").returncode == 0
    assert not site.path().exists()


def test_recovery_codes_are_accepted_once_and_the_rest_is_counted(site: Site, way: str) -> None:
    site.enrol()
    done = site.command("recovery", ME, *PIPE)
    assert done.returncode == 0
    shown = done.stdout.split()
    assert len(set(shown)) == 10
    assert all(SHOWN.fullmatch(code) for code in shown), "a recovery code has 80 bits, in groups of four characters"
    on_disk = site.path().read_text()
    assert not any(code in on_disk or code.replace("-", "") in on_disk for code in shown)

    first = site.login(shown[0])
    assert first.result is Result.SUCCESS
    assert [m.text for m in first.messages] == ["recovery code used, 9 left"]
    assert not site.gets_in(shown[0]), "a recovery code is accepted once"
    assert site.gets_in(shown[1].lower().replace("-", "")), "case and hyphens are ignored"
    assert site.gets_in(shown[2].translate(str.maketrans("01", "OL"))), "O and L are read as 0 and 1"
    assert "7 unused recovery codes" in site.command("list", ME).stdout
    assert site.command_json("list", ME)[0]["recovery_left"] == 7
    assert site.gets_in(codes(0)), "codes of the token are accepted as before"
    if way == "socket":
        assert site.log.has("accepted", f"user={ME}", "by=recovery", "recovery_left=7")
        assert not any(SHOWN.search(line) for line in site.log.lines())


def test_recovery_codes_outlive_a_change_of_tokens_but_not_new_codes(site: Site) -> None:
    site.enrol()
    old = site.command_json("recovery", ME, "--count", "3", *PIPE)["recovery"]
    assert site.command("enroll", ME, "--yes", *PIPE).returncode == 0
    assert site.command("remove", ME, "fob").returncode == 0
    assert site.command("verify", ME, stdin=old[0] + "\n").returncode == 0
    kept = site.path().read_bytes()
    declined = site.command("recovery", ME, *PIPE, stdin="n\n")
    assert (declined.returncode, declined.stdout) == (1, "")
    assert site.path().read_bytes() == kept
    new = site.command("recovery", ME, "--count", "2", "--yes", *PIPE).stdout.split()
    assert site.command("verify", ME, stdin=old[1] + "\n").returncode == 1
    assert [site.command("verify", ME, stdin=code + "\n").returncode for code in new] == [0, 0]
    assert "all recovery codes are used (see 'pam-totp recovery" in site.command("list", ME).stdout


@pytest.mark.parametrize("count", ["0", "101", "-1", "x"])
def test_a_count_out_of_bounds_is_wrong_usage(site: Site, count: str) -> None:
    site.enrol()
    assert site.command("recovery", ME, f"--count={count}").returncode == 2
    assert site.record().recovery == ()


def test_a_user_without_tokens_gets_no_recovery_codes(site: Site) -> None:
    done = site.command("recovery", "carol", *PIPE)
    assert (done.returncode, done.stderr) == (1, f"pam-totp: unknown user carol: {NO_ACCOUNT}\n")
    assert not site.path("carol").exists()
