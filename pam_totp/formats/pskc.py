"""PSKC, the XML container of RFC 6030 (extra `pskc`: python-pskc), plain, with a pre-shared key or with a password.

The law: python-pskc sees a file only after `xml_guard` did, and after all that it would decode leniently was checked
here; an encrypted key without a MAC is refused, as CBC alone notices no change (RFC 6030 §6.1.1, §6.2); a policy that
cannot be kept is told, and where it forbids the use of the key now, the token comes in disabled (§5).
"""

from __future__ import annotations

import datetime
import importlib
import io
import re
import xml.etree.ElementTree as tree
from collections.abc import Callable
from typing import Any

from pam_totp.core.oath import DEFAULT_PERIOD, MIN_DIGITS
from pam_totp.core.record import HotpToken, Token, TotpToken
from pam_totp.formats.imported_token import FormatError, Found, whole
from pam_totp.formats.xml_guard import Element, elements

ITERATIONS = 600_000  # of PBKDF2, in what is written here
MAX_ITERATIONS = 5_000_000  # of PBKDF2: some seconds
MAX_DERIVED_KEY = 64  # bytes
HOTP = "urn:ietf:params:xml:ns:keyprov:pskc:hotp"
TOTP = "urn:ietf:params:xml:ns:keyprov:pskc:totp"
_SUITES = {"SHA1": "HMAC-SHA1", "SHA256": "HMAC-SHA256", "SHA512": "HMAC-SHA512"}
_SUITE = re.compile(r"(?:HMAC-?)?SHA-?(1|256|512)", re.IGNORECASE)
_NUMBERS = ("Counter", "Time", "TimeInterval", "TimeDrift")
_LIMITS = {"IterationCount": MAX_ITERATIONS, "KeyLength": MAX_DERIVED_KEY}
_BINARY = frozenset(("PlainValue", "CipherValue", "ValueMAC", "Specified"))
_WANTED = _BINARY | _LIMITS.keys() | {"KeyContainer", "Key", "Data", "EncryptedValue"}
_DECIMAL = re.compile(r"-?[0-9]{1,20}")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_STANDS_ON = (
    "pskc.algorithms",
    "pskc.exceptions",
    "pskc.parser",
    "pskc.serialiser",
    "cryptography.hazmat.backends",
    "cryptography.hazmat.primitives.ciphers.algorithms",
    "cryptography.hazmat.primitives.padding",
    "dateutil.parser",
    "dateutil.tz",
)
_FAR_AHEAD = 100  # steps: clocks differ
_UID = re.compile(r"(?:^|,)\s*UID\s*=\s*([^,=]+)", re.IGNORECASE)

Unlock = Callable[[str], str]  # given "key" or "password", returns what the person says


def load() -> None:
    """Have python-pskc and all it stands on in memory: after the privileges are gone it may not be readable.

    Raises ImportError without it.
    """
    for module in _STANDS_ON:
        importlib.import_module(module)


def parse(data: bytes, now: int, unlock: Unlock) -> list[Found]:
    """All keys of the file; `unlock` is asked for the key (hexadecimal) or the password of an encrypted one.

    Raises FormatError, and ImportError without python-pskc.
    """
    from pskc import PSKC  # an extra

    lines = _checked(data)
    try:
        container = PSKC(io.BytesIO(data))
        keys = container.keys
    except Exception:  # python-pskc raises whatever its parts do
        raise FormatError(_first_bad(data, lines, PSKC), "not as RFC 6030 wants it") from None
    if len(keys) != len(lines):
        raise FormatError(1, "keys in places where RFC 6030 has none")
    if container.encryption.is_encrypted:
        _unlock(container.encryption, unlock)
    return [_found(key, line, now) for key, line in zip(keys, lines, strict=True)]


def _checked(data: bytes) -> list[int]:
    """The lines of the keys, of a file whose numbers, base64 and MACs are as they should be. Raises FormatError."""
    found = elements(data, _WANTED)
    if not found or found[0].path != ("KeyContainer",) or found[0].attributes.get("Version") not in ("1.0", "1"):
        raise FormatError(found[0].line if found else 1, "not a KeyContainer of version 1.0")
    unproved: Element | None = None  # an encrypted value whose MAC has not come yet: it follows, as its sibling
    for element in found:
        if unproved is not None and element.path == (*unproved.path[:-1], "ValueMAC"):
            unproved = None
        if element.name in ("Data", "Key"):
            _demand_mac(unproved)
        elif element.name == "EncryptedValue":
            _demand_mac(unproved)
            unproved = element
        elif element.name in _LIMITS:
            whole(element.content, element.line, element.name, low=1, high=_LIMITS[element.name])
        elif element.name == "PlainValue" and element.path[-2] in _NUMBERS and _DECIMAL.fullmatch(element.content):
            pass
        elif element.name in _BINARY and not _BASE64.fullmatch("".join(element.content.split())):
            raise FormatError(element.line, f"{element.name}: neither base64 nor a number that belongs there")
    _demand_mac(unproved)
    return [element.line for element in found if element.path == ("KeyContainer", "KeyPackage", "Key")]


def _demand_mac(unproved: Element | None) -> None:
    if unproved is not None:
        raise FormatError(unproved.line, "an encrypted value without a MAC: it may have been changed by anybody")


def _first_bad(data: bytes, lines: list[int], container: Callable[[io.BytesIO], object]) -> int:
    """The line of the first key that cannot be read by itself, or the first line."""
    root = tree.fromstring(data)  # noqa: S314  xml_guard has seen it
    packages = root.findall("{*}KeyPackage")
    for package in packages:
        root.remove(package)
    number = 0
    for package in packages:
        root.append(package)
        try:
            container(io.BytesIO(tree.tostring(root)))
        except Exception:
            return lines[min(number, len(lines) - 1)] if lines else 1
        root.remove(package)
        number += len(package.findall("{*}Key"))
    return 1


def _unlock(encryption: Any, unlock: Unlock) -> None:
    derivation = encryption.derivation
    if derivation.algorithm is None:
        try:
            encryption.key = bytes.fromhex(unlock("key").strip())
        except ValueError:
            raise FormatError(None, "the key of the file is not hexadecimal") from None
        return
    try:
        encryption.derive_key(unlock("password"))
    except Exception:  # its own errors, and those of hashlib
        raise FormatError(None, "its way from a password to a key is none that is known here (PBKDF2)") from None


def _found(key: Any, line: int, now: int) -> Found:
    try:
        secret, counter, time_offset = key.secret, key.counter, key.time_offset
        interval, drift = key.time_interval, key.time_drift
    except Exception:  # its own errors, and those of cryptography
        raise FormatError(
            line, "cannot be decrypted: the key or password is not the right one, or the file was changed"
        ) from None
    word = re.split(r"[:#/]", key.algorithm or "")[-1].lower()
    kind = word if word in ("hotp", "totp") else None
    suite = _SUITE.fullmatch(key.algorithm_suite or "HMAC-SHA1")
    remarks, enabled = _policy(key, now)
    if kind == "hotp" and counter is None:
        remarks.append("no counter: taken for 0")
    if kind is not None and key.response_length is None:
        remarks.append(f"no length of its codes: taken for {MIN_DIGITS}")
    period = DEFAULT_PERIOD if interval is None else interval
    last_step = time_offset or None
    if last_step is not None and not 0 < last_step <= now // max(period, 1) + _FAR_AHEAD:
        last_step = None
        remarks.append("its Time is not kept: it lies in the future")
    unfit = None
    if word == "pin":
        unfit = "a PIN, not a token"
    elif kind is None:
        unfit = "neither HOTP nor TOTP"
    elif suite is None:
        unfit = "its Suite is not known here"
    elif key.response_encoding not in (None, "DECIMAL") or key.response_check:
        unfit = "its codes are not plain digits"
    return Found(
        line=line,
        kind=kind or "hotp",
        secret=secret or b"",
        algorithm="SHA" + suite[1] if suite is not None else "SHA1",
        digits=MIN_DIGITS if key.response_length is None else key.response_length,
        counter=counter or 0 if kind == "hotp" else 0,
        period=period if kind == "totp" else DEFAULT_PERIOD,
        last_step=last_step if kind == "totp" else None,
        drift=drift or 0 if kind == "totp" else 0,
        name=key.friendly_name,
        user=_user(key.userid),
        serial=key.serial,
        enabled=enabled,
        remarks=tuple(remarks),
        unfit=unfit,
    )


def _policy(key: Any, now: int) -> tuple[list[str], bool]:
    """What of the key's policy is not kept, and whether it allows the key to be used now."""
    policy = key.policy
    remarks = []
    dates = {"not before": policy.start_date or key.start_date, "until": policy.expiry_date or key.expiry_date}
    for what, date in dates.items():
        if date is not None:
            remarks.append(f"its policy is not kept: {what} {date:%Y-%m-%d}")
    if policy.number_of_transactions is not None:
        remarks.append(f"its policy is not kept: {policy.number_of_transactions} uses")
    if policy.pin_usage not in (None, policy.PIN_USE_LOCAL):
        remarks.append("its PIN is not kept: only the code is asked for")
    allowed: bool = policy.may_use(policy.KEY_USE_OTP, datetime.datetime.fromtimestamp(now, datetime.UTC))
    if not allowed:
        remarks.append("it comes in disabled: its policy does not allow its use now (see 'enable-token')")
    return remarks, allowed


def _user(distinguished: str | None) -> str | None:
    """A plain name, or the UID of a distinguished name (RFC 6030 §4.2.1, RFC 4514)."""
    if distinguished is None or "=" not in distinguished:
        return distinguished
    uid = _UID.search(distinguished)
    return uid[1].strip() if uid else None


def write(user: str, tokens: list[Token], password: str | None) -> bytes:
    """A container of `tokens`, encrypted where there is a password. Raises ImportError without python-pskc."""
    from pskc import PSKC  # an extra

    container = PSKC()
    for token in tokens:
        key = container.add_key(
            id=f"{user}:{token.name}",
            serial=token.serial,
            friendly_name=token.name,
            key_userid=user,
            secret=token.secret,
            algorithm=HOTP if isinstance(token, HotpToken) else TOTP,
            algorithm_suite=_SUITES[token.algorithm],
            response_encoding="DECIMAL",
            response_length=token.digits,
        )
        if isinstance(token, HotpToken):
            key.counter = token.counter
        elif isinstance(token, TotpToken):
            key.time_interval, key.time_offset, key.time_drift = token.period, token.last_step, token.drift
    if password is not None:
        container.encryption.setup_pbkdf2(password, iterations=ITERATIONS)
    out = io.BytesIO()
    container.write(out)
    return out.getvalue()
