"""Tests of the stock of tokens, with a store in a folder and a store in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.oath import hotp, totp
from pam_totp.core.policy import Policy
from pam_totp.core.record import MAX_TOKENS, HotpToken, Token, TotpToken, UserRecord
from pam_totp.operations import stock
from pam_totp.operations.authenticate import decide
from pam_totp.operations.stock import Reason, State, StockError
from pam_totp.store import NotThere, SerialTaken, Store, StoreError
from pam_totp.store.file import FileStore
from pam_totp.store.stock import StockEntry, is_in_stock, stock_of
from tests.core.backends import Backend, Database, Folder
from tests.core.racing import in_processes
from tests.core.stores import NOW, Memory
from tests.support.cluster import with_postgresql
from tests.support.site import fob


@pytest.fixture(params=["file", pytest.param("postgresql", marks=with_postgresql)])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "file":
        folder: Path = request.getfixturevalue("folder")
        return Folder(folder)
    return Database(request.getfixturevalue("postgresql"), request.getfixturevalue("database"))


@pytest.fixture
def store(backend: Backend) -> Store:
    """Return a store with the tokens T-1, T-2 and T-3 in stock: two HOTP tokens of box A, and a TOTP token of box B."""
    made = backend.store()
    assert stock_of(made).add([entry("T-1"), entry("T-2"), entry("T-3", "B", clock=True)]) == [None] * 3
    return made


def key(serial: str) -> bytes:
    return serial.encode().rjust(20, b".")


def entry(serial: str, batch: str = "A", *, clock: bool = False) -> StockEntry:
    common = {"name": "token", "secret": key(serial), "serial": serial, "created": 1, "confirmed": False}
    token: Token = TotpToken(**common) if clock else HotpToken(**common)  # type: ignore[arg-type]
    return StockEntry(serial=serial, batch=batch, imported=1, token=token)


def code(serial: str, counter: int, count: int = 1) -> bytes:
    return "".join(hotp(key(serial), counter + i) for i in range(count)).encode()


def log_in(store: Store, user: str, answer: bytes, now: int = NOW) -> str:
    return decide(store, user, Answer.parse(answer), Policy(), lambda: now).outcome.value


def states(store: Store) -> dict[str, tuple[State, str | None]]:
    found = {}
    for item in stock.items(store):
        assert isinstance(item, stock.Item)
        found[item.serial] = item.state, item.user
    return found


def refused(reason: Reason, change: Callable[[], object], user: str | None = None) -> None:
    """Assert that `change` fails for `reason`, with `user` in the error."""
    with pytest.raises(StockError) as error:
        change()
    assert (error.value.reason, error.value.user) == (reason, user)


# ---- import and look up


def test_imported_tokens_are_in_stock_and_belong_to_no_user(store: Store) -> None:
    assert states(store) == dict.fromkeys(("T-1", "T-2", "T-3"), (State.NEW, None))
    assert [item.serial for item in stock.list_free(store, batch="A")] == ["T-1", "T-2"]
    found = stock.find(store, "t1")
    assert found is not None
    assert (found.serial, found.batch, found.token) == ("T-1", "A", entry("T-1").token)
    assert store.owner_of_serial("T-1") is None
    assert list(store.users()) == []
    assert (is_in_stock(store, "t 1"), is_in_stock(store, "T-9"), stock.find(store, "T-9")) == (True, False, None)


def test_an_import_adds_a_serial_number_once(store: Store) -> None:
    stock.assign(store, "T-2", "alice", now=NOW)
    again = stock_of(store).add([entry("t1"), entry("T-2"), entry("T-4"), entry("t4")])
    assert again == [(None,), ("alice",), None, (None,)]
    assert states(store)["T-4"] == (State.NEW, None)


def test_a_token_in_stock_cannot_be_enrolled_with_another_key(store: Store) -> None:
    def enrol(record: UserRecord) -> tuple[UserRecord, None]:
        return record.with_token(fob(serial="t1")), None

    with pytest.raises(SerialTaken, match="the token with the serial number t1 is in stock") as error:
        store.update("bob", enrol, create=True)
    assert error.value.owner is None
    assert list(store.users()) == []


def test_a_removed_token_can_be_imported_again(store: Store) -> None:
    assert stock.remove(store, "t-1") == entry("T-1").token
    assert stock.find(store, "T-1") is None
    refused(Reason.NOT_IN_STOCK, lambda: stock.remove(store, "T-1"))
    assert stock_of(store).add([entry("T-1")]) == [None]


def test_only_a_token_in_stock_can_be_removed_from_it(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW)
    refused(Reason.ASSIGNED, lambda: stock.remove(store, "T-1"), "alice")
    refused(Reason.NOT_IN_STOCK, lambda: stock.remove(store, "T-9"))


def test_a_store_of_one_user_has_no_stock() -> None:
    with pytest.raises(StoreError, match="no stock"):
        stock.find(Memory(), "T-1")
    assert not is_in_stock(Memory(), "T-1")


# ---- assign


def test_an_assigned_token_is_unconfirmed_and_opens_nothing(store: Store) -> None:
    given = stock.assign(store, "t1", "alice", now=NOW)
    assert (given.user, given.token.serial, given.token.created) == ("alice", "T-1", NOW)
    assert store.read("alice").tokens == (given.token,)
    assert not store.read("alice").enrolled
    assert log_in(store, "alice", code("T-1", 0)) == "not-enrolled"
    assert states(store)["T-1"] == (State.ASSIGNED, "alice")
    found = stock.find(store, "T-1")
    assert found is not None
    assert (found.batch, found.token) == ("A", None), "the stock keeps the batch, and no key"
    assert store.owner_of_serial("T-1") == "alice"
    assert [item.serial for item in stock.list_free(store)] == ["T-2", "T-3"]


def test_codes_confirm_the_token_at_once_and_are_used_up(store: Store) -> None:
    refused(Reason.WRONG_CODE, lambda: stock.assign(store, "T-1", "alice", now=NOW, codes=b"000000"))
    with pytest.raises(NotThere):
        store.read("alice")
    assert stock.assign(store, "T-1", "alice", now=NOW, codes=code("T-1", 2)).token.confirmed
    assert log_in(store, "alice", code("T-1", 2)) == "replayed"
    assert log_in(store, "alice", code("T-1", 3)) == "code"


def test_codes_confirm_an_assigned_token_later(store: Store) -> None:
    stock.assign(store, "T-3", "alice", now=NOW)
    refused(Reason.WRONG_CODE, lambda: stock.confirm(store, "T-3", now=NOW, codes=b"123456"))
    answer = totp(key("T-3"), NOW).encode()
    assert stock.confirm(store, "T-3", now=NOW, codes=answer).token.confirmed
    refused(Reason.CONFIRMED, lambda: stock.confirm(store, "T-3", now=NOW, codes=answer), "alice")
    assert log_in(store, "alice", answer) == "replayed"
    refused(Reason.NOT_ASSIGNED, lambda: stock.confirm(store, "T-1", now=NOW, codes=b"123456"))


def test_a_token_of_another_user_cannot_be_assigned(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW)
    for user in ("alice", "bob"):
        refused(Reason.ASSIGNED, lambda user=user: stock.assign(store, "T-1", user, now=NOW), "alice")  # type: ignore[misc]
    store.update("bob", lambda record: (record.with_token(fob(serial="S-1")), None), create=True)
    refused(Reason.ASSIGNED, lambda: stock.assign(store, "S-1", "carol", now=NOW), "bob")
    refused(Reason.NOT_IN_STOCK, lambda: stock.assign(store, "T-9", "carol", now=NOW))
    assert sorted(store.users()) == ["alice", "bob"]


def test_an_assigned_token_gets_a_free_name_or_the_given_one(store: Store) -> None:
    names = [stock.assign(store, serial, "alice", now=NOW).token.name for serial in ("T-1", "T-2")]
    assert names == ["token", "token-2"]
    refused(Reason.NAME_IN_USE, lambda: stock.assign(store, "T-3", "alice", now=NOW, name="token-2"), "alice")
    refused(Reason.INVALID_VALUE, lambda: stock.assign(store, "T-3", "alice", now=NOW, name=" x"))
    assert stock.assign(store, "T-3", "alice", now=NOW, name="clock").token.name == "clock"


def test_a_user_gets_no_more_tokens_than_a_record_may_have(store: Store) -> None:
    tokens = tuple(fob(name=f"t{n}", secret=bytes([n]) * 20) for n in range(MAX_TOKENS))
    store.update("alice", lambda record: (UserRecord(user="alice", tokens=tokens), None), create=True)
    refused(Reason.TOO_MANY_TOKENS, lambda: stock.assign(store, "T-1", "alice", now=NOW), "alice")
    assert states(store)["T-1"] == (State.NEW, None)


def test_a_key_that_the_user_has_already_is_refused(store: Store) -> None:
    store.update("alice", lambda record: (record.with_token(fob(secret=key("T-1"), name="x")), None), create=True)
    refused(Reason.TOKEN_KNOWN, lambda: stock.assign(store, "T-1", "alice", now=NOW), "alice")


# ---- take back


def test_an_unconfirmed_token_is_unassigned_unchanged(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW)
    taken = stock.unassign(store, "t1", now=NOW)
    assert (taken.user, taken.is_last) == ("alice", True)
    assert states(store)["T-1"] == (State.NEW, None)
    found = stock.find(store, "T-1")
    assert found is not None
    assert found.token is not None
    assert (found.token.secret, found.token.row_needed) == (key("T-1"), False)
    assert list(store.users()) == []
    refused(Reason.NOT_ASSIGNED, lambda: stock.unassign(store, "T-1", now=NOW))


def test_a_confirmed_token_is_returned_not_unassigned(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, codes=code("T-1", 0))
    refused(Reason.CONFIRMED, lambda: stock.unassign(store, "T-1", now=NOW), "alice")
    stock.assign(store, "T-2", "bob", now=NOW)
    refused(Reason.UNCONFIRMED, lambda: stock.give_back(store, "T-2", now=NOW), "bob")


def test_no_used_code_of_a_returned_token_is_accepted_for_the_next_user(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, codes=code("T-1", 0))
    for counter in range(1, 6):
        assert log_in(store, "alice", code("T-1", counter)) == "code"
    stock.give_back(store, "T-1", now=NOW)
    assert states(store)["T-1"] == (State.RETURNED, None)
    for used in (code("T-1", 3), code("T-1", 4, 2), code("T-1", 0, 2)):
        with pytest.raises(StockError):
            stock.assign(store, "T-1", "bob", now=NOW, codes=used)
    refused(Reason.CODES_NEEDED, lambda: stock.assign(store, "T-1", "bob", now=NOW, codes=code("T-1", 6)))
    given = stock.assign(store, "T-1", "bob", now=NOW, codes=code("T-1", 6, 2))
    assert isinstance(given.token, HotpToken)
    assert (given.token.counter, given.token.row_needed, given.token.last_used) == (8, False, NOW)
    assert log_in(store, "bob", code("T-1", 8)) == "code"


def test_a_returned_clock_keeps_its_last_step(store: Store) -> None:
    stock.assign(store, "T-3", "alice", now=NOW, codes=totp(key("T-3"), NOW).encode())
    stock.give_back(store, "T-3", now=NOW)
    row = totp(key("T-3"), NOW - 30) + totp(key("T-3"), NOW)
    refused(Reason.WRONG_CODE, lambda: stock.assign(store, "T-3", "bob", now=NOW + 30, codes=row.encode()))
    row = totp(key("T-3"), NOW + 30) + totp(key("T-3"), NOW + 60)
    assert stock.assign(store, "T-3", "bob", now=NOW + 60, codes=row.encode()).token.confirmed


def test_a_returned_token_without_codes_opens_only_by_codes_in_a_row(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, codes=code("T-1", 0))
    stock.give_back(store, "T-1", now=NOW)
    stock.assign(store, "T-1", "bob", now=NOW)
    stock.unassign(store, "T-1", now=NOW)
    assert states(store)["T-1"] == (State.RETURNED, None), "the token was used before"
    stock.assign(store, "T-1", "bob", now=NOW)
    refused(Reason.CODES_NEEDED, lambda: stock.confirm(store, "T-1", now=NOW, codes=code("T-1", 1)))
    assert stock.confirm(store, "T-1", now=NOW, codes=code("T-1", 1, 2)).token.confirmed


def test_a_return_keeps_the_users_other_tokens(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, codes=code("T-1", 0))
    stock.assign(store, "T-2", "alice", now=NOW, codes=code("T-2", 0))
    taken = stock.give_back(store, "T-1", now=NOW)
    assert not taken.is_last
    assert [token.serial for token in store.read("alice").tokens] == ["T-2"]
    assert log_in(store, "alice", code("T-2", 1)) == "code"


def test_a_token_that_was_never_in_stock_can_be_returned(store: Store) -> None:
    store.update("alice", lambda record: (record.with_token(fob(serial="S-1")), None), create=True)
    stock.give_back(store, "s1", now=NOW)
    found = stock.find(store, "S-1")
    assert found is not None
    assert (found.serial, found.batch, found.state) == ("S-1", None, State.RETURNED)
    assert stock.assign(store, "S-1", "bob", now=NOW).user == "bob"


def test_a_removed_user_takes_the_tokens_along(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW)
    store.update("alice", lambda record: (None, None))
    assert stock.find(store, "T-1") is None
    assert stock_of(store).add([entry("T-1")]) == [None]


# ---- replace


def test_a_replacement_takes_the_place_of_the_old_token(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, name="fob", codes=code("T-1", 0))
    refused(Reason.WRONG_CODE, lambda: stock.replace(store, "T-1", "T-2", now=NOW, codes=b"000000"))
    done = stock.replace(store, "t1", "t2", now=NOW, codes=code("T-2", 0))
    assert (done.user, done.old.serial, done.new.serial, done.new.name) == ("alice", "T-1", "T-2", "fob")
    assert store.read("alice").tokens == (done.new,)
    assert states(store) == {
        "T-1": (State.RETURNED, None),
        "T-2": (State.ASSIGNED, "alice"),
        "T-3": (State.NEW, None),
    }
    assert log_in(store, "alice", code("T-1", 1)) == "wrong"
    assert log_in(store, "alice", code("T-2", 1)) == "code"


def test_a_lost_token_is_removed_with_its_key(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, codes=code("T-1", 0))
    stock.replace(store, "T-1", "T-2", now=NOW, codes=code("T-2", 0), lost=True)
    assert stock.find(store, "T-1") is None
    assert store.owner_of_serial("T-1") is None


def test_a_replacement_without_codes_never_ends_an_enrolment(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, codes=code("T-1", 0))
    assert stock.replace(store, "T-1", "T-2", now=NOW).new.confirmed
    assert store.read("alice").enrolled
    stock.assign(store, "T-1", "bob", now=NOW)
    assert not stock.replace(store, "T-1", "T-3", now=NOW).new.confirmed, "bob had no confirmed token"
    assert states(store)["T-1"] == (State.RETURNED, None)


def test_a_replacement_needs_a_users_token_and_a_token_in_stock(store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW)
    stock.assign(store, "T-2", "bob", now=NOW)
    refused(Reason.NOT_ASSIGNED, lambda: stock.replace(store, "T-3", "T-1", now=NOW))
    refused(Reason.ASSIGNED, lambda: stock.replace(store, "T-1", "T-2", now=NOW), "bob")
    refused(Reason.ASSIGNED, lambda: stock.replace(store, "T-1", "T-1", now=NOW), "alice")
    refused(Reason.NOT_IN_STOCK, lambda: stock.replace(store, "T-1", "T-9", now=NOW))


# ---- races


def test_one_of_ten_racing_processes_gets_the_token(backend: Backend, store: Store) -> None:
    def attempt(number: int) -> str:
        try:
            return stock.assign(backend.store(), "T-1", f"user{number}", now=NOW).user
        except StockError as e:
            return e.reason

    words = in_processes(10, attempt)
    assert words.count(Reason.ASSIGNED) == 9, words
    (winner,) = set(words) - {Reason.ASSIGNED}
    assert store.owner_of_serial("T-1") == winner
    assert list(store.users()) == [winner]


def test_the_owner_is_found_while_the_record_is_created(tmp_path: Path) -> None:
    """A new record has a second hard link until its temporary name is unlinked."""
    store = FileStore(str(tmp_path))
    stock_of(store).add([entry("T-1")])
    stock.assign(store, "T-1", "alice", now=NOW)
    record = tmp_path / "alice.record"
    (tmp_path / ".alice.record").hardlink_to(record)
    refused(Reason.ASSIGNED, lambda: stock.assign(store, "T-1", "bob", now=NOW), "alice")
    assert store.owner_of_serial("T-1") == "alice"


def test_a_login_and_a_return_race_without_an_old_counter(backend: Backend, store: Store) -> None:
    stock.assign(store, "T-1", "alice", now=NOW, codes=code("T-1", 0))

    def attempt(number: int) -> str:
        try:
            if number == 0:
                return stock.give_back(backend.store(), "T-1", now=NOW).user
            return log_in(backend.store(), "alice", code("T-1", number))
        except NotThere:
            return "gone"

    words = in_processes(6, attempt)
    highest = max([0, *(number for number, word in enumerate(words) if word == "code")])
    found = stock.find(store, "T-1")
    assert found is not None
    assert isinstance(found.token, HotpToken)
    assert found.token.counter > highest, words
