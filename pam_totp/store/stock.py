"""The stock: hardware tokens that no user has, because they are new, or because a user has returned them.

Rules:
1. The stock has an entry for each serial number that was imported into the stock. The entry contains the token, with
   its key, while the token is in stock. The entry contains no key while a user has the token.
2. A token is in the record of one user, or in stock. `exchange` changes the record and the stock together. After a kill
   at any moment, the serial number has one owner, and only the record or the stock has the key.
3. A returned token keeps its counter or step. Codes that a user has used are refused for the next user too.
4. `core.serials` compares serial numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from pam_totp.core.fields import Rule, Value, optional, text, whole_number
from pam_totp.core.record import TIME_LIMIT, RecordError, Token, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.serials import serial_key
from pam_totp.store import SharedStore, Store, StoreError
from pam_totp.store.file import FileStore

if TYPE_CHECKING:
    from pam_totp.store import Codec, R

VERSION = 1
_NO_USER = "-"  # the user in the document of an entry: no user has the token
_TIME = whole_number(0, TIME_LIMIT - 1)

Progress = Callable[[int, int], None]  # done, total


def _token_or_none(v: object) -> str | None:
    return None if v is None or isinstance(v, Token) else "must be a token"


class StockEntry(Value):
    """The entry of one serial number.

    `imported` is the time of the token's first import into the stock, `returned` the time of its last return (Unix
    seconds). `token` is None while a user has the token.
    """

    serial: str
    batch: str | None = None
    imported: int
    returned: int | None = None
    token: Token | None = None

    ERROR = RecordError
    RULES: ClassVar[dict[str, Rule]] = {
        "serial": text,
        "batch": optional(text),
        "imported": _TIME,
        "returned": optional(_TIME),
        "token": _token_or_none,
    }

    def without_token(self) -> StockEntry:
        """Return the entry for a token that a user has."""
        return self._replace(token=None)

    def holding(self, token: Token, returned: int | None = None) -> StockEntry:
        """Return the entry with `token` in stock. `returned` is the time of a return; None keeps the time."""
        return self._replace(token=token, returned=self.returned if returned is None else returned)


class Held(NamedTuple):
    """An entry, and the owner of its token: a user, or None if the token is in stock."""

    entry: StockEntry
    owner: str | None


if TYPE_CHECKING:
    # The arguments: the old record, and the entries of the named serial numbers (None: there is no entry). The results:
    # the new record (None: delete it), the entries to add to the stock, and the result.
    Exchange = Callable[
        [UserRecord, Mapping[str, StockEntry | None]], tuple[UserRecord | None, Sequence[StockEntry], R]
    ]


class NotInStock(Exception):
    """The error for a token that is not in stock. `owner` is the user with this token, or None."""

    def __init__(self, serial: str, owner: str | None) -> None:
        super().__init__(f"the token with the serial number {serial} is not in stock")
        self.serial, self.owner = serial, owner


class Stock(Protocol):
    """The stock of one store. Every method may raise StoreError."""

    def find(self, serial: str) -> Held | None:
        """Return the entry of a serial number, or None, within 50 ms. Change nothing."""

    def entries(self) -> Iterator[Held | StoreError]:
        """Yield all entries, or the error of reading an entry, in any order."""

    def add(
        self, entries: Sequence[StockEntry], progress: Progress = lambda done, total: None
    ) -> list[tuple[str | None] | None]:
        """Add tokens, durably. The next command completes or rolls back a killed `add`, for all tokens together.

        Return a result for each entry: None if it was added. Otherwise the serial number was in use, and the result is
        a tuple with its owner, or (None,) if the token is in stock.
        """

    def update(self, serial: str, change: Callable[[StockEntry], StockEntry | None]) -> StockEntry:
        """Replace the entry of a token in stock by the value that `change` returns, and return the old entry.

        Delete the entry if the value is None. Raise NotInStock.
        """

    def exchange(self, user: str, change: Exchange[R], serials: Sequence[str], *, create: bool = False) -> R:
        """Change a user's record and the stock together, durably, and return the result of `change`.

        `change` gets the record, and the entries of `serials`. A token is in stock only if its entry contains it. The
        stock removes the tokens that `change` adds to the record. The stock adds the entries that `change` returns:
        their tokens must be in the old record, and missing in the new record. The stock may call `change` more than
        once, and uses the result of the last call.

        Raise NotThere for a user without a record if `create` is False. Raise SerialTaken.
        """

    def seal_again(self) -> int:
        """Seal the entries with the current key, durably. Return the number of entries that were changed.

        The store must have a codec.
        """

    def documents(self) -> Iterator[bytes]:
        """Yield the documents of all entries, with their keys as they are stored."""


def stock_of(store: Store) -> Stock:
    """Return the stock of a store. Raise StoreError for a store of one user, which has no stock."""
    if type(store) is FileStore:
        from pam_totp.store.stock_files import FileStock  # imported here because `claims` imports this module

        return FileStock(store)
    if isinstance(store, SharedStore):
        return store.stock()
    raise StoreError("a store of one user has no stock of tokens")


def is_in_stock(store: Store, serial: str) -> bool:
    """Return True if the token with the serial number `serial` is in stock. A store of one user has no stock."""
    if type(store) is not FileStore and not isinstance(store, SharedStore):
        return False
    held = stock_of(store).find(serial)
    return held is not None and held.entry.token is not None


def owner_of(serial: str) -> str:
    """Return the owner of a token in stock, for the seal. The text contains NUL, so it differs from each user name."""
    return f"\0stock\0{serial_key(serial)}"


def document_of(entry: StockEntry, codec: Codec | None = None) -> bytes:
    """Return the document of an entry: a line of JSON, then a record that contains the token. `codec` seals the key."""
    head = {"stock": VERSION} | {name: getattr(entry, name) for name in StockEntry._fields if name != "token"}
    record = UserRecord(user=_NO_USER, tokens=() if entry.token is None else (entry.token,))
    document = json.dumps(head).encode("ascii") + b"\n" + serialize(record)
    return document if codec is None else codec.seal(document, owner_of(entry.serial))


def parse_entry(document: bytes, source: str, codec: Codec | None = None) -> StockEntry:
    """Return the entry that a document contains. Raise StoreError with a message that begins with `source`."""
    head, _, rest = document.partition(b"\n")
    try:
        fields = json.loads(head.decode("ascii"))
        if type(fields) is not dict or fields.pop("stock", None) != VERSION:
            raise RecordError("must be an entry of the stock")
        if codec is not None:
            rest = codec.open(rest, owner_of(str(fields.get("serial"))), source)
        tokens = parse(rest).tokens
        return StockEntry(**fields, token=tokens[0] if tokens else None)
    except (ValueError, TypeError, RecursionError) as e:
        why = str(e) if isinstance(e, RecordError) else "must be an entry of the stock"
        raise StoreError(f"{source}: {why}") from None
