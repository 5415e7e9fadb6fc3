"""The desk: the operations of desk members for users, and the permissions of desk members.

Rules:
1. A desk member is an account of the site's desk group. The caller has checked a code of the desk member.
2. Only root changes the factors of accounts with uid 0, of desk members, and of members of the protected groups. The
   groups of every name of the uid are checked, and the primary group too.
3. Only root changes the factors of a user without a passwd entry, because the groups of such a user are unknown.
4. Each change looks up both accounts and their groups while it holds the lock of the user's record.
5. Keys and codes of a user are hidden from the desk. A desk member sees a temporary code or a ticket once, after its
   creation.
6. An enrolled user remains enrolled after every change, because `nullok` lets other users log in without a code.
7. The audit log names the user and the desk member of every view, change and denial. The user's record keeps the last
   changes, for the user.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import ClassVar, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, unquote

from pam_totp.core.fields import Rule, Value, printable
from pam_totp.core.record import (
    DAY,
    MAX_ORIGIN,
    MAX_TOKENS,
    TIME_LIMIT,
    RecentLogin,
    RecordError,
    Token,
    TotpToken,
    UserRecord,
)
from pam_totp.core.settings import SettingsError, Site, table_as
from pam_totp.core.verify import Earlier
from pam_totp.formats import qr
from pam_totp.operations import audit_log, stock
from pam_totp.operations.self_service import Asking, Factors
from pam_totp.operations.tickets import (
    MAX_TEMPORARY,
    MAX_TICKET,
    TICKET_DAYS,
    issue_ticket,
    new_phone,
    shows_key,
    with_temporary_code,
)
from pam_totp.store import NotThere, Store, clock_of

R = TypeVar("R")
Changed: TypeAlias = tuple[UserRecord, R, Sequence[Token]]  # the new record, the result, and the changed tokens

ROOT = 0  # uid
PROTECTED = ("root", "sudo", "wheel", "admin")  # groups whose members can become root on many systems
MOST_FOUND = 20  # the maximum of users that a search returns
LEAST_VALID = 60  # seconds
DEFAULT_TEMPORARY = 4 * 3600  # seconds
DEFAULT_TICKET = TICKET_DAYS * DAY  # seconds


class Reason(StrEnum):
    """The reason of a denied or failed change by the desk."""

    NOT_AT_THE_DESK = "not-at-the-desk"
    ROOT_ONLY = "root-only"
    NO_ACCOUNT = "no-account"
    NO_TOKENS = "no-tokens"
    NO_SUCH_TOKEN = "no-such-token"
    TOKEN_CONFIRMED = "token-confirmed"
    NOT_CONFIRMED = "not-confirmed"
    TOO_MANY_TOKENS = "too-many-tokens"
    INVALID_TIME = "invalid-time"
    NOT_ASSIGNED = "not-assigned"
    STOCK = "stock"


TEXTS = {
    Reason.NOT_AT_THE_DESK: "permission denied: not a member of the desk group",
    Reason.ROOT_ONLY: "permission denied: only root can change tokens of root, of desk members, and of members of the"
    " protected groups",
    Reason.NO_ACCOUNT: "there is no account of this name on this host: only root can change its tokens",
    Reason.NO_TOKENS: "the user has no token (create a ticket, or assign a token in stock)",
    Reason.NO_SUCH_TOKEN: "the user has no token of that name",
    Reason.TOKEN_CONFIRMED: "the user has confirmed this token already",
    Reason.NOT_CONFIRMED: "the user has not confirmed a token yet (create a ticket instead)",
    Reason.TOO_MANY_TOKENS: f"the user has {MAX_TOKENS} tokens, which is the maximum",
    Reason.INVALID_TIME: f"a temporary code must be valid for a minute to a day, and a ticket for at most"
    f" {MAX_TICKET // DAY} days",
    Reason.NOT_ASSIGNED: "no user has a token with this serial number",
}


class DeskError(Exception):
    """The error for a denied or failed change by the desk. The store is unchanged. The text contains no code or key.

    `detail` is the error of the stock, or None.
    """

    def __init__(self, reason: Reason, detail: stock.StockError | None = None) -> None:
        super().__init__(TEXTS[reason] if detail is None else str(detail))
        self.reason, self.detail = reason, detail


class DeskSettings(Value):
    """`[desk]` of the site file: the group of the desk members, and more groups whose members only root may change."""

    group: str
    protect: tuple[str, ...] = ()

    ERROR = SettingsError
    RULES: ClassVar[dict[str, Rule]] = {
        "group": printable,
        "protect": lambda v: (
            None if type(v) is tuple and all(printable(x) is None for x in v) else "must be a list of groups"
        ),
    }


def desk_settings(site: Site) -> DeskSettings | None:
    """Return the table `[desk]` of the site file, or None if the table is missing.

    Raise SettingsError if the table is invalid.

    Logins skip this check: a mistake in the table must not deny them.
    """
    return table_as(site.desk, DeskSettings, "desk", "group")


class Accounts(Protocol):
    """The accounts and groups of the host. Each call asks the name service again."""

    def account(self, name: str) -> tuple[str, int] | None:
        """Return the name and the uid in the passwd entry of `name`, or None."""

    def names_of(self, uid: int) -> set[str]:
        """Return the names that the name service finds for a uid."""

    def groups_of(self, name: str) -> set[int]:
        """Return the gids of an account's groups, with the primary group."""

    def group(self, name: str) -> tuple[int, set[str]] | None:
        """Return the gid of a group, and its members by name, or None."""


@dataclass(frozen=True, slots=True)
class RecentChange:
    """A change that the desk member `by` made at `at` (Unix seconds).

    `what` is the name of the change in the audit log. `token` is the name of the changed token, or None. The names are
    shortened to MAX_ORIGIN characters. An entry of the record has these values as percent-encoded words.
    """

    at: int
    what: str
    by: str
    token: str | None = None

    def entry(self) -> str:
        """Return the entry of `UserRecord.changes`."""
        words = [self.what, self.by, *([] if self.token is None else [self.token])]
        return " ".join([str(self.at), *(quote(word[:MAX_ORIGIN], safe="") for word in words)])

    @classmethod
    def parse(cls, entry: str) -> RecentChange | None:
        """Return the change that an entry describes, or None for other text."""
        at, *words = entry.split(" ")
        if len(words) not in (2, 3) or not (at.isascii() and at.isdigit() and len(at) < len(str(TIME_LIMIT))):
            return None
        return cls(int(at), *map(unquote, words))


def recent_changes(record: UserRecord) -> tuple[RecentChange, ...]:
    """Return the last changes by the desk, the oldest first."""
    found = map(RecentChange.parse, record.change_entries)
    return tuple(change for change in found if change is not None)


@dataclass(frozen=True, slots=True)
class TokenFacts:
    """The facts about a token that the desk sees. `period` is in seconds, and None for an HOTP token."""

    name: str
    type: str
    serial: str | None
    period: int | None
    enabled: bool
    confirmed: bool
    created: int
    last_used: int | None
    row_needed: bool

    @property
    def state(self) -> str:
        return "disabled" if not self.enabled else "active" if self.confirmed else "unconfirmed"


@dataclass(frozen=True, slots=True)
class Person:
    """The facts about a user that the desk sees, without keys and digests. Times are in Unix seconds.

    `denied` is the reason why the desk may not change the user's factors, or None. `ticket` is the name of the token
    that a valid ticket confirms. `ticket_ends` and `temporary_ends` are None for a code that is missing or expired.
    """

    user: str
    denied: Reason | None
    enrolled: bool
    tokens: tuple[TokenFacts, ...]
    failures: int
    locked: bool
    recovery_left: int
    ticket: str | None
    ticket_ends: int | None
    temporary_ends: int | None
    recent: tuple[RecentLogin, ...]
    changes: tuple[RecentChange, ...]


@dataclass(frozen=True, slots=True)
class StockFacts:
    """The facts about a serial number of the stock that the desk sees. `user` is the owner of the token, or None."""

    serial: str
    batch: str | None
    state: str
    user: str | None


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a search: at most MOST_FOUND names of users, sorted, and the token with this serial number."""

    users: tuple[str, ...]
    item: StockFacts | None = None


@dataclass(frozen=True, slots=True)
class Handed:
    """A temporary code or a ticket for a user, shown once. `ends` is in Unix seconds.

    `replaces` is True for the ticket of an enrolled user. Such a ticket replaces the tokens, and logins refuse
    the ticket.
    """

    user: str
    code: str
    ends: int
    token: str | None = None
    replaces: bool = False

    def __repr__(self) -> str:
        return f"<code for {self.user!r}>"


class Desk:
    """The operations of the desk. Every method may raise DeskError and StoreError.

    `by` is the name of the desk member in the passwd entry. `issuer` is the name that apps show for the site. `fields`
    are further fields of each line in the audit log.
    """

    def __init__(
        self,
        store: Store,
        factors: Factors,
        *,
        settings: DeskSettings,
        accounts: Accounts,
        service: str,
        sink: audit_log.Sink,
        now: Callable[[], int],
        issuer: str,
        fields: Mapping[str, str | int | None] | None = None,
    ) -> None:
        self._store, self._factors, self._accounts = store, factors, accounts
        self._settings, self._service, self._sink, self._issuer = settings, service, sink, issuer
        self._now = clock_of(store, now)
        self._fields = fields or {}

    # ---- permissions

    def is_member(self, name: str) -> bool:
        """Return True if the account `name` is a desk member now."""
        found = self._accounts.account(name)
        group = self._accounts.group(self._settings.group)
        return found is not None and group is not None and group[0] in self._accounts.groups_of(found[0])

    def prove(self, asking: Asking, earlier: Earlier = Earlier.NONE) -> tuple[bool, Earlier]:
        """Check a code of the desk member, and use it up. Return True if the code is right, and the refused answers
        before the next answer.
        """
        decision, following = self._factors.answer(asking, earlier)
        return decision.outcome.accepted, following

    def denied(self, by: str, user: str) -> Reason | None:
        """Return the reason why `by` may not change the factors of `user` now, or None."""
        if not self.is_member(by):
            return Reason.NOT_AT_THE_DESK
        found = self._accounts.account(user)
        if found is None or found[0] != user:
            return Reason.NO_ACCOUNT
        return Reason.ROOT_ONLY if self._is_roots(*found) else None

    def _is_roots(self, name: str, uid: int) -> bool:
        """Return True if the account is root, a desk member or a member of a protected group, under any name of the
        uid.

        Also return True while a protected group that the site added does not exist: its members are unknown.
        """
        if uid == ROOT:
            return True
        names = {name} | self._accounts.names_of(uid)
        for group in (self._settings.group, *PROTECTED, *self._settings.protect):
            found = self._accounts.group(group)
            if found is None and group in (self._settings.group, *PROTECTED):
                continue
            if found is None:  # a mistake in `protect`, or the name service does not answer
                return True
            gid, members = found
            if any(gid in self._accounts.groups_of(each) for each in names):
                return True
            if any((entry := self._accounts.account(member)) is not None and entry[1] == uid for member in members):
                return True
        return False

    def require(self, by: str, user: str, what: str) -> None:
        """Raise DeskError if `by` may not make the change `what` for `user` now. Log the denial."""
        reason = self.denied(by, user)
        if reason is not None:
            self._note("denied", user, by, what=what, reason=reason.value)
            raise DeskError(reason)

    # ---- read

    def find(self, by: str, text: str) -> Found:
        """Return the user with the name or the serial number `text`, otherwise the users with `text` in their names."""
        self._require_member(by, "find")
        account = self._accounts.account(text)
        if account is not None:
            return Found((account[0],))
        item, owner = self._item(text), self._store.owner_of_serial(text) if text else None
        if item is not None or owner is not None:
            return Found(() if owner is None else (owner,), item)
        part = text.casefold()
        users = sorted(user for user in self._store.users() if part and part in user.casefold())
        return Found(tuple(islice(users, MOST_FOUND)))

    def require_in_stock(self, by: str, serial: str) -> None:
        """Raise DeskError unless the token with this serial number is in stock."""
        self._require_member(by, "stock")
        item, owner = self._item(serial), self._store.owner_of_serial(serial)
        if item is None or item.user is not None or owner is not None:
            reason = stock.Reason.NOT_IN_STOCK if owner is None else stock.Reason.ASSIGNED
            raise DeskError(Reason.STOCK, stock.StockError(reason, serial, owner))

    def free(self, by: str) -> list[StockFacts]:
        """Return the tokens in stock, ordered by serial number."""
        self._require_member(by, "stock")
        return [_stock_facts(item) for item in stock.list_free(self._store)]

    def person(self, by: str, user: str) -> Person:
        """Return the facts about a user that the desk may see. `user` is the name in the passwd entry.

        The user need not have a record.
        """
        self._require_member(by, "show")
        denied = self.denied(by, user)
        if printable(user) is not None:  # no record has such a name
            raise DeskError(Reason.NO_ACCOUNT)
        record = self._factors.of(user)
        if denied is Reason.NO_ACCOUNT and not record.tokens:
            raise DeskError(Reason.NO_ACCOUNT)
        self._note("viewed", user, by, what="desk")
        return self._person_of(record, denied)

    def _person_of(self, record: UserRecord, denied: Reason | None) -> Person:
        now = self._now()
        failures, _ = record.failures_now(now)
        temporary, ticket = record.temporary, record.ticket if record.is_invited(now) else None
        return Person(
            user=record.user,
            denied=denied,
            enrolled=record.enrolled,
            tokens=tuple(map(_token_facts, record.tokens)),
            failures=failures,
            locked=self._factors.locks(record),
            recovery_left=len(record.recovery),
            ticket=None if ticket is None else ticket.token,
            ticket_ends=None if ticket is None else ticket.ends,
            temporary_ends=temporary.ends if temporary is not None and now < temporary.ends else None,
            recent=record.recent_logins,
            changes=recent_changes(record),
        )

    def _item(self, serial: str) -> StockFacts | None:
        item = stock.find(self._store, serial) if serial else None
        return None if item is None else _stock_facts(item)

    # ---- change

    def unlock(self, by: str, user: str) -> int:
        """Clear the count of failures, and return the old count."""

        def change(record: UserRecord) -> Changed[int]:
            return record.unlocked(), record.failures, ()

        return self._change(by, user, "unlock", change, lambda failures: {"failures": failures})

    def temporary_code(self, by: str, user: str, valid: int = DEFAULT_TEMPORARY) -> Handed:
        """Create a temporary code of the user for one login within `valid` seconds, at most a day. Return the code."""
        if not LEAST_VALID <= valid <= MAX_TEMPORARY:
            raise DeskError(Reason.INVALID_TIME)

        def change(record: UserRecord) -> Changed[Handed]:
            if not record.enrolled:
                raise DeskError(Reason.NOT_CONFIRMED if record.tokens else Reason.NO_TOKENS)
            ends = self._now() + valid
            after, shown = with_temporary_code(record, ends)
            return after, Handed(user, shown, ends), ()

        return self._change(by, user, "temporary-code", change, lambda handed: {"ends": handed.ends})

    def ticket(self, by: str, user: str, valid: int = DEFAULT_TICKET, token: str | None = None) -> Handed:
        """Create a ticket for a new phone app, or for the unconfirmed token named `token`. Return the ticket.

        The ticket expires after `valid` seconds.
        """
        if not LEAST_VALID <= valid <= MAX_TICKET:
            raise DeskError(Reason.INVALID_TIME)

        def change(record: UserRecord) -> Changed[Handed]:
            now = self._now()
            chosen = new_phone(record, now) if token is None else _unconfirmed(record, token)
            picture = qr.packed(chosen, user, self._issuer) if shows_key(chosen) else None
            try:
                after, shown = issue_ticket(record, chosen, now + valid, picture)
            except RecordError:
                raise DeskError(Reason.TOO_MANY_TOKENS) from None
            return after, Handed(user, shown, now + valid, chosen.name, record.enrolled), (chosen,)

        return self._change(by, user, "invite", change, lambda handed: {"ends": handed.ends}, create=True)

    def disable(self, by: str, user: str, token: str | None = None) -> tuple[str, ...]:
        """Disable a token. Return the names of the disabled tokens.

        Disable all tokens, and void the ticket, the temporary code and the recovery codes, if `token` is None.
        """
        voided: list[int] = [0]

        def change(record: UserRecord) -> Changed[tuple[str, ...]]:
            chosen = _chosen(record, token)
            for each in chosen:
                record = record.with_changed(each, each.switched(False))
            if token is None:
                voided[:] = [len(record.recovery)]
                record = _without_long_codes(record)
            return record, tuple(each.name for each in chosen), chosen

        names = self._change(by, user, "disable-token", change)
        if voided[0]:
            self._note("changed", user, by, what="recovery", codes=0)
        return names

    def enable(self, by: str, user: str, token: str | None = None) -> tuple[str, ...]:
        """Enable a token, or all tokens if `token` is None. Return the names of the enabled tokens."""

        def change(record: UserRecord) -> Changed[tuple[str, ...]]:
            chosen = _chosen(record, token)
            for each in chosen:
                record = record.with_changed(each, each.switched(True))
            return record, tuple(each.name for each in chosen), chosen

        return self._change(by, user, "enable-token", change)

    def assign(self, by: str, serial: str, user: str) -> TokenFacts:
        """Assign a token in stock to a user. Return the facts of the token.

        The token is unconfirmed until the user confirms it by codes.
        """
        self.require(by, user, "assign")
        also = self._also(by, user, "assign")
        try:
            given = stock.assign(self._store, serial, user, now=self._now(), also=also)
        except stock.StockError as e:
            raise DeskError(Reason.STOCK, e) from None
        self._note_token(by, user, "assign", given.token)
        return _token_facts(given.token)

    def replace(
        self, by: str, old: str, new: str, *, lost: bool = False, user: str | None = None
    ) -> tuple[str, TokenFacts]:
        """Replace the user's token `old` by the token `new` in stock. Return the user and the facts of the new token.

        `old` and `new` are serial numbers. The old token returns to the stock, or is removed if `lost` is True.
        `user` is the user who must have the old token, or None for any user.
        """
        owner = self._store.owner_of_serial(old)
        if owner is None or user not in (None, owner):
            raise DeskError(Reason.NOT_ASSIGNED)
        user = owner
        self.require(by, user, "replace")
        also = self._also(by, user, "replace")
        try:
            done = stock.replace(self._store, old, new, now=self._now(), lost=lost, also=also)
        except stock.StockError as e:
            raise DeskError(Reason.STOCK, e) from None
        self._note_token(by, user, "remove" if lost else "return", done.old)
        self._note_token(by, user, "assign", done.new)
        return user, _token_facts(done.new)

    # ---- parts

    def _change(
        self,
        by: str,
        user: str,
        what: str,
        change: Callable[[UserRecord], Changed[R]],
        fields: Callable[[R], Mapping[str, str | int | None]] = lambda result: {},
        *,
        create: bool = False,
    ) -> R:
        """Apply `change` to the user's record, add an entry to its changes, log `fields` of the result, and return the
        result.
        """
        self.require(by, user, what)

        def noted(record: UserRecord) -> tuple[UserRecord, tuple[R, Sequence[Token]]]:
            after, result, tokens = change(record)
            name = tokens[0].name if len(tokens) == 1 else None
            return self._also(by, user, what, name)(after), (result, tokens)

        try:
            result, tokens = self._store.update(user, noted, create=create)
        except NotThere:
            raise DeskError(Reason.NO_TOKENS) from None
        for token in tokens:
            self._note_token(by, user, what, token, **fields(result))
        if not tokens:
            self._note("changed", user, by, what=what, **fields(result))
        return result

    def _also(self, by: str, user: str, what: str, token: str | None = None) -> Callable[[UserRecord], UserRecord]:
        """Return a function that checks the rules again, with the lock held, and notes the change in the record."""

        def also(record: UserRecord) -> UserRecord:
            if record.user != user:  # the owner of the token has changed since the lookup
                raise DeskError(Reason.NOT_ASSIGNED)
            self.require(by, user, what)
            return record.with_change(RecentChange(self._now(), what, by, token).entry())

        return also

    def _require_member(self, by: str, what: str) -> None:
        if not self.is_member(by):
            self._note("denied", by, by, what=what, reason=Reason.NOT_AT_THE_DESK.value)
            raise DeskError(Reason.NOT_AT_THE_DESK)

    def _note_token(self, by: str, user: str, what: str, token: Token, **fields: str | int | None) -> None:
        facts = {**audit_log.of_token(token), "type": token.type, "serial": token.serial}
        state = "unconfirmed" if what == "assign" and not token.confirmed else None
        self._note("changed", user, by, what=what, **facts, state=state, **fields)

    def _note(self, verb: str, user: str, by: str, **fields: str | int | None) -> None:
        audit_log.write(self._sink, self._service, verb, user=user, **fields, at=self._now(), by=by, **self._fields)


def _chosen(record: UserRecord, name: str | None) -> tuple[Token, ...]:
    """Return the token `name`, or all tokens if `name` is None. Raise DeskError if the record has no such token."""
    chosen = record.tokens if name is None else (_named(record, name),)
    if not chosen:
        raise DeskError(Reason.NO_TOKENS)
    return chosen


def _named(record: UserRecord, name: str) -> Token:
    token = record.token(name)
    if token is None:
        raise DeskError(Reason.NO_SUCH_TOKEN)
    return token


def _unconfirmed(record: UserRecord, name: str) -> Token:
    token = _named(record, name)
    if token.confirmed:
        raise DeskError(Reason.TOKEN_CONFIRMED)
    return token


def _without_long_codes(record: UserRecord) -> UserRecord:
    """Return the record without its ticket, temporary code and recovery codes."""
    if record.salt is not None:
        record = record.with_recovery(record.salt, ())
    return record.with_ticket(None).with_temporary(None)


def _token_facts(token: Token) -> TokenFacts:
    return TokenFacts(
        name=token.name,
        type=token.type,
        serial=token.serial,
        period=token.period if isinstance(token, TotpToken) else None,
        enabled=token.enabled,
        confirmed=token.confirmed,
        created=token.created,
        last_used=token.last_used,
        row_needed=token.row_needed,
    )


def _stock_facts(item: stock.Item) -> StockFacts:
    return StockFacts(item.serial, item.batch, item.state.value, item.user)
