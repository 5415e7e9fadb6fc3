"""The state of this host as an authority of a fleet, read by the account of the service, for `pam-totp doctor`.

Rules:
1. A child process with the account of the service, not root, opens the connections and reads the keys.
2. This process checks the certificate as members do: by a handshake in memory for each address.
3. This process asks all addresses for `/v1/ca` at once, because this request needs no certificate of a member.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from pam_totp.core.settings import AuthoritySettings
from pam_totp.member import joining
from pam_totp.member.connection import Connection
from pam_totp.member.credentials import client_context
from pam_totp.member.errors import Failed, failure
from pam_totp.member.wire import CA_PATH, split_address
from pam_totp.store import Store, StoreError
from pam_totp.system.store_owner import BROKEN, Report, as_account, as_owner

WAIT = 3.0  # seconds for the answers of all addresses together
# The address on which a server listens, and the address to which a client on this host connects.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
_STATE, _MEMBERS = "state", "members"  # kinds of reports


class Answer(NamedTuple):
    """The answer of an address. `problem` is None if an authority of this fleet has answered.

    `certificate` is the SHA-256 of the authority's certificate in hexadecimal. `date` is the authority's clock in Unix
    seconds, rounded down; `now` is the clock of this host after the answer, which took `seconds`.
    """

    address: str
    problem: str | None = None
    certificate: str | None = None
    date: int | None = None
    now: float = 0.0
    seconds: float = 0.0


class State(NamedTuple):
    """The state of an authority.

    - `unreadable`: the paths that the account of the service cannot read.
    - `ends`, `ca_ends`: the ends of the certificates in Unix seconds; None if unknown.
    - `problem`: the reason if certificate and key cannot be used; `ca_problem`: the same for a CA with a key.
    - `misfits`: an address that members connect to, and the reason of members to reject the certificate.
    - `certificate`: the SHA-256 of the certificate in hexadecimal.
    - `listening`, `others`: the answers of the addresses on which this host listens, and of all authorities.
    """

    unreadable: Sequence[str] = ()
    ends: int | None = None
    ca_ends: int | None = None
    problem: str | None = None
    ca_problem: str | None = None
    misfits: Sequence[Sequence[str]] = ()
    certificate: str | None = None
    listening: Sequence[Answer] = ()
    others: Sequence[Answer] = ()


class Members(NamedTuple):
    """The members and the groups in the database. `problem` is the reason if they cannot be read."""

    members: Sequence[Any] = ()  # store.postgres_members.Member
    may: dict[str, Sequence[str]] = {}  # noqa: RUF012  no instance changes it
    users: dict[str, Sequence[str]] = {}  # noqa: RUF012
    problem: str | None = None


def state_of(settings: AuthoritySettings, account: str) -> State:
    """Return the state of the authority with `settings`, as `account` reads the state."""
    found = State()
    for kind, report in as_account(account, lambda: iter([(_STATE, json.dumps(_read(settings)._asdict()))])):
        if kind == BROKEN:
            return State(problem=report)
        fields = json.loads(report)
        for name in ("listening", "others"):
            fields[name] = tuple(Answer(*answer) for answer in fields[name])
        found = State(**fields)
    return found


def _read(settings: AuthoritySettings) -> State:
    paths = (settings.certificate, settings.key, settings.ca, settings.ca_key)
    unreadable = [path for path in paths if _is_unreadable(path)]
    if unreadable:
        return State(unreadable)
    try:
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(settings.certificate, settings.key)
        client = client_context()
        client.load_verify_locations(settings.ca)
    except ssl.SSLError as e:
        what = "must be in PEM" if e.reason != "KEY_VALUES_MISMATCH" else "the key must be that of the certificate"
        return State(problem=f"{settings.certificate}, {settings.key}: {what}")
    except OSError as e:
        return State(problem=f"{settings.certificate}, {settings.key}: {(e.strerror or str(e)).lower()}")
    answers = _ask_all(settings, client)
    return State(
        ends=_end(settings.certificate),
        ca_ends=_end(settings.ca),
        ca_problem=_ca_problem(settings),
        misfits=[(a, reason) for a in settings.addresses if (reason := _rejection(server, client, a)) is not None],
        certificate=_fingerprint(settings.certificate),
        listening=[answers[_reachable(address)] for address in settings.listen],
        others=[answers[address] for address in settings.addresses],
    )


def _is_unreadable(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return not os.access(path, os.R_OK)


def _ca_problem(settings: AuthoritySettings) -> str | None:
    if not os.path.exists(settings.ca_key):
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.ca, settings.ca_key)
    except OSError:  # also an SSLError
        return f"{settings.ca_key}: must be the key of {settings.ca}"
    return None


def _end(path: str) -> int | None:
    try:
        return joining.validity(path).end
    except (StoreError, ValueError):  # without openssl
        return None


def _fingerprint(path: str) -> str | None:
    from hashlib import sha256

    with suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        text = file.read()
        begin, end = text.find("-----BEGIN CERT"), text.find("-----END CERTIFICATE-----")
        return sha256(ssl.PEM_cert_to_DER_cert(text[begin : end + 25])).hexdigest()
    return None


def _rejection(server: ssl.SSLContext, client: ssl.SSLContext, address: str) -> str | None:
    """Return the reason of a member that connects to `address` to reject the certificate of `server`, or None."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(down, up, server_hostname=split_address(address)[0])
    answering = server.wrap_bio(up, down, server_side=True)
    try:
        for _ in range(3):  # flights of a handshake of TLS 1.3
            for side in (asking, answering):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLError as e:
        return str(failure(e))
    return None


def _reachable(address: str) -> str:
    """Return an address of this host that reaches a server that listens on `address`."""
    host, port = split_address(address)
    host = _ANY.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ask_all(settings: AuthoritySettings, named: ssl.SSLContext) -> dict[str, Answer]:
    """Return the answer of each address. On this host's addresses, the certificate may have any name."""
    own = client_context()
    own.check_hostname = False
    own.load_verify_locations(settings.ca)
    contexts = {_reachable(address): own for address in settings.listen}
    contexts |= dict.fromkeys(settings.addresses, named)
    found = {address: Answer(address, "no answer in time") for address in contexts}
    deadline = time.monotonic() + WAIT

    def ask(address: str, context: ssl.SSLContext) -> None:
        try:
            found[address] = _ask(address, context, deadline)
        except (OSError, Failed) as e:
            found[address] = Answer(address, str(failure(e)))

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in contexts.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()  # each thread ends at the deadline
    return found


def _ask(address: str, context: ssl.SSLContext, deadline: float) -> Answer:
    from hashlib import sha256

    connection = Connection(address, context, deadline)
    try:
        begun = time.monotonic()
        status, _ = connection.ask("GET", CA_PATH, None, deadline)
        now, seconds = time.time(), time.monotonic() - begun
        if status != 200:
            return Answer(address, f"status {status}")
        date = None
        with suppress(ValueError):
            date = int(parsedate_to_datetime(connection.date or "").timestamp())
        certificate = sha256(connection.sock.getpeercert(binary_form=True) or b"").hexdigest()
        return Answer(address, None, certificate, date, now, seconds)
    finally:
        connection.close()


def members_of(url: str) -> Members:
    """Return the members and groups in the database at `url`."""

    def read(store: Store) -> Iterator[Report]:
        from pam_totp.store.postgres import PostgresStore
        from pam_totp.store.postgres_members import Members as Table

        assert isinstance(store, PostgresStore)
        table = Table(store)
        groups = table.groups()
        yield _MEMBERS, json.dumps((table.all(), groups.may, groups.users))

    found = Members(problem="the process that reads the members failed")
    for kind, text in as_owner(url, read):
        if kind == BROKEN:
            return Members(problem=text)
        from pam_totp.store.postgres_members import Member

        members, may, users = json.loads(text)
        found = Members([Member(*member) for member in members], may, users)
    return found
