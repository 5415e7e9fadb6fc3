"""Tests of nullok: the module refuses unknown accounts, and accounts with another name that is enrolled (law 10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from pam_totp.core.settings import Site as SiteFile
from pam_totp.pam.login import Host
from pam_totp.pam.module import pam_sm_authenticate
from tests.conftest import as_root
from tests.logins.test_module import Handle
from tests.support.pamconf import Result
from tests.support.site import ME, Site, codes, fob

# Name -> name in the entry of its uid, for a name service that ignores case, or has two names of an account.
ENTRIES = {"alice": "alice", "ALICE": "alice", "alice@corp": "alice", "bob": "bob"}


def log_in(
    site: Site, user: str, *arguments: str, answers: Sequence[str] = (), entries: Mapping[str, str] = ENTRIES
) -> tuple[int, int, list[str]]:
    """Log `user` in under nullok. Return the result, the number of prompts, and the lines of the log."""
    lines: list[str] = []
    host = Host(site=SiteFile.NONE, log=lambda _, line: lines.append(line), passwd_name=str, name_of_uid=entries.get)
    handle = Handle(*answers)
    handle.get_user = lambda prompt: user  # type: ignore[method-assign]
    result = pam_sm_authenticate(handle, 0, [f"store={site.store}", "nullok", *arguments], host)
    return result, len(handle.shown), lines


def test_an_account_that_is_not_enrolled_passes(site: Site) -> None:
    site.enrol(user="alice")
    assert log_in(site, "bob")[:2] == (Result.IGNORE, 0)


@pytest.mark.parametrize("user", ["carol", "alice\n"])
def test_an_unknown_account_does_not_pass(site: Site, user: str) -> None:
    result, prompts, lines = log_in(site, user, answers=[codes(0)])
    assert (result, prompts) == (Result.AUTHINFO_UNAVAIL, 0)
    assert "unknown account" in lines[-1]


@pytest.mark.parametrize("user", ["ALICE", "alice@corp"])
def test_another_name_of_an_enrolled_account_does_not_pass(site: Site, user: str) -> None:
    assert log_in(site, user)[0] == Result.IGNORE, "the account has no enrolled name"
    for token in (fob(), fob(enabled=False)):
        site.enrol(token, user="alice")
        before = site.path("alice").read_bytes()
        result, prompts, lines = log_in(site, user, answers=[codes(0)])
        assert (result, prompts) == (Result.AUTHINFO_UNAVAIL, 0), "the codes of the enrolled name are refused"
        assert "alice" in lines[-1]
        assert site.path("alice").read_bytes() == before
    site.enrol(fob(confirmed=False), user="alice")
    assert log_in(site, user)[0] == Result.IGNORE, "the user's only token is unconfirmed"


def test_an_enrolled_name_uses_its_own_codes(site: Site) -> None:
    for user in ("alice", "ALICE", "carol"):
        site.enrol(user=user)
        assert log_in(site, user, answers=[codes(0)])[:2] == (Result.SUCCESS, 1)


def test_a_damaged_record_of_the_other_name_denies(site: Site) -> None:
    site.enrol(user="alice")
    site.path("alice").write_text("{}")
    assert log_in(site, "ALICE")[0] == Result.AUTHINFO_UNAVAIL


def test_both_accounts_of_a_line_with_user_must_be_known(site: Site) -> None:
    site.enrol(user="alice")
    assert log_in(site, "carol", "user=bob")[0] == Result.AUTHINFO_UNAVAIL
    assert log_in(site, "alice", "user=carol")[0] == Result.AUTHINFO_UNAVAIL
    assert log_in(site, "bob", "user=ALICE")[0] == Result.AUTHINFO_UNAVAIL
    assert log_in(site, "alice", "user=bob")[0] == Result.IGNORE


def test_the_account_is_looked_up_only_under_nullok(site: Site) -> None:
    def fail(user: str) -> str:
        raise AssertionError("only nullok needs this lookup")

    site.enrol(user="alice")
    host = Host(site=SiteFile.NONE, log=lambda *_: None, passwd_name=str, name_of_uid=fail)
    handle = Handle(codes(0))
    handle.get_user = lambda prompt: "alice"  # type: ignore[method-assign]
    assert pam_sm_authenticate(handle, 0, [f"store={site.store}"], host) == Result.SUCCESS


@as_root
@pytest.mark.parametrize("user", ["no-such-account", ME.upper(), f"{ME}@example.org"])
def test_an_unknown_account_does_not_pass_through_the_relay(site: Site, way: str, user: str) -> None:
    site.enrol()
    site.configure("lenient", "nullok", way, "auth required pam_permit.so")
    done = site.login(codes(0), service="lenient", user=user)
    assert (done.result, done.prompts) == (Result.AUTHINFO_UNAVAIL, ())
    assert site.login(service="lenient", user="nobody").result is Result.SUCCESS
