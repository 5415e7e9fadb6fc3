"""Tests of replace: a new key for a lost token."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pexpect
import pytest

from pam_totp.core.oath import totp
from pam_totp.core.record import TotpToken
from pam_totp.core.secretfile import base32
from pam_totp.formats.otpauth import from_uri
from tests.support.site import KEY, ME, PIPE, Site, codes, fob, phone
from tests.support.terminals import QUESTION, drawn, on_terminal, scanned


def test_the_old_key_is_valid_until_the_new_key_is_confirmed(site: Site, tmp_path: Path) -> None:
    site.enrol(fob(5), phone(), failures=3, failures_at=0)
    recovery = site.command("recovery", ME, *PIPE).stdout.split()
    old = phone()
    child = on_terminal(site, "replace", ME, "phone")
    child.expect_exact(QUESTION)
    new = from_uri(scanned(drawn(re.sub(r"\x1b\[[0-9;]*m", "", child.before)), tmp_path), "phone", 0)
    assert new.secret != old.secret
    now = int(time.time())
    assert site.command("verify", ME, totp(old.secret, now)).returncode == 0, "the old key is valid before the answer"
    child.sendline("000000")
    child.expect_exact("wrong answer (enter a code from this token)")
    assert old.secret in {token.secret for token in site.record().tokens}
    child.sendline(totp(new.secret, int(time.time())))
    child.expect_exact("token 'phone' has a new key; codes of the old key are refused")
    child.expect(pexpect.EOF)
    record = site.record()
    assert [(token.name, token.secret) for token in record.tokens] == [("fob", KEY), ("phone", new.secret)]
    assert site.command("verify", ME, totp(old.secret, now + 30)).returncode == 1
    assert site.command("verify", ME, totp(new.secret, int(time.time()) + 30)).returncode == 0
    assert site.command("verify", ME, codes(5)).returncode == 0, "other tokens are unchanged"
    assert site.command("verify", ME, stdin=f"{recovery[0]}\n").returncode == 0, "the recovery codes are unchanged"


def test_a_replacement_that_fails_keeps_the_old_token(site: Site) -> None:
    site.enrol(phone())
    before = site.path().read_bytes()
    assert site.command("replace", ME, *PIPE, stdin="000000\n" * 3).returncode == 1
    child = on_terminal(site, "replace", ME)
    child.expect_exact(QUESTION)
    child.sendintr()
    child.expect_exact("interrupted; nothing was changed")
    assert site.path().read_bytes() == before


def test_a_new_token_has_the_properties_of_the_old_token(site: Site) -> None:
    site.enrol(phone(name="clock", digits=8, period=60, algorithm="SHA256", serial="S-1", enabled=False))
    shown = site.command_json("replace", ME, "clock", "--yes", *PIPE)
    (token,) = site.record().tokens
    assert isinstance(token, TotpToken)
    assert (token.name, token.digits, token.period, token.algorithm) == ("clock", 8, 60, "SHA256")
    assert (token.serial, token.enabled, token.confirmed) == (None, True, True)
    assert from_uri(shown["uri"], "clock", 0).secret == token.secret
    words = ("--type", "hotp", "--digits", "6", "--algorithm", "SHA1", "--counter", "7", "--serial", "S-2")
    done = site.command("replace", ME, "--secret-stdin", "--yes", *words, stdin=f"{base32(KEY)}\n")
    assert done.returncode == 0, done.stderr
    (token,) = site.record().tokens
    assert (token.type, token.serial, token.secret, site.counter()) == ("hotp", "S-2", KEY, 7)


@pytest.mark.parametrize("meanwhile", ["remove", "replace"])
def test_a_token_that_changed_meanwhile_is_not_replaced(site: Site, meanwhile: str) -> None:
    site.enrol(fob(), phone())
    child = on_terminal(site, "replace", ME, "phone", "--qr", "none")
    child.expect_exact("then the code it shows: ")
    key = "".join(re.findall(r"\b[A-Z2-7]{4}\b", child.before))
    more = PIPE if meanwhile == "replace" else ()
    assert site.command(meanwhile, ME, "phone", *(("--yes",) if more else ()), *more).returncode == 0
    before = site.path().read_bytes()
    child.sendline(totp(from_uri(f"otpauth://totp/x?secret={key}", "x", 0).secret, int(time.time())))
    child.expect_exact("was changed or removed meanwhile; nothing was changed")
    child.expect(pexpect.EOF)
    assert site.path().read_bytes() == before


def test_a_key_that_another_token_has_is_refused(site: Site) -> None:
    site.enrol(fob(), phone())
    done = site.command("replace", ME, "phone", "--secret-stdin", "--yes", stdin=f"{base32(KEY)}\n")
    assert (done.returncode, done.stderr) == (1, "pam-totp: tokens: duplicate secret\n")
