"""Tests of the seal: the secrets in a folder and in a database, which open only with their key and for their owner."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pam_totp.core.record import Ticket, UserRecord
from pam_totp.core.secretfile import base32, parse, serialize
from pam_totp.core.slots import decode
from pam_totp.operations import stock
from pam_totp.store import NotThere, StoreError, journal, seal_key
from pam_totp.store.bulk import update_many
from pam_totp.store.file import FileStore, file_name
from pam_totp.store.keyring import Keyring, KeyringError, State, parse_keyring, serialize_keyring
from pam_totp.store.postgres import PostgresStore
from pam_totp.store.postgres_copy import to_database, to_folder
from pam_totp.store.seal import Sealer, key_ids
from pam_totp.store.stock import document_of, parse_entry, stock_of
from tests.core.backends import Backend, Database, Folder
from tests.core.stores import LOCK_TIMEOUT, code
from tests.core.strategies import records
from tests.core.test_stock import code as stock_code
from tests.core.test_stock import entry, key
from tests.support.cluster import with_postgresql
from tests.support.site import KEY, fob, phone

FIRST, SECOND = b"1" * 32, b"2" * 32
SEALER = Sealer(Keyring(current=FIRST))
SEALING = Sealer(Keyring(current=FIRST), State.SEALING)
BOTH = Sealer(Keyring(current=SECOND, previous=FIRST))
PICTURE = "0123456789ABCDEF"
INVITED = Ticket(salt="0" * 32, digest="0" * 64, ends=5, token="fob", picture=PICTURE)


class SealedFolder(Folder):
    codec = SEALER

    def store(self, lock_wait: float = LOCK_TIMEOUT) -> FileStore:
        return FileStore(str(self.folder), lock_wait, codec=self.codec)

    def content(self) -> bytes:
        return b"".join(
            path.read_bytes() for path in self.folder.rglob("*") if path.is_file() and ".decoy" not in str(path)
        )

    def swap(self) -> None:
        """Exchange the sealed secrets of alice and bob."""
        texts = {user: (self.folder / f"{user}.record").read_bytes() for user in ("alice", "bob")}
        for user, other in (("alice", "bob"), ("bob", "alice")):
            document = decode(texts[user]).document.replace(secret_of(texts[user]), secret_of(texts[other]))
            stored = decode(texts[user])
            (self.folder / f"{user}.record").write_bytes(b"".join(stored.next(document)[1] for _ in range(2)))


class SealedDatabase(Database):
    codec = SEALER

    def store(self, lock_wait: float = LOCK_TIMEOUT) -> PostgresStore:
        return PostgresStore(self.url, lock_wait, wait=LOCK_TIMEOUT, codec=self.codec)

    def content(self) -> bytes:
        tables = "SELECT convert_from(body, 'UTF8') FROM pam_totp.record UNION ALL SELECT convert_from(body, 'UTF8')"
        return self.server.sql(f"{tables} FROM pam_totp.stock").encode()


def secret_of(content: bytes) -> bytes:
    return content.split(b'"secret": "')[1].partition(b'"')[0]


@pytest.fixture(params=["file", pytest.param("postgresql", marks=with_postgresql)])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "file":
        return SealedFolder(request.getfixturevalue("folder"))
    return SealedDatabase(request.getfixturevalue("postgresql"), request.getfixturevalue("database"))


def sealed(record: UserRecord, sealer: Sealer = SEALER) -> bytes:
    return sealer.seal(serialize(record), record.user)


# ---- documents


@given(records())
def test_a_sealed_document_has_one_encoding_and_opens_again(record: UserRecord) -> None:
    document = sealed(record)
    assert SEALER.open(document, record.user, "r") == serialize(record)
    assert sealed(parse(SEALER.open(document, record.user, "r"))) == document
    for token in record.tokens:
        assert base32(token.secret).encode() not in document
    assert SEALER.is_current(document)
    assert BOTH.is_current(document) == (not record.tokens and (record.ticket is None or record.ticket.picture is None))


def test_a_document_with_a_picture_does_not_show_it() -> None:
    record = UserRecord(user="alice", tokens=(fob(confirmed=False),), ticket=INVITED)
    assert PICTURE.encode() not in sealed(record)
    assert parse(SEALER.open(sealed(record), "alice", "r")) == record


@given(st.data())
def test_no_change_of_a_sealed_text_opens(data: st.DataObject) -> None:
    document = sealed(UserRecord(user="alice", tokens=(fob(),)))
    start = document.index(b"sealed:")
    at = data.draw(st.integers(start, start + len(secret_of(document)) - 1))
    byte = data.draw(st.sampled_from(b"ABCabc123+/=:").filter(lambda b: b != document[at]))
    changed = document[:at] + bytes([byte]) + document[at + 1 :]
    with pytest.raises(StoreError, match=r"^r: tokens\[0\]\.secret: "):
        SEALER.open(changed, "alice", "r")


@given(
    st.binary()
    | st.binary().map(lambda b: b'\n   "secret": "sealed:' + b)
    | st.binary().map(lambda b: b'\n   "created": ' + b)
)
def test_any_other_bytes_open_unchanged_or_are_refused(data: bytes) -> None:
    try:
        assert SEALING.open(data, "alice", "r") == data
    except StoreError as e:
        assert str(e).startswith("r: ")


@pytest.mark.parametrize(
    ("record", "user"),
    [
        (UserRecord(user="alice", tokens=(fob(),)), "bob"),
        (UserRecord(user="alice", tokens=(fob(created=2),)), "alice"),
    ],
)
def test_a_secret_of_another_user_or_token_does_not_open(record: UserRecord, user: str) -> None:
    own = UserRecord(user=user, tokens=(fob(created=3),))
    moved = sealed(own).replace(secret_of(sealed(own)), secret_of(sealed(record)))
    with pytest.raises(StoreError, match="was sealed for another user or token, or is damaged"):
        SEALER.open(moved, user, "r")


def test_a_key_of_another_token_in_stock_does_not_open() -> None:
    texts = {serial: document_of(entry(serial), SEALER) for serial in ("T-1", "T-2")}
    moved = texts["T-1"].replace(secret_of(texts["T-1"]), secret_of(texts["T-2"]))
    with pytest.raises(StoreError, match="was sealed for another user or token, or is damaged"):
        parse_entry(moved, "s", SEALER)
    of_user = sealed(UserRecord(user="alice", tokens=(fob(created=1, secret=key("T-1")),)))
    with pytest.raises(StoreError, match="was sealed for another user or token, or is damaged"):
        parse_entry(texts["T-1"].replace(secret_of(texts["T-1"]), secret_of(of_user)), "s", SEALER)


def test_a_renamed_token_keeps_its_sealed_text() -> None:
    record = UserRecord(user="alice", tokens=(fob(),))
    renamed = record.with_changed(record.tokens[0], record.tokens[0].renamed("other"))
    assert secret_of(sealed(record)) == secret_of(sealed(renamed))


def test_without_the_key_a_sealed_document_says_what_is_missing() -> None:
    document = sealed(UserRecord(user="alice", tokens=(fob(),)))
    with pytest.raises(
        StoreError, match=r"r: tokens\[0\]\.secret: is sealed with the key [0-9a-f]{8}, which is missing"
    ):
        Sealer(Keyring(current=SECOND)).open(document, "alice", "r")
    with pytest.raises(ValueError, match="is sealed, and this process has no key"):
        parse(document)


def test_only_a_store_that_is_being_sealed_accepts_open_secrets() -> None:
    document = serialize(UserRecord(user="alice", tokens=(fob(),)))
    assert SEALING.open(document, "alice", "r") == document
    with pytest.raises(StoreError, match="must be sealed"):
        SEALER.open(document, "alice", "r")


def test_a_host_that_only_opens_writes_open_secrets() -> None:
    opening, record = Sealer(Keyring(current=FIRST), State.OPENING), UserRecord(user="alice", tokens=(fob(),))
    assert opening.open(sealed(record), "alice", "r") == serialize(record)
    assert opening.seal(serialize(record), "alice") == serialize(record)


# ---- the keyring

KEYRINGS = [
    Keyring(current=FIRST),
    Keyring(current=FIRST, following=SECOND, stores=(("/a b", State.SEALED), ("postgresql", State.OPENING))),
    Keyring(current=FIRST, previous=SECOND, stores=(("/\udcff", State.SEALING),)),
]


@pytest.mark.parametrize("keyring", KEYRINGS)
def test_a_keyring_has_an_encoding_and_shows_no_key(keyring: Keyring) -> None:
    assert parse_keyring(serialize_keyring(keyring)) == keyring
    assert "1111" not in repr(keyring)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:-1], "the last line must be complete"),
        (lambda text: b"x" + text, "line 1"),
        (lambda text: text.replace(b"key ", b"kay "), "line 2: must be a key or a store, each once"),
        (lambda text: text + text.split(b"\n")[1] + b"\n", "line 3: must be a key or a store, each once"),
        (lambda text: text.replace(b"key M", b"key -"), "line 2: the key must be 32 bytes in base64"),
        (lambda text: text.replace(b"key ", b"old "), "must have a line 'key'"),
        (lambda text: text + text.split(b"\n")[1].replace(b"key", b"old") + b"\n", "must have different keys"),
        (lambda text: text + b"sealed\n", "line 3"),
        (lambda text: text * 100, "must be at most 4096 bytes"),
    ],
)
def test_a_keyring_with_a_mistake_is_refused(change: Callable[[bytes], bytes], problem: str) -> None:
    with pytest.raises(KeyringError, match=problem):
        parse_keyring(change(serialize_keyring(Keyring(current=FIRST))))


# ---- the keyring of a process


@pytest.fixture
def credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Reset the keyring of this process, and return the path of the credential that systemd would create."""
    process = seal_key._Process()
    process.codecs = {}
    monkeypatch.setattr(seal_key, "_process", process)
    monkeypatch.setattr(seal_key, "NOTE", str(tmp_path / "seal.json"))
    (tmp_path / "seal.json").write_text('{"stores": ["/sealed"]}')
    monkeypatch.setenv(seal_key.CREDENTIALS, str(tmp_path))
    return tmp_path / seal_key.NAME


def test_a_process_with_a_credential_keeps_no_descriptor_of_it(credential: Path) -> None:
    credential.write_bytes(serialize_keyring(Keyring(current=FIRST).with_store("/sealed", State.SEALED)))
    assert isinstance(seal_key.codec_of("/sealed"), Sealer)
    assert str(credential) not in {os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()}


def test_a_credential_that_cannot_be_opened_refuses_sealed_records_only(credential: Path) -> None:
    credential.symlink_to("key")  # a symbolic link is refused
    with pytest.raises(StoreError, match=f"{credential}: "):
        seal_key.keyring()
    codec = seal_key.codec_of("/sealed")
    assert codec is not None
    with pytest.raises(StoreError, match="the key cannot be read"):
        codec.open(serialize(UserRecord(user="alice", tokens=(fob(),))), "alice", "alice")
    assert seal_key.codec_of("/other") is None


# ---- stores


def test_a_stolen_store_has_no_key_and_logins_work(backend: Any) -> None:
    backend.put(tokens=(fob(), phone()))
    assert stock_of(backend.store()).add([entry("T-1")]) == [None]
    assert backend.log_in(code(0)) == "code"
    assert backend.log_in(code(0)) == "replayed"
    content = backend.content()
    for secret in (KEY, key("T-1")):
        assert base32(secret).encode() not in content
    assert content.count(b"sealed:") >= 3


def test_a_login_keeps_the_sealed_text_and_the_size_of_the_file(folder: Path) -> None:
    backend = SealedFolder(folder)
    backend.put()
    before = (folder / "alice.record").read_bytes()
    for counter in range(3):
        assert backend.log_in(code(counter)) == "code"
    after = (folder / "alice.record").read_bytes()
    assert secret_of(before) == secret_of(after)
    assert len(before) == len(after)


def test_a_full_record_keeps_room_for_every_login(folder: Path) -> None:
    backend = SealedFolder(folder)
    names = [f"{n}{'x' * 200}" for n in range(8)]
    backend.put(tokens=tuple(fob(name=name, secret=os.urandom(128), confirmed=False) for name in names))
    size = (folder / "alice.record").stat().st_size
    store = backend.store()
    store.update("alice", lambda record: (record.longest(), None))
    assert (folder / "alice.record").stat().st_size == size


@pytest.mark.parametrize("codec", [None, Sealer(Keyring(current=SECOND))])
def test_without_the_right_key_a_store_fails_instead_of_not_enrolled(backend: Any, codec: Sealer | None) -> None:
    backend.put()
    backend.codec = codec
    with pytest.raises(StoreError, match="sealed"):
        backend.store().read("alice")
    with pytest.raises(StoreError, match="sealed"):
        backend.log_in(code(0))
    with pytest.raises(NotThere):
        backend.store().read("bob")


def test_secrets_swapped_between_files_are_refused(folder: Path) -> None:
    backend = SealedFolder(folder)
    backend.put("alice")
    backend.put("bob", tokens=(fob(secret=b"2" * 20),))
    backend.swap()
    for user in ("alice", "bob"):
        with pytest.raises(StoreError, match=rf"{user}\.record: tokens\[0\]\.secret: was sealed for another user"):
            backend.log_in(code(0), user)


@with_postgresql
def test_secrets_swapped_between_rows_are_refused(request: pytest.FixtureRequest) -> None:
    backend = SealedDatabase(request.getfixturevalue("postgresql"), request.getfixturevalue("database"))
    backend.put("alice")
    backend.put("bob", tokens=(fob(secret=b"2" * 20),))
    swapped = (
        "convert_to(replace(convert_from(o.body, 'UTF8'), '\"user\": \"' || o.name, '\"user\": \"' || r.name), 'UTF8')"
    )
    backend.server.sql(
        f"UPDATE pam_totp.record AS r SET version = r.version + 1, body = {swapped} FROM pam_totp.record AS o"
        " WHERE o.name <> r.name"
    )
    for user in ("alice", "bob"):
        with pytest.raises(StoreError, match=rf"{user}: tokens\[0\]\.secret: was sealed for another user"):
            backend.log_in(code(0), user)


def test_a_token_moves_between_stock_and_users_sealed(backend: Any) -> None:
    store = backend.store()
    assert stock_of(store).add([entry("T-1")]) == [None]
    stock.assign(store, "T-1", "alice", now=5, codes=stock_code("T-1", 0))
    assert base32(key("T-1")).encode() not in backend.content()
    assert store.read("alice").tokens[0].secret == key("T-1")
    stock.give_back(store, "T-1", now=6)
    assert base32(key("T-1")).encode() not in backend.content()
    held = stock_of(store).find("T-1")
    assert held is not None
    assert held.entry.token is not None
    assert held.entry.token.secret == key("T-1")


def test_a_rotation_leaves_no_secret_under_the_old_key(backend: Any) -> None:
    for user in ("alice", "bob"):
        backend.put(user, tokens=(fob(secret=os.urandom(20)),))
    stock_of(backend.store()).add([entry("T-1"), entry("T-2")])
    old = next(filter(None, key_ids(sealed(UserRecord(user="alice", tokens=(fob(),))))))
    backend.codec = BOTH
    store = backend.store()
    assert [store.seal_again(user) for user in ("alice", "bob", "alice")] == [True, True, False]
    assert [stock_of(store).seal_again() for _ in range(2)] == [2, 0]
    assert old.encode() not in backend.content()
    backend.codec = Sealer(Keyring(current=SECOND))
    assert backend.store().read("alice").tokens
    with pytest.raises(NotThere):
        backend.store().seal_again("nobody")


def test_sealing_an_open_store_leaves_no_open_key(backend: Any) -> None:
    backend.codec = None
    backend.put()
    assert backend.log_in(code(0)) == "code"
    stock_of(backend.store()).add([entry("T-1")])
    backend.codec = SEALING
    assert backend.log_in(code(1)) == "code"
    assert backend.store().seal_again("alice") == (backend.kind == "file")  # the login did not seal the other slot
    assert stock_of(backend.store()).seal_again() == 1
    assert base32(KEY).encode() not in backend.content()
    assert base32(key("T-1")).encode() not in backend.content()
    backend.codec = SEALER
    assert backend.log_in(code(2)) == "code"


def test_a_change_of_many_records_writes_sealed_records(backend: Any) -> None:
    backend.put("alice")
    pairs = [(user, lambda record: (record.with_token(phone(secret=b"7" * 20)), None)) for user in ("alice", "bob")]
    store: Any = backend.store()
    if backend.kind == "file":
        update_many(store, pairs)
    else:
        store.update_many(pairs)
    assert base32(b"7" * 20).encode() not in backend.content()
    assert [len(store.read(user).tokens) for user in ("alice", "bob")] == [2, 1]


def test_a_failed_change_of_many_records_is_rolled_back(backend: Any) -> None:
    backend.put("alice")

    def fail(record: UserRecord) -> tuple[UserRecord, None]:
        raise StoreError("no")

    pairs = [(user, lambda record: (record.with_token(phone(secret=b"7" * 20)), None)) for user in ("alice", "bob")]
    store: Any = backend.store()
    with pytest.raises(StoreError, match="no"):
        (partial(update_many, store) if backend.kind == "file" else store.update_many)([*pairs, ("carol", fail)])
    assert backend.log_in(code(0)) == "code"
    assert [token.name for token in store.read("alice").tokens] == ["fob"]
    assert list(store.users()) == ["alice"]


def test_a_killed_change_of_sealed_records_is_rolled_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SealedFolder(folder)
    backend.put("alice")
    pairs = [(user, lambda record: (record.with_token(phone(secret=b"7" * 20)), None)) for user in ("alice", "bob")]
    with monkeypatch.context() as killed:
        killed.setattr(journal, "unmark", lambda opened: os._exit(0))
        killed.setattr(journal, "undo", lambda *_: os._exit(1))
        child = os.fork()
        if child == 0:
            update_many(backend.store(), pairs)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
    assert backend.log_in(code(0)) == "code", "a login after the kill"
    assert journal.recover(backend.store()) == 2
    assert [token.name for token in backend.store().read("alice").tokens] == ["fob"]
    assert list(backend.store().users()) == ["alice"]
    assert backend.log_in(code(0)) == "replayed"


def test_an_unknown_user_costs_the_work_of_the_seal(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(SEALER, "exercise", lambda: calls.append("exercise"))
    backend.store().update_decoy("nobody", lambda: None)
    assert calls == ["exercise"]


@with_postgresql
def test_a_sealed_store_is_copied_to_a_database_and_back(
    folder: Path, database: str, request: pytest.FixtureRequest
) -> None:
    backend = SealedFolder(folder)
    backend.put()
    stock_of(backend.store()).add([entry("T-1")])
    before = decode((folder / "alice.record").read_bytes()).document
    assert to_database(str(folder), database, nullcontext, SEALER).records == 1
    there = SealedDatabase(request.getfixturevalue("postgresql"), database)
    assert there.log_in(code(0)) == "code"
    assert base32(KEY).encode() not in there.content()
    to_folder(database, str(folder), (os.geteuid(), os.getegid()), nullcontext, SEALER)
    assert backend.log_in(code(0)) == "replayed"
    assert secret_of(before) == secret_of((folder / file_name("alice")).with_suffix(".record").read_bytes())
    assert stock_of(backend.store()).find("T-1") is not None
