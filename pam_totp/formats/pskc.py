"""PSKC, the XML container of RFC 6030 and of its drafts: plain, or encrypted with a pre-shared key or a password.

ActivIdentity's files follow a draft. The drafts name the same parts differently:
- `Device` in place of `KeyPackage`
- `Secret` in place of `Key`
- `Value` with `ValueDigest` for a value that may be encrypted

Rules:
- python-pskc reads a file only after two checks: by `xml_guard`, and by this module for each value that python-pskc
  would decode leniently.
- An encrypted value must have a MAC, because CBC alone detects no change (RFC 6030 6.1.1, 6.2). Without a MAC,
  python-pskc would read the encrypted `Value` of a draft as a plain value.
- A policy that pam_totp cannot enforce is dropped, and a remark names it. The token is imported as disabled if the
  policy forbids the use of the key now (RFC 6030 5).
"""

from __future__ import annotations

import datetime
import gc
import importlib
import io
import re
import warnings
import xml.etree.ElementTree as tree
from collections.abc import Callable, Sequence
from typing import Any

from pam_totp.core.oath import DEFAULT_PERIOD, MIN_DIGITS
from pam_totp.core.record import HotpToken, Token, TotpToken, UserRecord
from pam_totp.formats.format import AskSecret, Format, ParsedFile, ParseOptions, parsed_at_once
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError, key_of, whole_number
from pam_totp.formats.xml_guard import Element, elements

ITERATIONS = 600_000  # of PBKDF2, in a file that is written
MAX_ITERATIONS = 5_000_000  # of PBKDF2, in a file that is read: some seconds of work
MAX_DERIVED_KEY = 64  # bytes
HOTP = "urn:ietf:params:xml:ns:keyprov:pskc:hotp"
TOTP = "urn:ietf:params:xml:ns:keyprov:pskc:totp"
_SUITES = {"SHA1": "HMAC-SHA1", "SHA256": "HMAC-SHA256", "SHA512": "HMAC-SHA512"}
_SUITE = re.compile(r"(?:HMAC-?)?SHA-?(1|256|512)", re.IGNORECASE)
_NUMBERS = ("counter", "time", "timeinterval", "time_interval", "timedrift")
_LIMITS = {"IterationCount": MAX_ITERATIONS, "KeyLength": MAX_DERIVED_KEY, "PBEIterationCount": MAX_ITERATIONS}
_BINARY = frozenset(("PlainValue", "CipherValue", "ValueMAC", "Specified", "Value", "ValueDigest", "PBESalt", "IV"))
_CONTAINERS = ("KeyContainer", "SecretContainer")
_PACKAGES, _KEYS = ("KeyPackage", "Device"), ("Key", "Secret")
_ENCRYPTIONS = ("EncryptionKey", "EncryptionMethod")
_CHECKED_ELEMENTS = _BINARY | _LIMITS.keys() | {"Data", "EncryptedValue", *_CONTAINERS, *_KEYS, *_ENCRYPTIONS}
_DECIMAL = re.compile(r"-?[0-9]{1,20}")
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_MODULES = (  # python-pskc imports these modules on their first use
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
_MAX_STEPS_AHEAD = 100  # steps: the clocks of two hosts may differ
_UID = re.compile(r"(?:^|,)\s*UID\s*=\s*([^,=]+)", re.IGNORECASE)
_SNIFF = 4096  # bytes


class Pskc(Format):
    """A seed file of a token vendor."""

    name = "pskc"
    package = "python-pskc"
    has_secret = True
    is_slow = True
    suffix = "pskc.xml"
    lost_fields = frozenset({"last_used", "row_needed"})

    def load(self) -> None:
        for module in _MODULES:
            importlib.import_module(module)

    def sniff(self, data: bytes) -> bool:
        return any(name.encode("ascii") in data[:_SNIFF] for name in _CONTAINERS)

    def parse(self, data: bytes, options: ParseOptions) -> ParsedFile:
        """Return all keys of the file. Raise FormatError, or ImportError without python-pskc."""
        was_enabled = gc.isenabled()
        gc.disable()  # python-pskc makes many small objects: garbage collection would take half of the time
        try:
            with warnings.catch_warnings():  # cryptography warns about the ciphers of old files
                warnings.simplefilter("ignore")
                return parsed_at_once(_parse(data, options))
        finally:
            if was_enabled:
                gc.enable()

    def write(self, record: UserRecord, tokens: Sequence[Token], password: str | None = None) -> bytes:
        from pskc import PSKC  # an optional package

        container = PSKC()
        for token in tokens:
            key = container.add_key(
                id=f"{record.user}:{token.name}",
                serial=token.serial,
                friendly_name=token.name,
                key_userid=record.user,
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


def _parse(data: bytes, options: ParseOptions) -> list[ImportedToken]:
    from pskc import PSKC  # an optional package

    lines = _checked(data)
    try:
        container = PSKC(io.BytesIO(data))
        keys = container.keys
    except Exception:  # python-pskc raises exceptions of all its dependencies
        raise FormatError(_first_bad_line(data, lines, PSKC), "must follow RFC 6030") from None
    if len(keys) != len(lines):
        raise FormatError(1, "every key must be in a KeyPackage or a Device")
    if container.encryption.is_encrypted:
        _decrypt(container.encryption, options.ask_secret)
    return [_token(key, line, options.now) for key, line in zip(keys, lines, strict=True)]


def _checked(data: bytes) -> list[int]:
    """Check the file's numbers, base64 and MACs. Return the line numbers of its keys. Raise FormatError."""
    found = elements(data, _CHECKED_ELEMENTS)
    if not found or not _is_container(found):
        raise FormatError(found[0].line if found else 1, "must be a KeyContainer of version 1.0, or a SecretContainer")
    is_encrypted = any(element.name in _ENCRYPTIONS and len(element.path) == 2 for element in found)
    keys: list[int] = []
    what = ""  # the property of a value: the name of its element, or of the draft's Data
    without_mac: Element | None = None  # an encrypted value before its MAC, which is a later sibling
    for element in found:
        if without_mac is not None and element.path in _macs_of(without_mac):
            without_mac = None
        if _is_key(element):
            keys.append(element.line)
            _require_mac(without_mac)
        elif element.name == "Data":
            what = element.attributes.get("Name", "").lower()
            _require_mac(without_mac)
        elif element.name == "EncryptedValue" or (element.name == "Value" and is_encrypted and what == "secret"):
            _require_mac(without_mac)
            without_mac = element
        _check_value(element, element.path[-2].lower() if element.name == "PlainValue" else what)
    _require_mac(without_mac)
    return keys


def _is_container(found: list[Element]) -> bool:
    """Return True if the first element is a container. The version of a draft's container may be missing."""
    root = found[0]
    version = root.attributes.get("Version") or root.attributes.get("version")
    is_draft = version is None and any(element.path[1:2] == ("Device",) for element in found)
    return root.path == ("SecretContainer",) or (
        root.path == ("KeyContainer",) and (version in ("1.0", "1") or is_draft)
    )


def _is_key(element: Element) -> bool:
    """Return True if the element is a key of the container, not a value. A value of RFC 6030 may be named `Secret`."""
    return len(element.path) == 3 and element.path[1] in _PACKAGES and element.name in _KEYS


def _macs_of(value: Element) -> tuple[tuple[str, ...], ...]:
    """Return the paths that the MAC of an encrypted value may have. In one draft, the MAC is inside the value."""
    parent = value.path[:-1]
    return (*parent, "ValueMAC"), (*parent, "ValueDigest"), (*value.path, "ValueMAC")


def _check_value(element: Element, what: str) -> None:
    """Check a number or a base64 text. `what` is the name of its property, in lower case."""
    if element.name in _LIMITS:
        whole_number(element.content, element.line, element.name, low=1, high=_LIMITS[element.name])
    elif element.name in _BINARY and not _BASE64.fullmatch("".join(element.content.split())):
        is_number = element.name in ("PlainValue", "Value") and what in _NUMBERS
        if not (is_number and _DECIMAL.fullmatch(element.content)):
            number = " or a whole number of at most 20 digits" if is_number else ""
            raise FormatError(element.line, f"{element.name}: must be base64{number}")


def _require_mac(without_mac: Element | None) -> None:
    if without_mac is not None:
        raise FormatError(without_mac.line, "an encrypted value must have a MAC, which detects changes")


def _first_bad_line(data: bytes, lines: list[int], container: Callable[[io.BytesIO], object]) -> int:
    """Return the line of the first key that is invalid by itself, or 1."""
    root = tree.fromstring(data)  # noqa: S314  xml_guard has checked the data
    packages = [each for name in _PACKAGES for each in root.findall(f"{{*}}{name}")]
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
        number += sum(len(package.findall(f"{{*}}{name}")) for name in _KEYS)
    return 1


def _decrypt(encryption: Any, ask_secret: AskSecret | None) -> None:
    if ask_secret is None:
        raise FormatError(None, "a key or a password is required: the file is encrypted")
    if encryption.derivation.algorithm is None:
        encryption.key = key_of(ask_secret("key"), None, "the key of the file")
        return
    password = ask_secret("password")  # outside of the `try`, so that Ctrl-C is not reported as an unsupported file
    try:
        encryption.derive_key(password)
    except Exception:  # exceptions of python-pskc and of hashlib
        raise FormatError(None, "unsupported key derivation: must be PBKDF2") from None


def _token(key: Any, line: int, now: int) -> ImportedToken:
    try:
        secret, counter, time_offset = key.secret, key.counter, key.time_offset
        interval, drift = key.time_interval, key.time_drift
    except Exception:  # exceptions of python-pskc and of cryptography
        reason = "wrong key or password, or the file was changed"
        raise FormatError(line, f"the token cannot be decrypted: {reason}") from None
    word = re.split(r"[:#/]", key.algorithm or "")[-1].lower()
    kind = word if word in ("hotp", "totp") else None
    suite = _SUITE.fullmatch(key.algorithm_suite or "HMAC-SHA1")
    remarks, enabled = _policy(key, now)
    if kind == "hotp" and counter is None:
        remarks.append("assumed counter 0: the file has no counter")
    if kind is not None and key.response_length is None:
        remarks.append(f"assumed {MIN_DIGITS} digits: the file has no number of digits")
    period = DEFAULT_PERIOD if interval is None else interval
    last_step = time_offset or None
    if last_step is not None and not 0 < last_step <= now // max(period, 1) + _MAX_STEPS_AHEAD:
        last_step = None
        remarks.append("Time dropped: must be between 1970 and now")
    unsupported = None
    if word == "pin":
        unsupported = "unsupported algorithm PIN: must be HOTP or TOTP"
    elif kind is None:
        unsupported = "unknown algorithm: must be HOTP or TOTP"
    elif suite is None:
        unsupported = "unknown Suite: must be HMAC-SHA1, HMAC-SHA256 or HMAC-SHA512"
    elif key.response_encoding not in (None, "DECIMAL") or key.response_check:
        unsupported = "unsupported code format: must be DECIMAL without check digits"
    return ImportedToken(
        line=line,
        type=kind or "hotp",
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
        unsupported=unsupported,
    )


def _policy(key: Any, now: int) -> tuple[list[str], bool]:
    """Return remarks on the key's policy, and True if the policy allows the use of the key at `now` (Unix seconds)."""
    policy = key.policy
    remarks = []
    dates = {"not before": policy.start_date or key.start_date, "until": policy.expiry_date or key.expiry_date}
    for what, date in dates.items():
        if date is not None:
            remarks.append(f"policy dropped: {what} {date:%Y-%m-%d}")
    if policy.number_of_transactions is not None:
        remarks.append(f"policy dropped: at most {policy.number_of_transactions} uses")
    if policy.pin_usage not in (None, policy.PIN_USE_LOCAL):
        remarks.append("PIN dropped: a login asks for the code only")
    allowed: bool = policy.may_use(policy.KEY_USE_OTP, datetime.datetime.fromtimestamp(now, datetime.UTC))
    if not allowed:
        remarks.append("imported as disabled: the policy forbids the use of the key now (see 'pam-totp enable-token')")
    return remarks, allowed


def _user(distinguished: str | None) -> str | None:
    """Return the user in a plain name, or in the UID of a distinguished name (RFC 6030 4.2.1, RFC 4514)."""
    if distinguished is None or "=" not in distinguished:
        return distinguished
    uid = _UID.search(distinguished)
    return uid[1].strip() if uid else None
