"""The messages between a member and an authority: frozen values, as JSON in both directions.

Rules:
1. A message is one JSON object of at most MAX_BODY bytes, with exactly the fields of its type. Every value has its type
   and its limits. Any other message raises WireError, which never shows a value.
2. A question has the id of its login, which is 128 random bits. All questions of one login have the same id.
3. The digest of a question covers the member's name, the id, and everything on which the decision depends. Each part is
   framed with its length, and an absent part differs from an empty part.
4. A question contains the refused answers before it, and therefore determines the digest of each earlier question.
5. `repr` shows no field, because answers and tokens are secrets.
"""

from __future__ import annotations

import json

from pam_totp.core.address import host_and_port
from pam_totp.core.answer import MAX_ANSWER
from pam_totp.core.fields import Value, boolean, choice, optional, whole_number
from pam_totp.core.lean import TYPE_CHECKING, sha256

if TYPE_CHECKING:
    from typing import Any, ClassVar, NoReturn, Self

    from pam_totp.core.fields import Rule

VERSION = 1
MAX_BODY = 16_384  # bytes of one message: three answers of MAX_ANSWER control characters fit, each written as \u0001
MAX_NAME = 256  # bytes of the name of a user, a service, a host or a terminal
MAX_PEM = 8192  # bytes of a certificate or a request in PEM
MAX_AUTHORITIES = 16
MAX_MESSAGES = 8
MAX_CODES = 64  # recovery codes
MAX_FIELD = 1024  # bytes of a text about a token, in UTF-8
ID_BYTES = 16
TOKEN_BYTES = 16
PIN_BYTES = 32
UNASKABLE = "\n"  # in place of a name that cannot be sent. No user has this name, so the answer takes the same time

ACCEPTED, REFUSED, ASK, PASS, OPEN = "accepted", "refused", "ask", "pass", "open"
ANSWER_PATH, BEGIN_PATH, REDEEM_PATH = "/v1/answer", "/v1/begin", "/v1/redeem"
RADIUS_PATH = "/v1/radius"
CA_PATH, JOIN_PATH, RENEW_PATH, HEALTH_PATH = "/v1/ca", "/v1/join", "/v1/renew", "/v1/health"
_JOIN_LINE = "pam_totp-join"


class WireError(ValueError):
    """The error for a malformed message. The text names the field and the requirement, and never a value."""


# ---- rules of fields


def text_of(low: int, high: int) -> Rule:
    """Return the rule for text of `low` to `high` bytes in UTF-8, without NUL."""
    requirement = f"must be {low} to {high} bytes of UTF-8 without NUL"

    def check(v: object) -> str | None:
        size = _size(v) if type(v) is str and "\0" not in v else -1
        return None if low <= size <= high else requirement

    return check


def line_of(low: int, high: int) -> Rule:
    """Return the rule for text as in `text_of` without control characters, which a terminal would execute."""
    requirement, text = f"must be {low} to {high} bytes of printable UTF-8", text_of(low, high)
    return lambda v: None if text(v) is None and type(v) is str and v.isprintable() else requirement


def hex_of(size: int) -> Rule:
    """Return the rule for exactly `size` bytes in lower-case hexadecimal."""
    requirement = f"must be {2 * size} lower-case hexadecimal digits"
    return lambda v: None if type(v) is str and len(v) == 2 * size and not v.strip("0123456789abcdef") else requirement


def texts(rule: Rule, low: int, high: int) -> Rule:
    """Return the rule for a tuple of `low` to `high` texts that pass `rule`."""

    def check(v: object) -> str | None:
        if type(v) is not tuple or not low <= len(v) <= high:
            return f"must be a list of {low} to {high} texts"
        return next((requirement for x in v if (requirement := rule(x)) is not None), None)

    return check


def address(v: object) -> str | None:
    """Require HOST:PORT, as in `core.address.host_and_port`."""
    return None if type(v) is str and host_and_port(v) is not None else "must be HOST:PORT"


def host_name(v: object) -> str | None:
    """Require a name as in DNS: lower-case letters, digits, hyphens and dots, at most 64 characters."""
    labels = v.split(".") if type(v) is str and len(v) <= 64 else [""]  # RFC 5280 A.1: ub-common-name is 64
    good = all(
        label and not label.strip("abcdefghijklmnopqrstuvwxyz0123456789-") and label[0] != "-" != label[-1]
        for label in labels
    )
    return None if good else "must be a host name in lower case, of at most 64 characters"


def split_address(text: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of HOST:PORT. Raise WireError."""
    found = host_and_port(text)
    if found is None:
        raise WireError("address: must be HOST:PORT")
    return found


def _size(text: str) -> int:
    """Return the number of bytes of `text` in UTF-8; -1 if it contains a surrogate."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return -1


_name = text_of(1, MAX_NAME)
_answer = text_of(0, MAX_ANSWER)
_message = line_of(1, MAX_NAME)


def _pem(v: object) -> str | None:
    """Require text in ASCII, as files of keys and certificates contain it. Another module parses the text."""
    requirement = f"must be PEM: 1 to {MAX_PEM} bytes of ASCII"
    return requirement if text_of(1, MAX_PEM)(v) is not None or not str(v).isascii() else None


# ---- messages


class Message(Value):
    """The base class of messages. The fields are the keys of the JSON object.

    The object also has the key `v` if VERSIONED is True.
    """

    ERROR = WireError
    VERSIONED: ClassVar[bool] = False

    def to_json(self) -> bytes:
        """Return the message as JSON."""
        document: dict[str, Any] = {"v": VERSION} if self.VERSIONED else {}
        document |= {name: getattr(self, name) for name in self._fields}
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, body: bytes | bytearray) -> Self:
        """Return the message in `body`. Raise WireError."""
        document = parse_object(body)
        if cls.VERSIONED:
            version = document.pop("v", None)
            if type(version) is not int or version != VERSION:
                raise WireError(f"v: must be {VERSION}")
        if document.keys() != cls._names:
            raise WireError(f"the keys must be {', '.join(cls._fields)}")
        return cls(**{name: tuple(v) if type(v) is list else v for name, v in document.items()})


class Question(Message):
    """`POST /v1/answer`: is `answer` right? `first` and `second` are the earlier, refused answers."""

    id: str
    user: str
    service: str
    rhost: str | None
    tty: str | None
    answer: str
    first: str | None = None
    second: str | None = None

    VERSIONED = True
    RULES: ClassVar[dict[str, Rule]] = {
        "id": hex_of(ID_BYTES),
        "user": _name,
        "service": _name,
        "rhost": optional(text_of(0, MAX_NAME)),
        "tty": optional(text_of(0, MAX_NAME)),
        "answer": _answer,
        "first": optional(_answer),
        "second": optional(_answer),
    }

    def check(self, new: object) -> None:
        if self.second is not None and self.first is None:
            raise WireError("second: must be null without first")

    def before(self) -> Question | None:
        """Return the previous question of the same login, or None if this question is the first."""
        if self.second is not None:
            return self._replace(answer=self.second, second=None)
        return None if self.first is None else self._replace(answer=self.first, first=None)

    def digest(self, member: str) -> bytes:
        """Return the SHA-256 that identifies this question of the member named `member`."""
        parts = (member, self.id, self.service, self.user, self.first, self.second, self.answer)
        return sha256(b"".join(map(_framed, parts))).digest()


def _framed(part: str | None) -> bytes:
    """Return `part` behind its kind and its length."""
    data = b"" if part is None else part.encode()
    return (b"-" if part is None else b"+") + len(data).to_bytes(4, "big") + data


class Verdict(Message):
    """The reply to a question. `by` is the kind of an accepted answer. `again` is True if a third code is needed."""

    verdict: str
    messages: tuple[str, ...] = ()
    by: str | None = None
    again: bool = False

    RULES: ClassVar[dict[str, Rule]] = {
        "verdict": choice(ACCEPTED, REFUSED),
        "messages": texts(_message, 0, MAX_MESSAGES),
        "by": optional(choice("code", "row", "recovery", "temporary")),
        "again": boolean,
    }

    def check(self, new: object) -> None:
        if self.accepted != (self.by is not None):
            raise WireError("by: must be null exactly if the answer was refused")
        if self.accepted and self.again:
            raise WireError("again: must be false if the answer was accepted")

    @property
    def accepted(self) -> bool:
        """Return True if the user may pass."""
        return self.verdict == ACCEPTED


class Redeem(Message):
    """`POST /v1/redeem`: is `ticket` the user's enrolment ticket, or does `first` confirm its token?

    `first` is None for the first of these questions.
    """

    id: str
    user: str
    service: str
    rhost: str | None
    ticket: str
    first: str | None = None

    VERSIONED = True
    RULES: ClassVar[dict[str, Rule]] = {
        "id": hex_of(ID_BYTES),
        "user": _name,
        "service": _name,
        "rhost": optional(text_of(0, MAX_NAME)),
        "ticket": _answer,
        "first": optional(_answer),
    }

    def digest(self, member: str) -> bytes:
        """Return the SHA-256 that identifies this question of the member named `member`."""
        parts = (REDEEM_PATH, member, self.id, self.service, self.user, self.ticket, self.first)
        return sha256(b"".join(map(_framed, parts))).digest()


class Redemption(Message):
    """The reply to `Redeem`. It contains the key: a member sees the keys of the users who enrol there.

    `verdict` is `open` after a right ticket, and after a wrong first code. `codes` are the recovery codes after a right
    first code. The fields from `type` on describe the token after a right ticket.
    """

    verdict: str
    codes: tuple[str, ...] = ()
    token: str | None = None
    type: str = "totp"
    digits: int = 6
    codes_needed: int = 1
    key: str | None = None
    serial: str | None = None
    unusual: tuple[str, ...] = ()
    picture: str | None = None

    RULES: ClassVar[dict[str, Rule]] = {
        "verdict": choice(ACCEPTED, REFUSED, OPEN),
        "codes": texts(line_of(1, 64), 0, MAX_CODES),
        "token": optional(line_of(1, MAX_FIELD)),
        "type": choice("totp", "hotp"),
        "digits": whole_number(6, 8),
        "codes_needed": whole_number(1, 3),
        "key": optional(line_of(1, MAX_FIELD)),
        "serial": optional(line_of(1, MAX_FIELD)),
        "unusual": texts(_message, 0, MAX_MESSAGES),
        "picture": optional(line_of(1, MAX_FIELD)),
    }

    def check(self, new: object) -> None:
        if (self.verdict == ACCEPTED) != bool(self.codes):
            raise WireError("codes: must be present exactly if the token was confirmed")


class Begin(Message):
    """`POST /v1/begin`: may the user pass before a prompt, by grace or as an unenrolled user?"""

    user: str
    service: str
    rhost: str | None

    VERSIONED = True
    RULES: ClassVar[dict[str, Rule]] = {"user": _name, "service": _name, "rhost": optional(text_of(0, MAX_NAME))}


class BeginVerdict(Message):
    """The reply to `Begin`. `by` is the reason if the user may pass."""

    verdict: str
    by: str | None = None

    RULES: ClassVar[dict[str, Rule]] = {
        "verdict": choice(ASK, PASS),
        "by": optional(choice("grace", "not-enrolled")),
    }

    def check(self, new: object) -> None:
        if (self.verdict == PASS) != (self.by is not None):
            raise WireError("by: must be null exactly if the user is asked")


class Authority(Message):
    """The reply of `GET /v1/ca`: the certificate of the CA in PEM."""

    ca: str

    RULES: ClassVar[dict[str, Rule]] = {"ca": _pem}


class Join(Message):
    """`POST /v1/join`: the join token, and a certificate request in PEM."""

    token: str
    csr: str

    VERSIONED = True
    RULES: ClassVar[dict[str, Rule]] = {"token": hex_of(TOKEN_BYTES), "csr": _pem}


class Joined(Message):
    """The reply to `Join`: the member's name, its certificate, the CA's certificate, and all authorities."""

    name: str
    certificate: str
    ca: str
    authorities: tuple[str, ...]

    RULES: ClassVar[dict[str, Rule]] = {
        "name": host_name,
        "certificate": _pem,
        "ca": _pem,
        "authorities": texts(address, 1, MAX_AUTHORITIES),
    }


class Renew(Message):
    """`POST /v1/renew`: a certificate request in PEM."""

    csr: str

    VERSIONED = True
    RULES: ClassVar[dict[str, Rule]] = {"csr": _pem}


class Renewed(Message):
    """The reply to `Renew`: the new certificate."""

    certificate: str

    RULES: ClassVar[dict[str, Rule]] = {"certificate": _pem}


class Health(Message):
    """The reply of `GET /v1/health`. `time` is the database's time in Unix seconds. `store` is `ok` or a reason."""

    time: int
    version: str
    member: str
    certificate_days: int
    store: str

    RULES: ClassVar[dict[str, Rule]] = {
        "time": whole_number(0, 2**53),
        "version": _message,
        "member": host_name,
        "certificate_days": whole_number(-100_000, 100_000),
        "store": line_of(1, 1024),
    }


class Failure(Message):
    """The body of a reply with a status other than 200."""

    error: str

    RULES: ClassVar[dict[str, Rule]] = {"error": line_of(1, 1024)}


class JoinLine(Value):
    """The line that `pam-totp member add` prints. `pin` is the SHA-256 of the CA's certificate in DER."""

    authorities: tuple[str, ...]
    pin: str
    token: str

    ERROR = WireError
    RULES: ClassVar[dict[str, Rule]] = {
        "authorities": texts(address, 1, MAX_AUTHORITIES),
        "pin": hex_of(PIN_BYTES),
        "token": hex_of(TOKEN_BYTES),
    }

    def to_text(self) -> str:
        """Return the line."""
        return f"{_JOIN_LINE}:{VERSION}:{','.join(self.authorities)}:{self.pin}:{self.token}"

    @classmethod
    def from_text(cls, line: str) -> Self:
        """Return the join line that `line` encodes. Ignore white space at the ends of `line`. Raise WireError."""
        kind, _, rest = line.strip().partition(":")
        version, _, rest = rest.partition(":")
        if kind != _JOIN_LINE:
            raise WireError(f"a join line must begin with {_JOIN_LINE}:")
        if version != str(VERSION):
            raise WireError(f"the version of the join line must be {VERSION}")
        addresses, pin, token = (*["", ""], *rest.rsplit(":", 2))[-3:]
        return cls(authorities=tuple(addresses.split(",")), pin=pin, token=token)


def askable(name: str) -> str:
    """Return `name`, or UNASKABLE if a question cannot contain it."""
    return name if _name(name) is None else UNASKABLE


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """Return the JSON object in `body`. Raise WireError if `body` is too long or malformed, or repeats a key."""
    if len(body) > MAX_BODY:
        raise WireError(f"a message must be at most {MAX_BODY} bytes")
    try:
        document = json.loads(body.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except WireError:
        raise
    except (ValueError, RecursionError):
        raise WireError("a message must be a JSON object in UTF-8") from None
    if type(document) is not dict:
        raise WireError("a message must be a JSON object in UTF-8")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise WireError("a key must occur once")
    return document


def _no_constant(name: str) -> NoReturn:
    raise WireError("a number must be finite")
