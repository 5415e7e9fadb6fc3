"""Tests of `FleetLog`: the rights that the log withdraws from members and groups of a restored database."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.record import UserRecord
from pam_totp.operations import audit_log
from pam_totp.operations.restored_fleet import ALLOWED, CLOCKS, ENROLLING, PUT, FleetLog, MemberResult
from pam_totp.store.postgres_fence import MemberRow
from tests.support.site import fob, phone

NOW = 1_700_000_000  # 2023-11-14T22:13:20Z
HEADER = "2023-11-14T22:13:19Z otp1 pam_totp[1]: "
URL = "postgresql://authority@db1/otp"
A, B = "aa" * 32, "bb" * 32


def line(what: str, at: int | None = NOW, **fields: Any) -> str:
    return audit_log.line("pam-totp", "changed", what=what, **fields, store=URL, at=at, by="root")


def log_of(*lines: str) -> FleetLog:
    log = FleetLog(restored_at=NOW, now=NOW)
    log.read(f"{HEADER}{text}" for text in lines)
    return log


def row(**fields: Any) -> MemberRow:
    given: dict[str, Any] = {
        "name": "web1",
        "groups": ("web",),
        "services": None,
        "joined": NOW - 10_000,
        "is_revoked": False,
        "fingerprints": (A,),
    }
    return MemberRow(**given | fields)


def result(*lines: str, **fields: Any) -> MemberResult:
    return log_of(*lines).member(row(**fields))


def test_a_member_without_lines_stays_as_it_is() -> None:
    assert result() == ("web1", False, False, ("web",), None, ())
    assert result(line("member-revoke", member="web2")) == result()


@pytest.mark.parametrize(
    ("at", "joined", "revoked"),
    [
        (NOW, NOW - 10_000, True),
        (NOW - 20_000, NOW - 10_000, False),  # the member joined again before the backup
        (NOW - 10_000 - CLOCKS, NOW - 10_000, True),  # the clocks can differ by CLOCKS
        (NOW - 10_001 - CLOCKS, NOW - 10_000, False),
        (NOW, None, True),
        (None, NOW - 10_000, True),
    ],
)
def test_a_revocation_counts_unless_the_member_joined_later(at: int | None, joined: int | None, revoked: bool) -> None:
    assert result(line("member-revoke", at, member="web1"), joined=joined).revoke is revoked


def test_no_line_ends_a_revocation() -> None:
    lines = [
        line("member-revoke", NOW - 50, member="web1"),
        line("member-join", NOW - 20, member="web1", fingerprint=B),
    ]
    added = line("member-add", NOW - 30, member="web1", groups="web")
    found = result(*lines, added)
    assert (found.revoke, found.notes) == (True, ("revoked", "joined again since the revocation: add it again"))
    again = result(*lines, added, is_revoked=True)
    assert (again.revoke, again.rejoin, again.notes) == (False, False, found.notes[1:])


def test_a_member_with_a_later_certificate_must_join_again() -> None:
    old, new = (line(what, at, member="web1", fingerprint=f) for what, at, f in
                (("member-join", NOW - 9000, A), ("member-renew", NOW - 50, B)))  # fmt: skip
    assert result(old, new).rejoin
    assert result(new).rejoin
    assert not result(old).rejoin
    assert not result(old, new, fingerprints=(A, B)).rejoin, "the backup contains the renewed certificate"
    assert not result(line("member-join", NOW - 20_000, member="web1", fingerprint=B)).rejoin, "an older certificate"
    assert not result(line("member-join", member="web1", authorities="a")).rejoin, "the member itself wrote this line"
    assert not result(new, is_revoked=True).rejoin


def test_a_member_keeps_only_groups_and_services_that_its_last_line_has() -> None:
    first = line("member-add", NOW - 90, member="web1", groups="a,b,c")
    last = line("member-add", NOW - 50, member="web1", groups="b,d", services="sshd, sudo")
    found = result(last, first, groups=("a", "b"))
    assert (found.groups, found.services) == (("b",), ("sshd", "sudo"))
    assert found.notes == ("groups given since the backup: d", "no longer in a", "only for sshd, sudo")
    found = result(last, groups=("b", "d"), services=("cron", "sudo"))
    assert (found.groups, found.services) == (("b", "d"), ("sudo",))
    assert result(first, groups=("a", "b", "c")).notes == ()
    assert result(first, groups=("a",), services=("sshd",)).services == ("sshd",)


def test_no_later_line_undoes_a_withdrawal_of_a_group_or_service() -> None:
    taken = line("member-add", NOW - 90, member="web1", groups="a", services="sshd")
    again = line("member-add", NOW - 50, member="web1", groups="a,b", services="sshd, sudo")
    every = line("member-add", NOW - 40, member="web1", groups="a,b")
    found = result(taken, again, every, groups=("a", "b"), services=("sshd", "sudo"))
    assert (found.groups, found.services) == (("a",), ("sshd",))
    assert found.notes[:2] == ("groups given since the backup: b", "all services were permitted since the backup")
    earlier = line("member-add", NOW - 10_001, member="web1", groups="a", services="sshd")
    assert result(earlier, again, groups=("a", "b")).groups == ("a", "b"), "the member joined after the line"
    none = [line("member-add", NOW - 9, member="web1", groups="a", services=word) for word in ("x", "y", "z")]
    assert result(*none, groups=("a",)).services == ()


def test_members_that_the_backup_lacks_are_listed() -> None:
    log = log_of(
        line("member-add", NOW - 60, member="web2", groups="web"),
        line("member-join", NOW - 50, member="web3", fingerprint=A),
        line("member-add", NOW - 60, member="web4", groups="web"),
        line("member-revoke", NOW - 50, member="web4"),
        line("member-add", NOW - 60, member="web1", groups="web"),
        line("member-add", NOW - 60, member="Bad Name", groups="web"),
    )
    assert log.missing_members(["web1"]) == ["web2", "web3"]


def test_a_withdrawn_pair_stays_withdrawn_and_a_given_one_is_listed() -> None:
    log = log_of(
        line("member-deny", NOW - 50, group="web", names="all"),
        line("member-allow", NOW - 40, group="web", names="all"),
        line("member-allow", NOW - 40, group="db", names="staff"),
        line("member-take", NOW - 50, group="staff", names="zoe,yan"),
        line("member-put", NOW - 60, group="staff", names="yan"),
        line("member-put", NOW - 60, group="staff", names="a, b"),
    )
    assert log.pairs(ALLOWED, [("web", "all"), ("mail", "all")]) == (
        (("web", "all"),),
        (("db", "staff"), ("web", "all")),
    )
    there = [("staff", name) for name in ("zoe", "yan", "xi")]
    taken = (("staff", "yan"), ("staff", "zoe"))
    assert log.pairs(PUT, there).withdrawn == taken
    assert ("staff", "yan") not in log.pairs(PUT, there).lost
    assert log.pairs(PUT, [("staff", "a, b")]).withdrawn == ()


def test_the_permission_to_enrol_is_withdrawn_like_others() -> None:
    log = log_of(
        line("member-enroll", NOW - 50, group="web", enroll="off"),
        line("member-enroll", NOW - 60, group="web", enroll="ticket"),
        line("member-enroll", NOW - 60, group="db", enroll="ticket"),
        line("member-enroll", NOW - 60, group="db", enroll="?"),
    )
    there = [("web", "ticket"), ("mail", "ticket")]
    assert log.pairs(ENROLLING, there) == ((("web", "ticket"),), (("db", "ticket"),))


def test_lines_about_any_database_count_and_those_about_folders_do_not() -> None:
    removed = {"user": "alice", "what": "remove", **audit_log.of_token(phone()), "at": NOW - 5}
    record = UserRecord(user="alice", tokens=(fob(), phone()))

    def tokens(store: str) -> int:
        text = audit_log.line("pam-totp", "changed", **removed, store=store)
        forwarded = log_of(text).forward(record).record
        assert forwarded is not None
        return len(forwarded.tokens)

    assert [tokens(store) for store in (URL, f"postgresql://{'x' * 400}", "/srv/other")] == [1, 1, 2]


ADDRESSES = ("otp1.example.org:8443", "otp2.example.org:8443")


def test_the_hosts_of_answers_and_of_changes_are_authorities() -> None:
    log = FleetLog(restored_at=NOW, now=NOW)
    answer = audit_log.line("sshd", "accepted", user="alice", by="code", member="web1")
    of_member = audit_log.line("sshd", "accepted", user="alice", by="code", authority="otp1:8443")
    joined = audit_log.line("pam-totp", "changed", what="member-join", member="web1", at=NOW)
    hosts = {"otp1": answer, "otp2": line("enroll", user="alice"), "web1": of_member, "web2": joined}
    log.read(HEADER.replace("otp1", host) + text for host, text in hosts.items())
    log.read([HEADER.replace("otp1", "otp3").replace(":19Z", ":20Z") + answer])
    assert log.count_authorities(ADDRESSES) == 2
    assert log.authorities == {"otp1", "otp2"}, "lines after the restore are ignored"


def test_a_host_that_only_uses_the_database_is_no_authority() -> None:
    log = log_of(audit_log.line("sshd", "accepted", user="alice", by="code", member="web1"))
    log.read([HEADER.replace("otp1", "portal1") + line("enroll", user="alice")])
    assert log.count_authorities(ADDRESSES) == 1
    assert log.authorities == {"otp1"}


@pytest.mark.parametrize(
    ("hosts", "count"),
    [
        (("otp1", "otp1.example.org", "OTP1"), 1),
        (("otp.east.example.org", "otp.west.example.org"), 2),
        (("192.0.2.1", "192.0.2.10", "192.0.2.2"), 3),
    ],
)
def test_the_short_and_the_full_name_of_a_host_are_one_authority(hosts: tuple[str, ...], count: int) -> None:
    log = log_of()
    answer = audit_log.line("sshd", "accepted", user="alice", by="code", member="web1")
    log.read(HEADER.replace("otp1", host) + answer for host in hosts)
    assert log.count_authorities(ADDRESSES) == count


@pytest.mark.parametrize("restored_at", [None, NOW])
def test_lines_without_the_name_of_a_host_show_no_authority(restored_at: int | None) -> None:
    log = FleetLog(restored_at=restored_at, now=NOW)
    log.read(audit_log.line("sshd", "accepted", user="a", member="web1", rhost=f"host{n}") for n in range(3))
    assert (log.lines, log.authorities) == (3, set())


def test_an_incomplete_log_demands_codes_in_a_row_and_uses_up_steps() -> None:
    log = log_of()
    log.is_complete = False
    tokens = (fob(3), phone(last_step=7), phone(name="fast", secret=b"k" * 20, drift=2, last_step=NOW))
    record = log.forward(UserRecord(user="alice", tokens=tokens)).record
    assert record is not None
    assert [token.row_needed for token in record.tokens] == [True] * 3
    assert [token.next_factor for token in record.tokens] == [3, NOW // 30 + 1, NOW + 1]
    stocked, notes = log.forward_stock(phone(serial="1"))
    assert (stocked.row_needed, stocked.next_factor, notes) == (True, NOW // 30 + 1, ["codes in a row needed"])


WHAT = st.sampled_from(["member-add", "member-revoke", "member-join", "member-renew", "member-allow", "member-deny",
                        "member-put", "member-take", "member-enroll"])  # fmt: skip
TEXT = st.one_of(st.sampled_from(["web", "web1", "all", "staff", "sshd", "sshd, sudo", A, B, "1", str(NOW)]), st.text())
FIELDS = st.dictionaries(
    st.sampled_from(["member", "groups", "services", "fingerprint", "group", "names", "at"]), TEXT, max_size=7
)


@given(st.lists(st.tuples(WHAT, FIELDS), max_size=8))
def test_no_log_gives_a_right(changes: list[tuple[str, dict[str, str]]]) -> None:
    log = log_of(*(audit_log.line("x", "changed", what=what, **fields) for what, fields in changes))
    before = row(groups=("web", "db"), services=("sshd", "sudo"))
    found = log.member(before)
    assert {*found.groups} <= {*before.groups}
    assert {*(found.services or ("?",))} <= {"sshd", "sudo", "?"}
    revoked = log.member(row(is_revoked=True))
    assert (revoked.revoke, revoked.rejoin) == (False, False)
    there = {("web", "all"), ("db", "staff")}
    assert {*log.pairs(ALLOWED, there).withdrawn} <= there
    assert all(name.isprintable() for name in log.missing_members([]))
