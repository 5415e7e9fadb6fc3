"""The parsers, and the rules that each parser must follow for arbitrary bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

from pam_totp.core import secretfile
from pam_totp.core.answer import Answer, recovery_digest
from pam_totp.core.oath import hotp
from pam_totp.core.policy import Policy
from pam_totp.core.record import RecordError, Ticket, UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.settings import SettingsError, Site, parse_arguments, parse_site, settings
from pam_totp.core.slots import BLOCK, decode, encode, new_file
from pam_totp.core.verify import Outcome, verify
from pam_totp.pam.protocol import ProtocolError, parse_hello
from pam_totp.store import StoreError
from pam_totp.store.file import file_name
from pam_totp.store.keyring import Keyring, KeyringError, State, parse_keyring, serialize_keyring
from pam_totp.store.seal import Sealer
from tests.formats import samples
from tests.support.site import KEY, fob, phone

NOW = 1_700_000_010
SEALER = Sealer(Keyring(current=b"1" * 32))
OWNER = UserRecord(
    user="alice",
    tokens=(fob(5), phone(digits=8)),
    salt="5a" * 16,
    recovery=(recovery_digest("5a" * 16, "0123456789ABCDEF"),),
)

INVITED = UserRecord(
    user="alice",
    tokens=(fob(confirmed=False),),
    ticket=Ticket(salt="5a" * 16, digest="5a" * 32, ends=5, token="fob", picture="0F"),
)


def _one_line(error: Exception) -> None:
    assert "\n" not in str(error).strip("\n")
    assert "GEZDGNBV" not in str(error), "an error shows no key"


def secret_file(data: bytes) -> None:
    """Check that `parse` refuses a secret file, or that `serialize` returns the same bytes for the parsed record.

    The comparison of an older document omits the keys that later versions added.
    """
    try:
        record = parse(data)
    except RecordError as e:
        _one_line(e)
        return
    again = serialize(record)
    old = {key: value for key, value in json.loads(again).items() if key not in secretfile._NEW_KEYS}
    older = old | {"tokens": [{k: v for k, v in t.items() if k not in secretfile._NEW_IN_TOKEN} for t in old["tokens"]]}
    assert data in (again, *(f"{json.dumps(document, indent=1)}\n".encode() for document in (old, older)))
    assert parse(again) == record


def sealed(data: bytes) -> None:
    """Check that the seal refuses a document, or opens it to a document with the same sealed encoding."""
    try:
        document = SEALER.open(data, "alice", "r")
        parse(document)
    except (RecordError, StoreError) as e:
        _one_line(e)
        return
    assert SEALER.seal(document, "alice") == data


def keyring(data: bytes) -> None:
    """Check that a keyring is refused, or that its encoding decodes to the same keyring."""
    try:
        found = parse_keyring(data)
    except KeyringError as e:
        _one_line(e)
        return
    assert parse_keyring(serialize_keyring(found)) == found


def slots(data: bytes) -> None:
    """Check that a secret file is refused, or that its current slot is encoded again to the same bytes."""
    try:
        found = decode(data)
    except RecordError as e:
        _one_line(e)
        return
    if found.size:
        start = found.current * found.size
        assert data[start : start + found.size] == encode(found.sequence, found.document, found.size)
    else:
        assert data == found.document


def site_file(data: bytes) -> None:
    """Check that the parser returns settings for a site file, or raises SettingsError."""
    try:
        site = parse_site(data.decode("utf-8", "replace"))
        settings("sshd", [], site)
        settings("sudo", ["nullok"], site)
    except SettingsError:
        pass


def arguments(data: bytes) -> None:
    given = data.decode("utf-8", "surrogateescape").split("\0")
    try:
        parse_arguments(given)
        settings("sshd", given, Site.NONE)
    except SettingsError as e:
        _one_line(e)


def answer(data: bytes) -> None:
    """Check that the codes contain exactly the answer's digits, and that `verify` accepts only right answers."""
    parsed = Answer.parse(data)
    codes = parsed.codes({6, 8})
    if codes is not None:
        assert "".join(codes) == "".join(str(int(c)) for c in data.decode() if c.isdecimal())
        assert len(codes) in (1, 2, 3)
        assert {len(code) for code in codes} < {6, 8}
    recovery = None if parsed.recovery_code is None else bytes(parsed.recovery_code).decode()
    assert recovery is None or (len(recovery) == 16 and recovery == recovery.upper())
    behind = Answer.parse_behind_password(data)
    assert bytes(behind.password({6, 8})) + "".join(behind.codes({6, 8}) or ()).encode() == data
    decision = verify(OWNER, parsed, NOW, Policy())
    if decision.outcome is Outcome.RECOVERY:
        assert recovery == "0123456789ABCDEF"
    elif decision.outcome.accepted:
        steps = range(1006) if decision.token == "fob" else range(NOW // 30 - 3, NOW // 30 + 4)
        key, digits = (KEY, 6) if decision.token == "fob" else (KEY[::-1], 8)
        assert codes is not None
        assert codes[-1] in {hotp(key, step, digits) for step in steps}
    parse(serialize(decision.record))


def hello(data: bytes) -> None:
    try:
        found = parse_hello(data)
    except ProtocolError as e:
        _one_line(e)
        return
    assert "\0" not in found.user + found.service + "".join(found.arguments)
    assert 0 <= found.flags < 10**10


def user_name(data: bytes) -> None:
    """Check that `file_name` refuses a user name, or returns the name of a file directly in the store."""
    try:
        name = file_name(data.decode("utf-8", "surrogateescape"))
    except StoreError:
        return
    assert "/" not in name
    assert name[0] != "."
    assert len(name) < 250


def google_authenticator(data: bytes) -> None:
    """Check the format. Skip inputs with the sample's key in a setting, because error messages quote settings."""
    if samples.B32.encode() not in data.partition(b"\n")[2]:
        samples.check("google-authenticator", data)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "secret-file": secret_file,
    "sealed": sealed,
    "keyring": keyring,
    "slots": slots,
    "site-file": site_file,
    "arguments": arguments,
    "answer": answer,
    "hello": hello,
    "user-name": user_name,
    **{name: partial(samples.check, name) for name in samples.SAMPLES},
    "google-authenticator": google_authenticator,
}
SEEDS: dict[str, list[bytes]] = {
    "secret-file": [serialize(OWNER), serialize(UserRecord(user="bob"))],
    "sealed": [SEALER.seal(serialize(OWNER), "alice"), serialize(OWNER), SEALER.seal(serialize(INVITED), "alice")],
    "keyring": [
        serialize_keyring(Keyring(current=b"1" * 32, previous=b"2" * 32, stores=(("/a", State.SEALED),))),
        serialize_keyring(Keyring(current=b"1" * 32, following=b"2" * 32, stores=(("postgresql", State.OPENING),))),
    ],
    "slots": [new_file(serialize(OWNER), BLOCK), encode(8, b"{}", BLOCK) + encode(7, b"[]", BLOCK), b"{}"],
    "site-file": [
        b'[policy]\nlook_ahead = 5\n[service.sshd]\nprompt = "Code: "\necho = true\n[clients]\nwww-data = "web"\n'
    ],
    "arguments": [b"nullok\0debug\0window=2\0store=/a\0secret=${HOME}/.x\0user=bob", b"forward_pass\0lock_after=10"],
    "answer": [
        b"755224",
        b"755 224-287082",
        b"0123-4567-89ab-cdef",
        b"password755224",
        b"O123456789ABCDEF",
        "\u2066７55\u2013٢24".encode(),
    ],
    "hello": [b"Hversion=1\0service=sshd\0user=alice\0rhost=::1\0flags=0\0arg=nullok\0arg=prompt=x y"],
    "user-name": [b"alice", b"../x", b".a", b"a%/\xff", "ü@ex.org".encode()],
    **samples.SAMPLES,
}
