"""Functions by which commands open the store, find a user's record and select a token.

Rules:
- A command that root starts drops its privileges to the store's owner before it reads a record. Such a command reads
  a database as the account `pam_totp`, if this account exists.
- A caller who cannot open the default store uses a file in the home folder as the store.
- A command finds a record by the user name in the passwd entry, as a login does.
"""

from __future__ import annotations

import argparse
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pam_totp.cli.command_line import OUT_OF_REACH, WRONG_USAGE, CommandError
from pam_totp.core.answer import CODE_LENGTHS, Answer
from pam_totp.core.record import Token, UserRecord
from pam_totp.core.settings import DEFAULT_STORE, DatabaseSettings, Site, is_database
from pam_totp.pam.login_session import read_site
from pam_totp.pam.names import passwd_name, similar_account
from pam_totp.pam.privileges import act_as_account, act_as_owner_of, become_account, become_owner_of
from pam_totp.store import NotThere, SerialTaken, SharedStore, Store, StoreError, seal_key
from pam_totp.store.empty import EmptyStore
from pam_totp.store.file import JOURNAL, FileStore
from pam_totp.store.home import home_store
from pam_totp.store.locations import absolute, notice, opened, postgres
from pam_totp.store.stock import is_in_stock
from pam_totp.system.audit import signals_held
from pam_totp.system.extras import how_to_get

if TYPE_CHECKING:
    from pam_totp.store import R

ACCOUNT = "pam_totp"  # the account that owns the default store
FILES_OF_URL = ("sslrootcert", "sslcert", "sslkey", "passfile")  # parameters of libpq
OWN_FILE = "~/.pam_totp.json"  # the store of a caller other than root
ON_MEMBER = "this host is a member: its users are enrolled at an authority (run the command there, or give --store)"
ONESELF = "without root: yourself"  # the default of USER, in help texts


def now() -> int:
    """Return the time in Unix seconds."""
    return int(time.time())


# --- the store


def open_store(
    args: argparse.Namespace,
    *,
    create: bool = False,
    keep_root: bool = False,
    dry_run: bool = False,
    break_glass: bool = False,
) -> Store:
    """Drop root's privileges to those of the store's owner, and return the store.

    With `dry_run`, change nothing: a store that `create` would create is an EmptyStore, and an interrupted import is
    an error.
    With `keep_root`, the process can become root again, to create a file in a folder that the owner cannot write.
    On a member, only the records for break-glass are in the default store.
    Return the store of ~/.pam_totp.json (module argument `secret=`) for a caller who cannot open the default store.
    """
    args.audit.look_up()
    seal_key.hold()
    if uses_own_file(args):
        args.audit.store = OWN_FILE
        return home_store(OWN_FILE, caller_name())
    folder = location(args, site := read_site())
    if not break_glass:
        refuse_on_member(args, site)
    args.audit.store = folder
    if is_database(folder):
        load_postgres()
        (act_as_account if keep_root else become_account)(ACCOUNT)
        require_files(folder)
        return opened_database(folder, site)
    if (copied := notice(folder)) is not None:
        raise CommandError(f"{folder}: {copied[0].lower()}{copied[1:]} (name that store with --store)", OUT_OF_REACH)
    if create and not os.path.exists(folder):
        if dry_run:
            os.stat(os.path.dirname(folder))  # raises OSError, as `create_store` would
            if folder == DEFAULT_STORE:
                become_account(ACCOUNT)
            return EmptyStore()
        create_store(folder)
    try:
        (act_as_owner_of if keep_root else become_owner_of)(folder)
        status = os.stat(folder)
    except FileNotFoundError:
        message = f"{folder}: store not found ('pam-totp enroll' creates it; --store selects another)"
        raise CommandError(message, OUT_OF_REACH) from None
    if status.st_uid == os.geteuid() and status.st_mode & 0o777 != 0o700:  # FileStore's error names no remedy
        remedy = f"run 'chmod 0700 {folder}' if this folder is the store; --store selects another"
        raise CommandError(f"{folder}: the mode must be 0700 ({remedy})", OUT_OF_REACH)
    store = opened_folder(folder)
    if os.path.lexists(os.path.join(folder, JOURNAL)):
        if dry_run:
            _require_no_roll_back(store)
        else:
            _roll_back(store, args)
    return store


def location(args: argparse.Namespace, site: Site) -> str:
    """Return the location of the store: --store, else `[store]` of the site file, else the default folder."""
    if args.store == DEFAULT_STORE and site.database is not None:
        return site.database.url
    return absolute(args.store)


def opened_folder(folder: str) -> FileStore:
    """Return the store in `folder`. A store with sealed secrets refuses every secret while the key is missing."""
    store = opened(folder)
    assert isinstance(store, FileStore)
    store.codec = store.codec or seal_key.codec_of_copy(folder)
    return store


def opened_database(url: str, site: Site) -> Store:
    """Return the store in the database at `url`. See `opened_folder` for sealed secrets."""
    store = opened(url, database=database_settings(url, site))
    assert isinstance(store, SharedStore)
    store.codec = store.codec or seal_key.codec_of_document(store.a_secret())
    return store


def refuse_on_member(args: argparse.Namespace, site: Site) -> None:
    """Raise CommandError if this host is a member and --store is missing: its default store has no tokens."""
    if site.member is not None and args.store == DEFAULT_STORE:
        raise CommandError(ON_MEMBER, OUT_OF_REACH)


def database_settings(url: str, site: Site) -> DatabaseSettings:
    """Return the settings of the site file for the database at `url`."""
    given = site.database or DatabaseSettings(url=url)
    epoch = given.epoch if given.url == url else 0
    return DatabaseSettings(url=url, pool=given.pool, wait=given.wait, epoch=epoch)


def require_files(url: str) -> None:
    """Raise CommandError if this process cannot read a file in the URL. libpq would report the file as missing."""
    from urllib.parse import parse_qsl, urlsplit  # imported here: few commands need this module

    for name, path in parse_qsl(urlsplit(url).query):
        if name in FILES_OF_URL and path != "system":
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as e:
                remedy = f"give absolute paths in the URL, of files that the account {ACCOUNT} can read"
                raise CommandError(f"{path}: {(e.strerror or str(e)).lower()} ({remedy})", OUT_OF_REACH) from None


def load_postgres() -> None:
    """Load the package psycopg, before the process drops its privileges. Raise CommandError if psycopg is missing."""
    try:
        postgres()
    except StoreError as e:
        raise CommandError(f"{e} ({how_to_get('psycopg')})", OUT_OF_REACH) from None


def create_store(folder: str) -> None:
    """Create the folder of a store. As root, give the default store to the account `pam_totp`, if it exists."""
    os.mkdir(folder, 0o700)
    os.chmod(folder, 0o700)  # independent of the umask
    if os.geteuid() == 0 and folder == DEFAULT_STORE:
        try:
            account = pwd.getpwnam(ACCOUNT)
        except KeyError:
            return  # root owns the store, because pam_totp is not installed
        os.chown(folder, account.pw_uid, account.pw_gid)


def _roll_back(store: FileStore, args: argparse.Namespace) -> None:
    """Roll back an import whose process was killed."""
    from pam_totp.store.journal import recover  # imported here: few commands need this module

    count = recover(store)
    if count:
        args.audit.changed("roll-back", records=count)
        report = f"an interrupted import was rolled back: {count} records are as before the import"
        print(f"pam-totp: {report}", file=sys.stderr)


def _require_no_roll_back(store: FileStore) -> None:
    from pam_totp.store.journal import is_left  # imported here: few commands need this module

    with store.opened() as folder:
        if is_left(folder):
            what = "an interrupted import must be rolled back before a dry run"
            raise CommandError(f"{what} (run 'pam-totp list', which rolls it back)", OUT_OF_REACH)


def uses_own_file(args: argparse.Namespace) -> bool:
    """Return True if the command uses the caller's own file.

    Return False if --store selects another store, or if the caller is root or the owner of the default store.
    """
    if args.store != DEFAULT_STORE or os.geteuid() == 0:
        return False
    try:
        return os.stat(DEFAULT_STORE).st_uid != os.geteuid()
    except OSError:
        return True


# --- users


def caller_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise CommandError("your uid has no account on this host", OUT_OF_REACH) from None


def has_account(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except (KeyError, ValueError):
        return False
    return True


def no_account(user: str) -> str:
    """Return the message that the user has no account, with an account of a similar name if there is any."""
    similar = similar_account(user)
    return f"{user} has no account on this host" + (f" (did you mean {similar}?)" if similar else "")


def warn_without_account(user: str) -> None:
    """Print a warning if the user has no account, because the name may be mistyped."""
    if not has_account(user):
        print(f"pam-totp: warning: {no_account(user)}", file=sys.stderr)


def user_of(args: argparse.Namespace) -> str:
    """Return the user name in the passwd entry. The default is the caller if the store is the caller's own file.

    Raise CommandError if USER is missing, or if the caller must not manage the user's tokens.
    """
    own_file = uses_own_file(args)
    if args.user is None and not own_file:
        raise CommandError(f"missing USER argument (see '{args.parser.prog} --help')", WRONG_USAGE)
    user = passwd_name(caller_name() if args.user is None else args.user)
    if own_file and user != caller_name():
        what = f"permission denied: only root can manage the tokens of {user}"
        raise CommandError(f"{what} (your own tokens are in {OWN_FILE})", OUT_OF_REACH)
    return user


def user_before(args: argparse.Namespace, store: Store, *, token: bool) -> tuple[str, str | None]:
    """Return the user and None or, if the caller omitted USER, the caller and the first word.

    The caller may omit USER if the store is the caller's own file. The first word must then differ from the caller's
    name. `token` must be True, and the caller must have a token of that name, if an account has that name.
    """
    word = args.user
    if word is None or not uses_own_file(args):
        return user_of(args), None
    me = caller_name()
    if passwd_name(word) == me or (has_account(word) and not (token and _has_token(store, me, word))):
        return user_of(args), None
    return me, str(word)


def _has_token(store: Store, user: str, name: str) -> bool:
    try:
        return store.read(user).token(name) is not None
    except NotThere:
        return False


def user_and_token(args: argparse.Namespace, store: Store) -> tuple[str, str | None]:
    """Return the user and the name of the token, for the optional arguments USER and TOKEN."""
    if args.token is not None:
        return user_of(args), args.token
    return user_before(args, store, token=True)


def not_enrolled(user: str) -> CommandError:
    if has_account(user):
        return CommandError(f"{user} has no tokens (see 'pam-totp enroll {user}')")
    return CommandError(f"unknown user {user}: no account has that name (see 'pam-totp list')")


# --- records and tokens


def read(store: Store, user: str) -> UserRecord:
    try:
        return store.read(user)
    except NotThere:
        raise not_enrolled(user) from None


def update(
    store: Store, user: str, change: Callable[[UserRecord], tuple[UserRecord | None, R]], log: Callable[[R], None]
) -> R:
    """Change the record of `user`, call `log` with the result, and return it. Block signals until `log` returns."""
    with logged_changes(store) as held:
        try:
            result = held.update(user, change)
        except NotThere:
            raise not_enrolled(user) from None
        log(result)
    return result


@contextmanager
def logged_changes(store: Store) -> Iterator[Store]:
    """Yield the store for one update and its log line. Block signals from the update to the end of the `with` block."""
    with ExitStack() as stack:
        yield _HoldingStore(store, lambda: stack.enter_context(signals_held()))


class _HoldingStore:
    """A store that calls `hold` after it has acquired the lock, before it writes."""

    def __init__(self, store: Store, hold: Callable[[], object]) -> None:
        self._store, self._hold = store, hold

    def read(self, user: str) -> UserRecord:
        return self._store.read(user)

    def update(
        self,
        user: str,
        change: Callable[[UserRecord], tuple[UserRecord | None, R]],
        *,
        create: bool = False,
        decoy: bool = False,
    ) -> R:
        def change_and_hold(record: UserRecord) -> tuple[UserRecord | None, R]:
            self._hold()
            return change(record)

        return self._store.update(user, change_and_hold, create=create, decoy=decoy)

    def update_decoy(self, user: str, search: Callable[[], object]) -> None:
        self._store.update_decoy(user, search)

    def users(self) -> Iterator[str]:
        return self._store.users()

    def owner_of_serial(self, serial: str) -> str | None:
        return self._store.owner_of_serial(serial)


def require_free_name(record: UserRecord, name: str, remedy: str) -> None:
    """Raise CommandError, with `remedy` in its message, if the record has a token named `name`."""
    if record.token(name) is not None:
        what = f"{record.user} already has a token named '{name}'; nothing was changed"
        raise CommandError(f"{what} ({remedy}, or see 'pam-totp remove --help')")


def require_free_serial(store: Store, user: str, token: Token) -> None:
    """Raise CommandError if another user or the stock has a token with the serial number of `token`."""
    owner = None if token.serial is None else store.owner_of_serial(token.serial)
    if token.serial is not None and (owner not in (None, user) or is_in_stock(store, token.serial)):
        raise _taken(token.serial, owner)


@contextmanager
def serial_errors() -> Iterator[None]:
    """Raise CommandError if another user or the stock got a token with the same serial number meanwhile."""
    try:
        yield
    except SerialTaken as e:
        raise _taken(e.serial, e.owner) from None


def _taken(serial: str, owner: str | None) -> CommandError:
    if owner is None:
        what = f"the token with the serial number {serial} is in stock; nothing was changed"
        return CommandError(f"{what} (assign it with 'pam-totp assign {serial} USER')")
    what = f"{owner} has the token with the serial number {serial}; nothing was changed"
    return CommandError(f"{what} (see 'pam-totp list {owner}', and 'pam-totp remove --help')")


def named_token(record: UserRecord, name: str | None) -> Token:
    """Return the token named `name`, or the only token if `name` is None. Raise CommandError."""
    if name is None:
        return _only_token(record)
    token = record.token(name)
    if token is None:
        raise CommandError(f"{record.user} has no token named '{name}' (see 'pam-totp list {record.user}')")
    return token


def _only_token(record: UserRecord) -> Token:
    if not record.tokens:
        raise not_enrolled(record.user)
    if len(record.tokens) > 1:
        what = f"{record.user} has several tokens: name one (see 'pam-totp list {record.user}')"
        raise CommandError(what, WRONG_USAGE)
    return record.tokens[0]


def token_name_in(record: UserRecord, words: Iterable[str]) -> str | None:
    """Return the first of the words that is the name of a token and differs from every code, or None."""
    names = (word for word in words if record.token(word) is not None)
    return next((name for name in names if Answer.parse(name.encode()).codes(CODE_LENGTHS) is None), None)


def token_facts(user: str, token: Token) -> dict[str, Any]:
    """Return the user's name, the token's type, and all fields of the token except its key."""
    shown = {name: getattr(token, name) for name in token._fields if name != "secret"}
    return {"user": user, "type": token.type} | shown
