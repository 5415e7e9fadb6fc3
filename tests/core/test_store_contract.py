"""Tests of the contract of `Store`, which every kind of store passes: in a folder, and in PostgreSQL."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import pytest

from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import totp
from pam_totp.core.policy import Policy
from pam_totp.core.record import Grace, HotpToken, RecordError, TotpToken, UserRecord
from pam_totp.core.secretfile import MAX_FILE
from pam_totp.core.verify import Outcome
from pam_totp.operations.authenticate import decide
from pam_totp.store import LockBusy, NotThere, StoreError
from tests.core.conftest import TIMES
from tests.core.places import Database, Folder, Place, Race
from tests.core.racing import in_processes, in_threads
from tests.core.stores import LOCK_TIMEOUT, NOW, code
from tests.support.cluster import with_postgresql
from tests.support.site import KEY, fob

MANY = 50
ROUNDS = max(TIMES, 1)
SALT = "00" * 16
RECOVERY = "0123456789ABCDEF"
PHONE = TotpToken(name="phone", secret=KEY[::-1], created=0)
ANSWERS: dict[str, tuple[bytes, str]] = {  # kind -> (answer, outcome)
    "hotp": (code(0), "code"),
    "row": (code(0, 3), "row"),
    "totp": (totp(PHONE.secret, NOW).encode(), "code"),
    "recovery": (RECOVERY.encode(), "recovery"),
}
RACES = pytest.mark.parametrize("race", [in_processes, in_threads], ids=["processes", "threads"])


@pytest.fixture(params=["file", pytest.param("postgresql", marks=with_postgresql)])
def place(request: pytest.FixtureRequest) -> Place:
    if request.param == "file":
        folder: Path = request.getfixturevalue("folder")
        return Folder(folder)
    return Database(request.getfixturevalue("postgresql"), request.getfixturevalue("database"))


# ---- one update


def test_a_record_is_read_and_advanced_by_a_login(place: Place) -> None:
    place.put()
    assert place.store().read("alice").tokens == (fob(),)
    assert place.log_in(code(0)) == "code"
    assert place.counter() == 1
    assert place.log_in(code(0)) == "replayed"
    assert list(place.store().users()) == ["alice"]


def test_the_result_of_the_change_is_returned(place: Place) -> None:
    place.put()
    marker = object()
    assert place.store().update("alice", lambda record: (record, marker)) is marker


def test_an_unchanged_record_is_not_written(place: Place) -> None:
    place.put()
    before, decoys = place.writes(), place.decoy_writes()
    place.store().update("alice", lambda record: (record, None))
    place.store().update("alice", lambda record: (UserRecord(user="alice", tokens=record.tokens), None))
    assert (place.writes(), place.decoy_writes()) == (before, decoys)
    assert place.log_in(b"malformed") == "malformed", "a login writes a decoy in place of an unchanged record"
    assert place.writes() == before
    assert sum(place.decoy_writes()) == sum(decoys) + 1
    assert place.log_in(b"000000") == "wrong"
    assert place.writes() == before + 1
    assert sum(place.decoy_writes()) == sum(decoys) + 1
    assert place.store().read("alice").failures == 1


def test_a_failed_change_writes_nothing_and_blocks_no_login(place: Place) -> None:
    place.put()
    before = place.writes()

    def fails(record: UserRecord) -> tuple[UserRecord, None]:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        place.store().update("alice", fails)
    assert place.writes() == before
    assert decide(place.store(0.0), "alice", Answer.parse(code(0)), Policy(), lambda: NOW).outcome is Outcome.CODE


def test_a_user_without_a_record_is_not_found(place: Place) -> None:
    with pytest.raises(NotThere):
        place.store().read("alice")
    with pytest.raises(NotThere):
        place.store().update("alice", lambda record: (record, None))
    assert list(place.store().users()) == []


def test_an_unknown_user_costs_one_write_of_a_decoy_chosen_at_random(place: Place) -> None:
    place.put()
    before, alice = place.decoy_writes(), place.writes()
    for _ in range(200):
        place.store().update_decoy("zoe", int)
    after = place.decoy_writes()
    assert len(after) == 64
    assert sum(after) == sum(before) + 200
    assert sum(new > old for new, old in zip(after, before, strict=True)) > 32, "the store must choose at random"
    assert place.writes() == alice
    assert list(place.store().users()) == ["alice"]


def test_create_starts_an_empty_record_and_keeps_an_existing_one(place: Place) -> None:
    seen: list[UserRecord] = []

    def add(record: UserRecord) -> tuple[UserRecord, None]:
        seen.append(record)
        return record.with_token(fob(name=f"t{len(seen)}", secret=bytes([len(seen)]) * 20)), None

    place.store().update("alice", add, create=True)
    place.store().update("alice", add, create=True)
    assert seen[0] == UserRecord(user="alice")
    assert [t.name for t in seen[1].tokens] == ["t1"]
    assert [t.name for t in place.store().read("alice").tokens] == ["t1", "t2"]


def test_none_deletes_the_record(place: Place) -> None:
    place.put()
    assert place.store().update("alice", lambda record: (None, record.user)) == "alice"
    assert list(place.store().users()) == []
    with pytest.raises(NotThere):
        place.store().read("alice")
    assert place.store().update("bob", lambda record: (None, 5), create=True) == 5
    assert list(place.store().users()) == []


def test_a_user_deleted_during_a_login_is_not_found(place: Place) -> None:
    place.put()
    deleted = threading.Event()

    def removes(record: UserRecord) -> tuple[None, None]:
        login.start()
        return None, None

    outcomes: list[object] = []

    def logs_in() -> None:
        try:
            outcomes.append(place.log_in(code(0)))
        except NotThere as e:
            outcomes.append(e)
        deleted.set()

    login = threading.Thread(target=logs_in)
    place.store().update("alice", removes)
    login.join()
    assert isinstance(outcomes[0], NotThere)
    assert list(place.store().users()) == []


def test_a_record_too_large_to_be_read_back_is_not_written(place: Place) -> None:
    old = place.put()
    before = place.writes()
    tokens = tuple(fob(name="n" * 250 + str(i), secret=bytes([i]) * 128, serial="ü" * 255) for i in range(8))
    recovery = tuple(f"{i:064x}" for i in range(100))

    def grow(record: UserRecord) -> tuple[UserRecord, None]:
        grace = tuple(Grace(service="ü" * 255, rhost=f"{i}", granted=0) for i in range(64))
        return UserRecord(user="alice", tokens=tokens, salt=SALT, recovery=recovery, grace=grace), None

    with pytest.raises(StoreError, match=f"the record must be at most {MAX_FILE} bytes"):
        place.store().update("alice", grow)
    assert place.writes() == before
    assert place.store().read("alice") == old


NAMES = ["alice", ".hidden", "..", "a/b", "Ä", "a b", "%41", "A", "'; DROP TABLE x", "%", "中", "x" * 245]


def test_users_of_any_names_have_separate_records_and_are_listed(place: Place) -> None:
    for number, user in enumerate(NAMES):
        place.put(user, tokens=(fob(counter=number),))
    assert sorted(place.store().users()) == sorted(NAMES)
    assert [place.counter(user) for user in NAMES] == list(range(len(NAMES)))


@pytest.mark.parametrize("user", ["", "\ud800", "x" * 300])
def test_an_impossible_name_is_unavailable(place: Place, user: str) -> None:
    for use in (
        lambda: place.store().read(user),
        lambda: place.store().update(user, lambda record: (record, None), create=True),
        lambda: place.store().update_decoy(user, int),
    ):
        with pytest.raises(StoreError, match="the user name must be"):
            use()
    assert list(place.store().users()) == []


@pytest.mark.parametrize("user", ["alice", "unproved", "unknown"])
def test_a_decision_that_found_its_user_busy_can_be_made_again(place: Place, user: str) -> None:
    """The first attempt changes no record of any user. The second attempt counts the answer once."""
    place.put()
    place.put("unproved", tokens=(fob(confirmed=False),))
    inside, go_on = threading.Event(), threading.Event()

    def waits(*_: object) -> tuple[None, None]:
        inside.set()
        assert go_on.wait(LOCK_TIMEOUT)
        raise RuntimeError("no change")

    def holds() -> None:
        with pytest.raises(RuntimeError):
            place.store().update_decoy(user, waits)

    holder = threading.Thread(target=holds)
    holder.start()
    assert inside.wait(LOCK_TIMEOUT)
    answer, before = Answer.parse(b"000000"), place.decoy_writes()
    try:
        with pytest.raises(LockBusy):
            decide(place.store(0.0), user, answer, Policy(), lambda: NOW)
        assert place.decoy_writes() == before
    finally:
        go_on.set()
        holder.join()
    outcome = decide(place.store(), user, answer, Policy(), lambda: NOW).outcome
    assert outcome is (Outcome.WRONG if user == "alice" else Outcome.NOT_ENROLLED)
    assert sum(place.decoy_writes()) == sum(before) + (user != "alice")
    assert place.store().read("alice").failures == (user == "alice")


# ---- races


@pytest.mark.bare  # under coverage, the concurrent logins exceed the time limit of the lock
@RACES
@pytest.mark.parametrize("kind", ANSWERS)
def test_a_code_is_accepted_once_under_concurrency(place: Place, kind: str, race: Race) -> None:
    answer, accepted = ANSWERS[kind]
    for _ in range(ROUNDS):
        place.put(tokens=(fob(), PHONE), salt=SALT, recovery=(recovery_digest(SALT, RECOVERY),))
        counted = Counter(race(MANY, lambda _: place.log_in(answer)))
        refused = "wrong" if kind == "recovery" else "replayed"
        assert counted == {accepted: 1, refused: MANY - 1}
        assert place.store().read("alice").refused <= MANY - 1


def test_each_of_many_concurrent_codes_is_accepted_at_most_once(place: Place) -> None:
    """Each of ten codes is sent five times. A code is refused if a later code was accepted before."""
    place.put()
    words = in_processes(MANY, lambda n: f"{n % 10} {place.log_in(code(n % 10))}")
    accepted = [word.split()[0] for word in words if word.endswith(" code")]
    assert len(accepted) == len(set(accepted)) >= 1
    assert place.counter() == max(map(int, accepted)) + 1 == 10


def test_no_failure_is_lost_under_concurrency(place: Place) -> None:
    place.put()
    assert Counter(in_processes(MANY, lambda _: place.log_in(b"000000"))) == {"wrong": MANY}
    record = place.store().read("alice")
    assert record.failures == record.refused == MANY


def test_the_right_code_among_guesses_succeeds_only_before_the_fifth(place: Place) -> None:
    for _ in range(ROUNDS):
        place.put(failures=5, failures_at=NOW)
        words = in_processes(MANY, lambda n: place.log_in(code(0) if n == 20 else b"000000"))
        assert Counter(words) == {"wrong": MANY - 1, "codes-in-a-row-needed": 1}
        assert place.counter() == 0


def test_many_concurrent_users_are_all_accepted(place: Place) -> None:
    for number in range(MANY):
        place.put(f"user{number}")
    assert Counter(in_processes(MANY, lambda n: place.log_in(code(0), f"user{n}"))) == {"code": MANY}
    assert {place.counter(f"user{number}") for number in range(MANY)} == {1}


def test_concurrent_enrolments_are_all_kept(place: Place) -> None:
    """Eight processes each add a token to a record that does not exist yet."""

    def enrols(number: int) -> str:
        token = fob(name=f"t{number}", secret=bytes([number]) * 20)
        return place.store().update("alice", lambda record: (record.with_token(token), "added"), create=True)

    assert in_processes(8, enrols) == ["added"] * 8
    assert sorted(t.name for t in place.store().read("alice").tokens) == [f"t{n}" for n in range(8)]


def test_a_record_is_deleted_and_created_again_without_an_older_write(place: Place) -> None:
    """Each of eight processes enrols and removes a user in turn. No login restores a removed token."""

    def works(number: int) -> str:
        for round_ in range(10):
            if number % 2:
                try:
                    place.store().update("alice", lambda record: (record.refused_uncounted(), None))
                except NotThere:
                    continue
            else:
                token = fob(name=f"{number}-{round_}", secret=bytes([number, round_]) * 10)
                place.put(tokens=(token,))
                place.store().update("alice", lambda _: (None, None), create=True)
        return "done"

    assert in_processes(8, works) == ["done"] * 8
    with pytest.raises(NotThere):
        place.store().read("alice")


def test_a_reader_sees_the_old_or_the_new_record_without_waiting(place: Place) -> None:
    place.put()
    done = threading.Event()
    seen: list[int] = []

    def reads() -> None:
        store = place.store()
        while not done.is_set():
            token = store.read("alice").tokens[0]
            assert isinstance(token, HotpToken)
            seen.append(token.counter)

    reader = threading.Thread(target=reads)
    reader.start()
    try:
        for counter in range(100):
            assert place.log_in(code(counter)) == "code"
    finally:
        done.set()
        reader.join()
    assert seen == sorted(seen)
    assert set(seen) <= set(range(101))


def test_a_change_that_makes_an_invalid_record_leaves_the_old_one(place: Place) -> None:
    place.put()
    before = place.writes()
    with pytest.raises(RecordError):
        place.store().update("alice", lambda record: (record.with_token(fob()), None))
    assert place.writes() == before
