"""Tests of the desk: the permissions of a desk member, and the entries in the record and in the log."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.cli import desk as command
from pam_totp.cli.desk import IDLE, TOTAL
from pam_totp.core.answer import Answer
from pam_totp.core.policy import Policy
from pam_totp.core.record import Token, UserRecord
from pam_totp.core.settings import SettingsError, parse_site
from pam_totp.core.verify import Outcome, Tickets, verify
from pam_totp.operations import stock
from pam_totp.operations.desk import (
    MOST_FOUND,
    PROTECTED,
    Desk,
    DeskError,
    DeskSettings,
    Found,
    Person,
    Reason,
    RecentChange,
    desk_settings,
    recent_changes,
)
from pam_totp.operations.enroll import new_recovery_codes
from pam_totp.operations.self_service import Asking, Factors
from pam_totp.store import Store
from pam_totp.store.file import FileStore
from pam_totp.store.stock import StockEntry, stock_of
from tests.core.backends import Database, Folder
from tests.support.cluster import with_postgresql
from tests.support.desk import Host
from tests.support.site import codes, fob, phone

NOW = 1_800_000_000
HOUR, DAY = 3600, 86_400
KEY_TEXT = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # KEY in base32


class Bench:
    """A desk with a store. `lines` lists the lines of the log."""

    def __init__(self, store: Store, protect: tuple[str, ...] = ()) -> None:
        self.store = store
        self.host = Host()
        self.lines: list[str] = []
        self.now = NOW
        sink = lambda _, line: self.lines.append(line)  # noqa: E731
        factors = Factors(self.store, policy=Policy(), service="desk", sink=sink, now=lambda: self.now)
        self.desk = Desk(
            self.store,
            factors,
            settings=DeskSettings(group="helpdesk", protect=protect),
            accounts=self.host,
            service="desk",
            sink=sink,
            now=lambda: self.now,
            issuer="Example",
        )

    def enrol(self, user: str, *tokens: Token, **fields: Any) -> None:
        record = UserRecord(user=user, tokens=tokens, **fields)
        self.store.update(user, lambda _: (record, None), create=True)

    def add_stock(self, *serials: str) -> None:
        entries = [
            StockEntry(
                serial=s,
                batch="box 1",
                imported=NOW,
                token=fob(name="token", serial=s, secret=s.encode() * 5, confirmed=False),
            )
            for s in serials
        ]
        assert stock_of(self.store).add(entries) == [None] * len(entries)

    def person(self, user: str = "alice") -> Person:
        return self.desk.person("dora", user)

    def log_in(self, answer: str, user: str = "alice", tickets: Tickets = Tickets.NONE) -> Outcome:
        decision = verify(self.store.read(user), Answer.parse(answer.encode()), self.now, Policy(), tickets=tickets)
        self.store.update(user, lambda _: (decision.record, None))
        return decision.outcome


@pytest.fixture
def bench(folder: Path) -> Bench:
    return Bench(Folder(folder).store())


@pytest.fixture(params=["file", pytest.param("postgresql", marks=with_postgresql)])
def either(request: pytest.FixtureRequest) -> Bench:
    """Return a desk with a store in a folder, or in PostgreSQL, where the time is that of the database."""
    if request.param == "file":
        return Bench(Folder(request.getfixturevalue("folder")).store())
    return Bench(Database(request.getfixturevalue("postgresql"), request.getfixturevalue("database")).store())


def changes(desk: Desk, user: str) -> dict[str, Callable[[str], object]]:
    """Return the changes that the desk can make for a user with the fob S-OLD while S-1 is in stock, by name."""
    return {
        "unlock": lambda by: desk.unlock(by, user),
        "temporary code": lambda by: desk.temporary_code(by, user),
        "ticket": lambda by: desk.ticket(by, user),
        "disable": lambda by: desk.disable(by, user, "fob"),
        "disable everything": lambda by: desk.disable(by, user),
        "enable": lambda by: desk.enable(by, user, "fob"),
        "assign": lambda by: desk.assign(by, "S-1", user),
        "replace": lambda by: desk.replace(by, "S-OLD", "S-1"),
    }


CHANGES = list(changes(None, ""))  # type: ignore[arg-type]


def refused(reason: Reason, do: Callable[[], object]) -> None:
    with pytest.raises(DeskError) as caught:
        do()
    assert caught.value.reason is reason


# ---- permissions


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("by", "user", "reason"),
    [
        ("alice", "bob", Reason.NOT_AT_THE_DESK),
        ("nobody", "bob", Reason.NOT_AT_THE_DESK),
        ("dora", "root", Reason.ROOT_ONLY),
        ("dora", "toor", Reason.ROOT_ONLY),
        ("dora", "dora", Reason.ROOT_ONLY),
        ("dora", "dieter", Reason.ROOT_ONLY),
        ("dora", "dieter-2", Reason.ROOT_ONLY),
        ("dora", "prima", Reason.ROOT_ONLY),
        ("prima", "dora", Reason.ROOT_ONLY),
        ("dora", "admin", Reason.ROOT_ONLY),
        ("dora", "gone", Reason.NO_ACCOUNT),
        ("dora", "Bob", Reason.NO_ACCOUNT),
        ("dora", "", Reason.NO_ACCOUNT),
        ("dora", "bob\0", Reason.NO_ACCOUNT),
        ("dora", "b\udcffb", Reason.NO_ACCOUNT),
    ],
)
def test_a_change_that_is_not_the_desks_to_make_changes_nothing(
    either: Bench, change: str, by: str, user: str, reason: Reason
) -> None:
    either.host.spellings["Bob"] = "bob"  # a name service that ignores the case: the caller must use the entry's name
    if user.isprintable() and user:
        either.enrol(user, fob(serial="S-OLD"))
    either.add_stock("S-1")
    before = {name: either.store.read(name) for name in either.store.users()}
    either.lines.clear()
    if change == "replace" and not (user.isprintable() and user):
        reason = Reason.NOT_ASSIGNED
    refused(reason, lambda: changes(either.desk, user)[change](by))
    assert {name: either.store.read(name) for name in either.store.users()} == before
    item = stock.find(either.store, "S-1")
    assert item is not None
    assert item.user is None
    if reason is not Reason.NOT_ASSIGNED:
        (line,) = either.lines
        assert line.startswith("pam_totp(desk:auth): denied user=")
        assert f"reason={reason.value}" in line
        assert f" by={by}" in line


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_logged_with_both_names_and_noted_in_the_record(either: Bench, change: str) -> None:
    either.enrol("alice", fob(serial="S-OLD"))
    either.add_stock("S-1")
    changes(either.desk, "alice")[change]("dora")
    assert all(" user=alice " in line and line.endswith(" by=dora") for line in either.lines)
    assert either.lines[0].startswith("pam_totp(desk:auth): changed ")
    assert KEY_TEXT not in "".join(either.lines)
    (noted,) = recent_changes(either.store.read("alice"))
    assert noted.by == "dora"
    logged = re.search(r" at=(\d+) ", either.lines[0])
    assert logged is not None
    assert int(logged[1]) - noted.at in (0, 1), "a second can begin between the change and its line"


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_makes_an_enrolled_user_unenrolled(either: Bench, change: str) -> None:
    either.enrol("alice", fob(serial="S-OLD"))
    either.add_stock("S-1")
    changes(either.desk, "alice")[change]("dora")
    assert either.store.read("alice").enrolled


@pytest.mark.parametrize("change", CHANGES)
def test_a_member_who_leaves_the_group_meanwhile_changes_nothing(either: Bench, change: str) -> None:
    """The desk member leaves the group after the first check, and before the check under the lock."""
    either.enrol("alice", fob(serial="S-OLD"))
    either.add_stock("S-1")
    looks = []

    def leave() -> None:
        looks.append(1)
        if len(looks) > 1 + 1 + len(PROTECTED):  # the look-ups of the first check
            either.host.groups["helpdesk"] = (500, {"dieter"})

    either.host.before = leave
    before = either.store.read("alice")
    refused(Reason.NOT_AT_THE_DESK, lambda: changes(either.desk, "alice")[change]("dora"))
    assert either.store.read("alice") == before
    item = stock.find(either.store, "S-1")
    assert item is not None
    assert item.user is None


@pytest.mark.parametrize("change", CHANGES)
def test_only_root_changes_a_user_who_joins_the_desk_meanwhile(either: Bench, change: str) -> None:
    either.enrol("alice", fob(serial="S-OLD"))
    either.add_stock("S-1")
    looks = []

    def join() -> None:
        looks.append(1)
        if len(looks) > 1 + 1 + len(PROTECTED):
            either.host.groups["helpdesk"] = (500, {"dora", "alice"})

    either.host.before = join
    before = either.store.read("alice")
    refused(Reason.ROOT_ONLY, lambda: changes(either.desk, "alice")[change]("dora"))
    assert either.store.read("alice") == before


def test_a_serial_number_that_moves_to_root_meanwhile_is_not_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.enrol("root", fob(serial="S-OLD"))
    bench.add_stock("S-1")
    first = iter(["alice"])  # the first look-up returns the old owner
    real = FileStore.owner_of_serial
    monkeypatch.setattr(FileStore, "owner_of_serial", lambda self, serial: next(first, None) or real(self, serial))
    refused(Reason.NOT_ASSIGNED, lambda: bench.desk.replace("dora", "S-OLD", "S-1"))
    assert [t.serial for t in bench.store.read("root").tokens] == ["S-OLD"]


def test_without_the_group_nobody_is_a_member(bench: Bench) -> None:
    del bench.host.groups["helpdesk"]
    assert not bench.desk.is_member("dora")
    refused(Reason.NOT_AT_THE_DESK, lambda: bench.desk.find("dora", "alice"))
    refused(Reason.NOT_AT_THE_DESK, lambda: bench.desk.person("dora", "alice"))
    refused(Reason.NOT_AT_THE_DESK, lambda: bench.desk.free("dora"))


@pytest.mark.parametrize("protect", [("admins",), ("root", "admins")])
def test_while_an_added_group_is_unknown_the_desk_changes_nothing(folder: Path, protect: tuple[str, ...]) -> None:
    """A group is unknown if, for example, the directory fails, or the site file misspells the group."""
    bench = Bench(Folder(folder).store(), protect)
    bench.enrol("alice", fob())
    refused(Reason.ROOT_ONLY, lambda: bench.desk.ticket("dora", "alice"))
    bench.host.groups["admins"] = (502, {"bob"})
    assert bench.desk.denied("dora", "alice") is None
    assert bench.desk.denied("dora", "bob") is Reason.ROOT_ONLY


@pytest.mark.parametrize("group", PROTECTED)
def test_a_list_of_groups_adds_to_the_protected_groups(folder: Path, group: str) -> None:
    bench = Bench(Folder(folder).store(), ("admins",))
    bench.host.groups |= {"admins": (502, set()), group: (503, {"bob"})}
    assert bench.desk.denied("dora", "bob") is Reason.ROOT_ONLY


# ---- the desk's view of users and tokens


def test_the_desk_sees_no_key_and_no_digest(bench: Bench) -> None:
    record, shown = new_recovery_codes(UserRecord(user="alice", tokens=(fob(), phone())), 3)
    bench.enrol("alice", *record.tokens, salt=record.salt, recovery=record.recovery)
    bench.desk.ticket("dora", "alice")
    bench.desk.temporary_code("dora", "alice")
    stored = bench.store.read("alice")
    assert stored.ticket is not None and stored.temporary is not None
    seen = _everything(bench.person())
    secrets = [*(t.secret for t in stored.tokens), *stored.recovery, *shown, stored.salt, stored.ticket.digest]
    secrets += [stored.ticket.picture, stored.temporary.digest]
    assert not [s for s in secrets if s is not None and (s in seen or repr(s) in "".join(map(repr, seen)))]


def _everything(value: object) -> list[object]:
    if hasattr(value, "__slots__") and not isinstance(value, str):
        return [x for name in value.__slots__ for x in _everything(getattr(value, name))]
    if hasattr(value, "_fields"):
        return [x for name in value._fields for x in _everything(getattr(value, name))]
    if isinstance(value, tuple):
        return [x for each in value for x in _everything(each)]
    return [value]


def test_a_person_shows_what_is_pending_and_only_until_its_end(bench: Bench) -> None:
    bench.enrol("alice", fob(), failures=3, failures_at=NOW)
    bench.desk.ticket("dora", "alice", 2 * HOUR)
    bench.desk.temporary_code("dora", "alice", HOUR)
    seen = bench.person()
    assert (seen.failures, seen.recovery_left, seen.denied) == (3, 0, None)
    assert [(t.name, t.state) for t in seen.tokens] == [("fob", "active"), ("phone", "unconfirmed")]
    assert (seen.ticket, seen.ticket_ends, seen.temporary_ends) == ("phone", NOW + 2 * HOUR, NOW + HOUR)
    assert [c.what for c in seen.changes] == ["invite", "temporary-code"]
    bench.now += HOUR
    assert (bench.person().ticket, bench.person().temporary_ends) == ("phone", None)
    bench.now += HOUR
    assert bench.person().ticket is None


def test_a_view_is_logged_with_both_names(bench: Bench) -> None:
    bench.enrol("root", fob())
    seen = bench.person("root")
    assert (seen.denied, len(seen.tokens)) == (Reason.ROOT_ONLY, 1)
    assert bench.lines == [f"pam_totp(desk:auth): viewed user=root what=desk at={NOW} by=dora"]
    assert bench.person("bob").tokens == (), "a user without a record"
    refused(Reason.NO_ACCOUNT, lambda: bench.person("gone"))


def test_users_are_found_by_name_serial_number_and_part_of_a_name(bench: Bench) -> None:
    bench.enrol("alice", fob(serial="S-OLD"))
    bench.enrol("ÀLINE+x@example.org")
    bench.add_stock("S-1")

    def find(text: str) -> Found:
        return bench.desk.find("dora", text)

    assert find("alice").users == ("alice",)
    assert find("s-old").users == ("alice",)
    assert find("S-1").users == ()
    item = find("S-1").item
    assert item is not None
    assert (item.serial, item.batch, item.state, item.user) == ("S-1", "box 1", "new", None)
    assert find("ALI").users == ("alice",)
    assert find("example.ORG").users == ("ÀLINE+x@example.org",)
    assert find("bob").users == ("bob",), "an account without a record"
    assert find("").users == find("no such").users == find("\0").users == ()
    for number in range(MOST_FOUND + 5):
        bench.enrol(f"many{number}")
    assert len(find("many").users) == MOST_FOUND


@given(st.text(max_size=40))
def test_a_search_for_any_text_finds_users_or_nothing(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o700)
        found = Bench(FileStore(folder)).desk.find("dora", text)
        assert found.users in ((), (text,))


# ---- the changes


def test_a_temporary_code_opens_one_login_before_its_end(bench: Bench) -> None:
    bench.enrol("alice", fob())
    handed = bench.desk.temporary_code("dora", "alice", HOUR)
    assert handed.code not in repr(handed)
    assert handed.code.replace("-", "") not in "".join(bench.lines)
    assert handed.ends == NOW + HOUR
    bench.now += HOUR
    assert bench.log_in(handed.code) is Outcome.WRONG, "after its expiry"
    bench.now -= 1
    assert bench.log_in(handed.code) is Outcome.TEMPORARY
    assert bench.log_in(handed.code) is Outcome.WRONG, "a second time"


def test_a_new_temporary_code_ends_the_earlier_one(bench: Bench) -> None:
    bench.enrol("alice", fob())
    first, second = (bench.desk.temporary_code("dora", "alice").code for _ in range(2))
    assert bench.log_in(first) is Outcome.WRONG
    assert bench.log_in(second) is Outcome.TEMPORARY


@pytest.mark.parametrize("valid", [-1, 0, 59, DAY + 1, 10**20])
def test_a_temporary_code_is_valid_for_a_minute_to_a_day(bench: Bench, valid: int) -> None:
    bench.enrol("alice", fob())
    refused(Reason.INVALID_TIME, lambda: bench.desk.temporary_code("dora", "alice", valid))
    refused(Reason.INVALID_TIME, lambda: bench.desk.ticket("dora", "alice", valid if valid < DAY else 90 * valid))
    assert bench.store.read("alice").temporary is None


def test_an_unenrolled_user_gets_a_ticket_and_no_temporary_code(bench: Bench) -> None:
    refused(Reason.NO_TOKENS, lambda: bench.desk.temporary_code("dora", "alice"))
    handed = bench.desk.ticket("dora", "alice")
    refused(Reason.NOT_CONFIRMED, lambda: bench.desk.temporary_code("dora", "alice"))
    assert handed.token == "phone"
    assert not handed.replaces
    assert bench.log_in(handed.code, tickets=Tickets.UNENROLLED) is Outcome.TICKET


def test_a_ticket_of_an_enrolled_user_says_that_it_replaces(bench: Bench) -> None:
    bench.enrol("alice", phone())
    handed = bench.desk.ticket("dora", "alice")
    assert handed.replaces
    assert bench.log_in(handed.code, tickets=Tickets.UNENROLLED) is not Outcome.TICKET, "a login refuses the ticket"
    assert not bench.desk.temporary_code("dora", "alice").replaces


def test_a_ticket_for_a_key_fob_names_an_unconfirmed_token(bench: Bench) -> None:
    bench.add_stock("S-1")
    given = bench.desk.assign("dora", "S-1", "alice")
    assert (given.serial, given.state) == ("S-1", "unconfirmed")
    assert bench.desk.ticket("dora", "alice", token=given.name).token == given.name
    record = bench.store.read("alice")
    assert record.ticket is not None
    assert record.ticket.picture is None, "the ticket must contain no QR code of the key"
    bench.enrol("bob", fob())
    refused(Reason.TOKEN_CONFIRMED, lambda: bench.desk.ticket("dora", "bob", token="fob"))
    refused(Reason.NO_SUCH_TOKEN, lambda: bench.desk.ticket("dora", "bob", token="none"))


def test_a_user_with_all_tokens_gets_no_ticket(bench: Bench) -> None:
    bench.enrol("alice", *(fob(name=f"t{i}", secret=bytes([i]) * 20) for i in range(8)))
    refused(Reason.TOO_MANY_TOKENS, lambda: bench.desk.ticket("dora", "alice"))


def test_disabling_a_user_ends_every_way_to_pass(bench: Bench) -> None:
    record, recovery = new_recovery_codes(UserRecord(user="alice", tokens=(fob(), phone())), 3)
    bench.enrol("alice", *record.tokens, salt=record.salt, recovery=record.recovery)
    temporary = bench.desk.temporary_code("dora", "alice").code
    ticket = bench.desk.ticket("dora", "alice").code
    assert bench.desk.disable("dora", "alice") == ("fob", "phone", "phone 2")
    for answer in (codes(0), codes(0, 2), recovery[0], temporary):
        assert not bench.log_in(answer).accepted, answer
    assert bench.log_in(ticket, tickets=Tickets.EVERYBODY) is not Outcome.TICKET
    assert [line.partition("what=")[2].split()[:2] for line in bench.lines[-4:]] == [
        ["disable-token", "token=fob"],
        ["disable-token", "token=phone"],
        ["disable-token", 'token="phone'],
        ["recovery", "codes=0"],
    ], "'pam-totp restored' reads a line for each token"
    assert bench.desk.enable("dora", "alice", "fob") == ("fob",)
    assert bench.log_in(codes(1)) is Outcome.CODE


def test_a_disabled_token_leaves_the_others(bench: Bench) -> None:
    bench.enrol("alice", fob(), fob(name="other", secret=b"x" * 20))
    assert bench.desk.disable("dora", "alice", "other") == ("other",)
    assert [t.enabled for t in bench.store.read("alice").tokens] == [True, False]
    refused(Reason.NO_SUCH_TOKEN, lambda: bench.desk.disable("dora", "alice", "none"))
    refused(Reason.NO_TOKENS, lambda: bench.desk.disable("dora", "bob"))


def test_a_replaced_fob_comes_back_into_stock_unless_it_is_lost(bench: Bench) -> None:
    bench.enrol("alice", fob(serial="S-OLD", last_used=NOW))
    bench.add_stock("S-1", "S-2")
    user, new = bench.desk.replace("dora", "S-OLD", "S-1")
    assert (user, new.serial, new.name, new.state) == ("alice", "S-1", "fob", "active")
    assert [item.serial for item in bench.desk.free("dora")] == ["S-2", "S-OLD"]
    bench.desk.replace("dora", "S-1", "S-2", lost=True)
    assert [item.serial for item in bench.desk.free("dora")] == ["S-OLD"]
    refused(Reason.NOT_ASSIGNED, lambda: bench.desk.replace("dora", "S-9", "S-OLD"))
    with pytest.raises(DeskError, match="not in stock"):
        bench.desk.replace("dora", "S-2", "S-9")
    with pytest.raises(DeskError, match="alice has the token"):
        bench.desk.assign("dora", "S-2", "bob")


def test_unlocking_clears_the_failures(bench: Bench) -> None:
    bench.enrol("alice", fob(), failures=7, failures_at=NOW)
    assert bench.desk.unlock("dora", "alice") == 7
    assert bench.store.read("alice").failures == 0
    assert "failures=7" in bench.lines[0]


# ---- the desk member's own code


def test_a_code_of_a_desk_member_works_once_and_a_wrong_one_counts(bench: Bench) -> None:
    bench.enrol("dora", fob())

    def prove(code: str) -> bool:
        return bench.desk.prove(Asking("dora", None, code.encode()))[0]

    assert prove(codes(0))
    assert not prove(codes(0))
    assert not prove("000000")
    assert bench.store.read("dora").failures == 1
    assert not bench.desk.prove(Asking("dieter", None, b"755224"))[0], "not enrolled"


def test_the_code_after_a_refused_one_can_complete_a_row(bench: Bench) -> None:
    bench.enrol("dora", fob())
    accepted, earlier = bench.desk.prove(Asking("dora", None, codes(40).encode()))
    assert not accepted
    assert bench.desk.prove(Asking("dora", None, codes(41).encode()), earlier)[0]


# ---- the site file


def test_the_site_file_names_the_group() -> None:
    assert desk_settings(parse_site("")) is None
    assert desk_settings(parse_site('[desk]\ngroup = "helpdesk"')) == DeskSettings(group="helpdesk")
    chosen = desk_settings(parse_site('[desk]\ngroup = "helpdesk"\nprotect = ["admins"]'))
    assert chosen == DeskSettings(group="helpdesk", protect=("admins",))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("desk = 1", "desk: must be a table"),
        ("[desk]", "desk.group: required"),
        ("[desk]\ngroup = 1", "desk.group: must be"),
        ('[desk]\ngroup = ""', "desk.group: must be"),
        ('[desk]\ngroup = "a"\nprotect = "b"', "desk.protect: must be a list of groups"),
        ('[desk]\ngroup = "a"\nprotect = [1]', "desk.protect: must be a list of groups"),
        ('[desk]\ngroup = "a"\nmembers = ["b"]', "desk: unknown setting 'members'"),
    ],
)
def test_an_invalid_table_is_named_and_denies_no_login(text: str, problem: str) -> None:
    site = parse_site(text)  # a login reads the file
    with pytest.raises(SettingsError) as caught:
        desk_settings(site)
    assert problem in str(caught.value)


# ---- the entries of changes in the record


@pytest.mark.parametrize("name", ["dora", "a b", "a; b", "ünï", "%", "DOMAIN\\dora", "😀" * 64, "x" * 255])
@pytest.mark.parametrize("token", [None, "phone", "my; phone 2"])
def test_a_change_is_read_from_its_entry(name: str, token: str | None) -> None:
    change = RecentChange(NOW, "unlock", name, token)
    record = UserRecord(user="alice").with_change("x").with_change(change.entry())
    record = record.with_change(change.entry())
    assert recent_changes(record) == (RecentChange(NOW, "unlock", name[:64], token),) * 2
    assert change.entry().isascii()


@given(st.text(max_size=40))
def test_any_text_in_place_of_changes_is_shown_or_left_out(text: str) -> None:
    change = RecentChange.parse(text)
    assert change is None or change.at >= 0


# ---- a session of the command


@pytest.mark.parametrize(("waited", "used"), [(IDLE - 1, True), (IDLE + 1, False), (TOTAL + 1, False)])
def test_a_session_over_a_pipe_has_the_same_limits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], waited: int, used: bool
) -> None:
    clock = [0.0]

    def readline(limit: int) -> str:
        clock[0] += waited
        return "find alice\n"

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, readline=readline))
    monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    assert command._line(TOTAL) == ("find alice\n" if used else None)
    assert ("the session has ended" in capsys.readouterr().err) is not used
