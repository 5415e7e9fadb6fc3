"""Tests of the store in PostgreSQL: the guard, notices, lost connections, questions, turns, clock, decoys, serials."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pam_totp.core.answer import Answer
from pam_totp.core.oath import totp
from pam_totp.core.policy import Policy
from pam_totp.core.record import HotpToken, UserRecord
from pam_totp.core.verify import Outcome
from pam_totp.operations.authenticate import decide
from pam_totp.store import NotThere, SerialTaken, StoreError, clock_of, read_each
from pam_totp.store.postgres import ASKED, AlreadyAnswered, PostgresStore, Question, initialise
from pam_totp.store.postgres_connection import Connection, Noticed, OutOfReach, Pool, Unanswered, connect
from pam_totp.store.postgres_schema import NONE, SYNCHRONOUS
from tests.core.racing import in_processes, in_threads
from tests.core.stores import NOW, code
from tests.support.cluster import Server, with_postgresql
from tests.support.site import PATIENCE, fob, phone, until

pytestmark = with_postgresql
POLICY = Policy()


@pytest.fixture(scope="module")
def server(postgresql: Server) -> Iterator[Server]:
    """Yield the server of the session. Reset the settings of the server at the end."""
    yield postgresql
    reset(postgresql)


def reset(server: Server) -> None:
    server.sql("ALTER SYSTEM RESET ALL", "SELECT pg_reload_conf()")
    until(lambda: server.sql("SHOW synchronous_standby_names") == "", "all settings are reset")


@pytest.fixture
def store(server: Server, database: str) -> PostgresStore:
    """Return a store without a standby, with the user alice."""
    made = PostgresStore(database, wait=PATIENCE)
    put(made)
    return made


@pytest.fixture
def strict(server: Server, store: PostgresStore) -> Iterator[PostgresStore]:
    """Yield a store that requires a standby, with the user alice. One standby is configured, but none is running."""
    initialise(store.url, SYNCHRONOUS)
    server.set(synchronous_standby_names="'standby'")
    store._shared.pool.close()
    yield PostgresStore(store.url, wait=PATIENCE)
    reset(server)


def put(store: PostgresStore, user: str = "alice", **fields: Any) -> None:
    record = UserRecord(user=user, **{"tokens": (fob(),)} | fields)
    store.update(user, lambda _: (record, None), create=True)


def log_in(store: PostgresStore, answer: bytes, user: str = "alice") -> str:
    return decide(store, user, Answer.parse(answer), POLICY, lambda: NOW).outcome.value


def counter(store: PostgresStore) -> int:
    token = store.read("alice").tokens[0]
    assert isinstance(token, HotpToken)
    return token.counter


def in_background(work: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Start `work` in a thread. Return the thread, and a list that receives its result or its exception."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as e:
            results.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def waiting(server: Server, count: int = 1) -> list[int]:
    """Wait until `count` processes of the server wait for the standby, and return their process ids."""
    query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    until(lambda: len(server.sql(query).splitlines()) == count, f"{count} commits wait for the standby")
    return [int(pid) for pid in server.sql(query).splitlines()]


# ---- the guard


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"synchronous_standby_names": "''"}, "synchronous_standby_names is empty"),
        ({"synchronous_commit": "local"}, "synchronous_commit is local"),
        ({"synchronous_commit": "remote_write"}, "synchronous_commit is remote_write"),
        ({"client_min_messages": "error"}, "client_min_messages hides warnings"),
    ],
)
def test_without_replication_every_change_is_refused(
    server: Server, strict: PostgresStore, settings: dict[str, str], reason: str
) -> None:
    server.set(**settings)
    before = server.sql("SELECT sum(version) FROM pam_totp.decoy")
    for use in (
        lambda: log_in(strict, code(0)),
        lambda: log_in(strict, code(0), "unknown"),
        lambda: strict.update_decoy("unknown", int),
        lambda: put(strict, "bob"),
        lambda: strict.update("alice", lambda record: (None, None)),
        lambda: strict.update_many([("alice", lambda record: (record.refused_uncounted(), None))], lambda *_: None),
    ):
        with pytest.raises(StoreError, match=reason):
            use()
    assert counter(strict) == 0
    assert list(strict.users()) == ["alice"]
    assert server.sql("SELECT sum(version) FROM pam_totp.decoy") == before


def test_the_guard_is_a_part_of_the_change(server: Server, strict: PostgresStore) -> None:
    """Between the read and the change, the last standby is removed from the settings."""

    def decides(record: UserRecord) -> tuple[UserRecord, str]:
        server.set(synchronous_standby_names="''")
        return record.refused_uncounted(), "changed"

    with pytest.raises(StoreError, match="synchronous_standby_names is empty"):
        strict.update("alice", decides)
    assert strict.read("alice").refused == 0


def test_a_store_without_replication_still_requires_a_flush(server: Server, store: PostgresStore) -> None:
    server.set(synchronous_commit="off")
    try:
        with pytest.raises(StoreError, match="synchronous_commit is off"):
            log_in(store, code(0))
    finally:
        reset(server)
    assert log_in(store, code(0)) == "code"


# ---- notices and lost connections


def cancelled(server: Server, store: PostgresStore) -> object:
    """Log in while no standby is running, and cancel the wait for a standby, as an administrator. Return the result."""
    login, results = in_background(lambda: log_in(store, code(0)))
    (pid,) = waiting(server)
    server.sql(f"SELECT pg_cancel_backend({pid})")
    login.join()
    return results[0]


def test_an_answer_whose_wait_for_the_standby_was_cancelled_is_refused(server: Server, strict: PostgresStore) -> None:
    result = cancelled(server, strict)
    assert isinstance(result, Noticed)
    assert "canceling wait for synchronous replication" in str(result)
    assert counter(strict) == 1, "only the primary has committed the change"


def test_these_tests_fail_for_a_store_that_ignores_notices(
    server: Server, strict: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store accepts a code that only the primary has recorded if `Connection` ignores the notice."""
    monkeypatch.setattr(Connection, "_on_notice", lambda self, result: None)
    assert cancelled(server, strict) == "code"


def test_if_the_standby_does_not_answer_a_login_is_refused_in_time(server: Server, strict: PostgresStore) -> None:
    impatient = PostgresStore(strict.url, wait=0.5, pool=1)
    begun = server.log.stat().st_size
    for number in range(2):
        with pytest.raises(Unanswered, match="gave no answer in time"):
            log_in(impatient, code(number))
    waiting(server, 1)  # the first change; the second change waits for the lock of the record
    with pytest.raises(Unanswered):
        impatient.update_decoy("unknown", int)
    server.set(synchronous_standby_names="''")
    until(lambda: counter(strict) == 1, "the unanswered change is committed")
    assert "cancel" not in server.log.read_text()[begun:]


def test_ctrl_c_during_the_wait_for_the_standby_cancels_nothing(server: Server, strict: PostgresStore) -> None:
    begun = server.log.stat().st_size
    child = os.fork()
    if child == 0:
        try:
            log_in(strict, code(0))
        finally:
            os._exit(1)
    waiting(server)
    os.kill(child, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    waiting(server)
    assert "cancel" not in server.log.read_text()[begun:]


def test_a_lost_change_is_refused_and_its_code_not_accepted_again(server: Server, strict: PostgresStore) -> None:
    login, results = in_background(lambda: log_in(strict, code(0)))
    (pid,) = waiting(server)
    server.sql(f"SELECT pg_terminate_backend({pid})")
    login.join()
    assert isinstance(results[0], Unanswered)
    server.set(synchronous_standby_names="''")
    initialise(strict.url, NONE)
    strict._shared.pool.close()
    assert log_in(strict, code(0)) == "replayed"


def test_a_restarted_server_is_used_again(server: Server, store: PostgresStore) -> None:
    assert log_in(store, code(0)) == "code"
    server.stop()
    server.start()
    assert log_in(store, code(1)) == "code"


def test_a_process_does_not_use_the_connections_of_its_parent(store: PostgresStore) -> None:
    assert log_in(store, code(0)) == "code"
    assert in_processes(4, lambda n: log_in(store, b"000000")) == ["wrong"] * 4
    assert log_in(store, code(1)) == "code"


# ---- questions


def question(name: str) -> Question:
    return Question(name.encode().ljust(32), lambda decision: f"{decision.outcome.value} of {decision.token}")


def ask(store: PostgresStore, name: str, answer: bytes, user: str = "alice") -> str:
    """Decide on the answer to the question `name`. Return the new or the stored verdict."""
    asked = question(name)
    try:
        return asked.verdict(decide(store.asked(asked), user, Answer.parse(answer), POLICY, lambda: NOW))
    except AlreadyAnswered as e:
        return f"again: {e.verdict}"


def test_a_question_that_is_asked_again_gets_the_same_verdict(store: PostgresStore) -> None:
    assert ask(store, "a", code(0)) == "code of fob"
    assert ask(store, "b", b"000000") == "wrong of None"
    for _ in range(3):
        assert ask(store, "a", code(0)) == "again: code of fob"
        assert ask(store, "b", b"000000") == "again: wrong of None"
    assert ask(store, "c", code(0)) == "replayed of fob", "another question with the same code"
    assert store.read("alice").failures == 1
    assert counter(store) == 1


def test_the_last_eight_questions_are_kept_and_survive_other_changes(store: PostgresStore) -> None:
    for number in range(ASKED):
        assert ask(store, f"q{number}", code(number)) == "code of fob"
    store.update("alice", lambda record: (record.with_token(phone()), None))
    assert ask(store, "q0", code(0)) == "again: code of fob"
    assert ask(store, "next", code(ASKED)) == "code of fob"
    assert ask(store, "q1", code(1)) == "again: code of fob"
    assert ask(store, "q0", code(0)) == "replayed of fob"


def test_a_decision_sees_the_stored_verdicts_of_its_record(store: PostgresStore) -> None:
    """Another process stores a verdict meanwhile, so the store repeats this decision with the new verdicts."""
    seen: list[list[str]] = []

    def recall(verdicts: Mapping[str, str]) -> None:
        seen.append(sorted(verdicts.values()))
        if len(seen) == 1:
            assert in_processes(1, lambda _: ask(store, "b", b"000000")) == ["wrong of None"]

    ask(store, "a", code(0))
    decide(store.asked(question("c")._replace(recall=recall)), "alice", Answer.parse(code(1)), POLICY, lambda: NOW)
    assert seen == [["code of fob"], ["code of fob", "wrong of None"]]


def _ask_again(store: PostgresStore, name: str, _: int) -> str:
    return ask(store, name, code(0))


def test_racing_copies_of_a_question_are_decided_once(store: PostgresStore) -> None:
    for name, race in {"threads": in_threads, "processes": in_processes}.items():
        put(store)
        words = race(20, partial(_ask_again, store, name))
        assert sorted(words) == ["again: code of fob"] * 19 + ["code of fob"]
        assert counter(store) == 1


def test_a_question_whose_connection_is_lost_gets_its_verdict(server: Server, strict: PostgresStore) -> None:
    asking, results = in_background(lambda: ask(strict, "a", code(0)))
    (pid,) = waiting(server)
    server.sql(f"SELECT pg_terminate_backend({pid})")
    waiting(server)  # the repeat finds the verdict, and confirms that it is replicated
    assert not results
    server.set(synchronous_standby_names="''")
    asking.join()
    assert results == ["again: code of fob"]
    assert counter(strict) == 1


def test_a_stored_verdict_is_returned_only_once_it_is_replicated(server: Server, strict: PostgresStore) -> None:
    """Only the primary stores the verdict after a cancelled wait, so a repeat of the question must fail."""
    asking, results = in_background(lambda: ask(strict, "a", code(0)))
    (pid,) = waiting(server)
    server.sql(f"SELECT pg_cancel_backend({pid})")
    asking.join()
    assert isinstance(results[0], Noticed)
    with pytest.raises(Unanswered):
        ask(PostgresStore(strict.url, wait=0.5, pool=1), "a", code(0))


# ---- turns, clock, decoys


def test_many_answers_for_one_user_leave_connections_for_others(store: PostgresStore) -> None:
    put(store, "bob")
    narrow = PostgresStore(store.url, PATIENCE, wait=PATIENCE, pool=2)
    inside, go_on = threading.Event(), threading.Event()

    def guesses(record: UserRecord) -> tuple[UserRecord, Outcome]:
        inside.set()
        assert go_on.wait(PATIENCE)
        return record.refused_as_wrong(NOW), Outcome.WRONG

    guessers = [in_background(lambda: narrow.update("alice", guesses)) for _ in range(60)]
    try:
        assert inside.wait(PATIENCE)
        until(lambda: narrow._shared.turns._turns["alice"][1] == 60, "60 threads have or await the turn of alice")
        assert log_in(PostgresStore(store.url, 0.0, pool=2), code(0), "bob") == "code"
    finally:
        go_on.set()
        for thread, _ in guessers:
            thread.join()
    assert [results for _, results in guessers] == [[Outcome.WRONG]] * 60
    assert narrow._shared.turns._turns == {}


def test_the_clock_of_the_database_decides(server: Server, store: PostgresStore) -> None:
    put(store, tokens=(phone(),))
    now = int(server.sql("SELECT floor(extract(epoch FROM clock_timestamp()))"))
    wrong_clock = lambda: now + 95  # noqa: E731
    right, step = totp(phone().secret, now), now // 30
    answer = Answer.parse(right.encode())
    outcome = decide(store, "alice", answer, POLICY, clock_of(store, wrong_clock)).outcome
    assert outcome is Outcome.CODE or int(server.sql("SELECT extract(epoch FROM now())::bigint / 30")) > step + 1
    assert abs(store.now() - now) < PATIENCE


def test_an_answer_for_an_unknown_user_waits_for_no_decoy(server: Server, store: PostgresStore) -> None:
    """Another process locks 63 decoys, and then all decoys."""
    warnings: list[str] = []
    warning = PostgresStore(store.url, warn=warnings.append, wait=PATIENCE, pool=1)
    with locked(server, "slot <> 17"):
        warning.update_decoy("unknown", int)
    assert server.sql("SELECT slot FROM pam_totp.decoy WHERE version > 1") == "17"
    assert warnings == []
    with locked(server, "true"):
        warning.update_decoy("unknown", int)
    assert len(warnings) == 1
    assert "decoys are missing or all in use" in warnings[0]


class locked:
    """A context manager that locks the decoys that match `condition` (in SQL), through another connection."""

    def __init__(self, server: Server, condition: str) -> None:
        self._deadline = time.monotonic() + PATIENCE
        self._connection = connect(server.url, self._deadline)
        self._condition = condition

    def __enter__(self) -> None:
        self._connection.run("BEGIN", deadline=self._deadline)
        sql = f"SELECT 1 FROM pam_totp.decoy WHERE {self._condition} FOR UPDATE"
        self._connection.run(sql, deadline=self._deadline)

    def __exit__(self, *_: object) -> None:
        self._connection.close()


# ---- serial numbers


def with_serial(store: PostgresStore, user: str, serial: str | None = "S1", **fields: Any) -> str:
    token = fob(serial=serial, **{"name": "key", "secret": user.encode().ljust(20)} | fields)
    store.update(user, lambda record: (record.with_token(token), None), create=True)
    return "enrolled"


def test_a_serial_number_has_one_owner(server: Server, store: PostgresStore) -> None:
    with_serial(store, "bob")
    for user in ("alice", "carol"):
        with pytest.raises(SerialTaken, match="bob has the token with the serial number S1"):
            with_serial(store, user)
    assert sorted(store.users()) == ["alice", "bob"]
    assert store.read("alice").tokens == (fob(),)
    store.update("bob", lambda record: (record.without_token("key"), None))
    with_serial(store, "alice")
    store.update("alice", lambda record: (None, None))
    with_serial(store, "carol")
    assert server.sql("SELECT serial, name FROM pam_totp.serial") == "s1|carol"
    assert store.owner_of_serial("s-1") == "carol"
    assert store.owner_of_serial("S2") is None


def test_a_token_in_stock_cannot_be_claimed_by_an_enrolment(server: Server, store: PostgresStore) -> None:
    server.sql("INSERT INTO pam_totp.serial (serial) VALUES ('s1')")
    assert store.owner_of_serial("S1") is None
    with pytest.raises(SerialTaken, match="is in stock"):
        with_serial(store, "bob")
    assert server.sql("SELECT serial, name FROM pam_totp.serial") == "s1|"


def test_only_one_of_racing_enrolments_of_a_serial_number_succeeds(store: PostgresStore) -> None:
    words = in_processes(10, lambda n: with_serial(store, f"user{n}"))
    assert words.count("enrolled") == 1
    assert sum(word.startswith("SerialTaken") for word in words) == 9
    assert len([user for user in store.users() if user != "alice"]) == 1


# ---- the tables


def test_a_database_without_tables_is_unavailable(server: Server, store: PostgresStore) -> None:
    server.sql("DROP SCHEMA pam_totp CASCADE")
    with pytest.raises(StoreError, match=r"no tables of pam_totp \(run 'pam-totp store init URL'\)"):
        PostgresStore(store.url, pool=1).read("alice")


def test_tables_of_another_version_are_unavailable(server: Server, store: PostgresStore) -> None:
    server.sql("UPDATE pam_totp.store SET version = 2")
    with pytest.raises(StoreError, match="tables of version 2, but this pam_totp needs 1"):
        PostgresStore(store.url, pool=1).read("alice")


def test_a_database_out_of_reach_is_unavailable_not_an_unknown_user(tmp_path: Path) -> None:
    store = PostgresStore(f"postgresql:///x?host={tmp_path}")
    with pytest.raises(OutOfReach, match="the database is out of reach: "):
        store.read("alice")
    with pytest.raises(OutOfReach):
        decide(store, "alice", Answer.parse(code(0)), POLICY, lambda: NOW)


def test_a_url_with_a_password_is_refused_without_showing_it(store: PostgresStore) -> None:
    url = store.url.replace("owner@", "owner:geheim@")
    with pytest.raises(StoreError, match="must contain no password") as caught:
        PostgresStore(url).read("alice")
    assert "geheim" not in str(caught.value)


def test_many_records_are_read_in_order_with_their_errors(server: Server, store: PostgresStore) -> None:
    for user in ("bob", "a%b", "zoë"):
        put(store, user)
    server.sql("UPDATE pam_totp.record SET version = version + 1, body = '{}' WHERE name = 'bob'")
    asked = ["zoë", "removed", "bob", "a%b", "alice"]
    found = dict(read_each(store, asked))
    assert list(found) == ["zoë", "bob", "a%b", "alice"]
    assert isinstance(found.pop("bob"), StoreError)
    assert found == {user: store.read(user) for user in ("zoë", "a%b", "alice")}
    assert list(read_each(store, [])) == []


def test_many_records_are_read_with_few_statements(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    run = Connection.run

    def counted(self: Connection, sql: str, *parameters: Any, deadline: float) -> Any:
        statements.append(sql)
        return run(self, sql, *parameters, deadline=deadline)

    monkeypatch.setattr(Connection, "run", counted)
    assert len(dict(read_each(store, [*(f"user{n}" for n in range(2500)), "alice"]))) == 1
    assert len(statements) == 3


def test_connections_are_given_in_the_order_of_the_requests(server: Server, store: PostgresStore) -> None:
    pool = Pool(store.url, 1)
    deadline = time.monotonic() + PATIENCE
    order = []

    def use() -> None:
        with pool.connection(deadline):
            order.append("first")

    with pool.connection(deadline):
        other, _ = in_background(use)
        until(lambda: pool.waiting == 1, "the other thread waits")
    with pool.connection(deadline):
        order.append("second")
    other.join()
    pool.close()
    assert order == ["first", "second"]


def test_the_version_of_a_record_only_increases(server: Server, store: PostgresStore) -> None:
    before = int(server.sql("SELECT version FROM pam_totp.record"))
    with pytest.raises(psycopg.Error, match="must go up"):
        server.sql("UPDATE pam_totp.record SET version = version - 1")
    store.update("alice", lambda record: (None, None))
    put(store)
    assert int(server.sql("SELECT version FROM pam_totp.record")) > before


def test_a_damaged_record_is_unavailable(server: Server, store: PostgresStore) -> None:
    server.sql("UPDATE pam_totp.record SET version = version + 1, body = 'x'")
    with pytest.raises(StoreError, match="alice: must be JSON"):
        log_in(store, code(0))
    put(store, "bob")
    server.sql(
        "UPDATE pam_totp.record SET version = version + 1, body = (SELECT body FROM pam_totp.record"
        " WHERE name = 'bob') WHERE name = 'alice'"
    )
    with pytest.raises(StoreError, match="the field 'user' must match"):
        store.read("alice")


# ---- many records


def add(name: str, serial: str | None = None) -> Callable[[UserRecord], tuple[UserRecord, str]]:
    def add_token(record: UserRecord) -> tuple[UserRecord, str]:
        token = fob(name=name, secret=name.encode().ljust(20), serial=serial)
        return record.with_token(token), f"{record.user} has {len(record.tokens) + 1}"

    return add_token


def names(store: PostgresStore, user: str) -> list[str]:
    return [token.name for token in store.read(user).tokens]


def test_many_changes_are_made_in_one_transaction(server: Server, store: PostgresStore) -> None:
    changes = [("alice", add("a")), *((f"user{n}", add("x", f"S{n}")) for n in range(1100)), ("alice", add("b"))]
    seen: list[tuple[int, int]] = []
    results = store.update_many(changes, lambda done, total: seen.append((done, total)))
    assert results == ["alice has 2", *(f"user{n} has 1" for n in range(1100)), "alice has 3"]
    assert names(store, "alice") == ["fob", "a", "b"]
    assert len(list(store.users())) == 1101
    assert server.sql("SELECT count(*), count(DISTINCT name) FROM pam_totp.serial") == "1100|1100"
    assert seen[-1] == (2204, 2204)
    assert log_in(store, code(0)) == "code"


@pytest.mark.parametrize("failure", ["exception", "serial", "twice"])
def test_many_changes_are_rolled_back_together(server: Server, store: PostgresStore, failure: str) -> None:
    with_serial(store, "zoe", "S1")

    def fails(record: UserRecord) -> tuple[UserRecord, str]:
        raise RuntimeError("in the middle")

    last: dict[str, list[Any]] = {
        "exception": [("carol", fails)],
        "serial": [("carol", add("x", "S1"))],
        "twice": [("carol", add("x", "S2")), ("dave", add("x", "S2"))],
    }
    with pytest.raises(RuntimeError if failure == "exception" else SerialTaken):
        store.update_many([("alice", add("a")), ("bob", add("b", "S3")), *last[failure]], lambda *_: None)
    assert names(store, "alice") == ["fob"]
    assert sorted(store.users()) == ["alice", "zoe"]
    assert server.sql("SELECT serial, name FROM pam_totp.serial") == "s1|zoe"


def test_many_changes_can_omit_a_serial_number_of_another_user(store: PostgresStore) -> None:
    with_serial(store, "zoe", "S1")
    changes = [("alice", add("a", "s-1")), ("bob", add("b", "S2")), ("alice", add("c", "S2")), ("alice", add("d"))]
    results = store.update_many(changes, lambda *_: None, lambda change, taken: str(taken))
    said = [
        f"{owner} has the token with the serial number {serial}" for owner, serial in [("zoe", "s-1"), ("bob", "S2")]
    ]
    assert results == [said[0], "bob has 1", said[1], "alice has 2"]
    assert names(store, "alice") == ["fob", "d"]
    assert store.owner_of_serial("S2") == "bob"


def test_a_login_during_many_changes_is_not_lost(store: PostgresStore) -> None:
    """alice logs in, bob is enrolled, and carol is removed while the records are computed."""
    put(store, "carol")

    def logs_in(record: UserRecord) -> tuple[UserRecord, str]:
        if not done:
            done.append(log_in(store, code(0)))
            put(store, "bob")
            store.update("carol", lambda _: (None, None))
        return record, "none"

    done: list[str] = []
    changes = [(user, add("new")) for user in ("alice", "bob", "carol")]
    results = store.update_many([*changes, ("zoe", logs_in)], lambda *_: None)
    assert done == ["code"]
    assert counter(store) == 1
    assert names(store, "alice") == names(store, "bob") == ["fob", "new"]
    assert names(store, "carol") == ["new"]
    assert results == ["alice has 2", "bob has 2", "carol has 1", "none"]
    with pytest.raises(NotThere):
        store.read("zoe")
