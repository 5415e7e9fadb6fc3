"""Questions of FreeRADIUS, which is a member for equipment that speaks RADIUS (`POST /v1/radius`).

Rules:
1. `Answers.answer` decides on a question, with the same laws, budgets, groups and ids as for every other member.
2. The reply to the first refused answer is a challenge, for every user and every answer (law 5). The same applies to a
   user or a service that the member may not ask about. The reply to the second refused answer is a challenge only if a
   verdict allows it. No reply is a challenge if the client has no second prompt, or this authority lacks the CA's key.
3. A challenge has a State: the id of the login and its refused answers, encrypted and authenticated. A State is bound
   to one member, user and service, and is valid for LIFE seconds of the database's clock. Every authority with the key
   of the CA can open a State.
4. Any other State is ignored: the answer is the first answer of a login. An attacker therefore gains nothing by a
   forged State.
5. Messages are marked as plain text: otherwise FreeRADIUS would expand them, and could execute commands in them.
6. A reply does not show whether the user is enrolled. Every accepted user has given a right answer.
"""

from __future__ import annotations

import hmac
import json
import os
import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from pam_totp.authority import certificates
from pam_totp.authority.answers import Answers, NotPermitted
from pam_totp.authority.certificates import CertificateError
from pam_totp.core.answer import MAX_ANSWER, Answer
from pam_totp.core.fields import boolean, choice, optional
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.member import wire
from pam_totp.member.wire import WireError
from pam_totp.operations.authenticate import REFUSED as REFUSED_TEXT

if TYPE_CHECKING:
    from pam_totp.core.fields import Rule

LIFE = 120  # seconds: the user waits for the next code, which a phone shows after 30 s or 60 s
CHALLENGE = "challenge"
MAX_ATTRIBUTE = 253  # bytes of a value (RFC 2865 5)
VERDICT = "Tmp-String-3"  # an attribute of FreeRADIUS that no packet can contain
YES, NO = "yes", "no"


def _attribute_bytes(v: object) -> str | None:
    """Require the bytes of at most one attribute, in lower-case hexadecimal."""
    good = type(v) is str and len(v) % 2 == 0 and not v.strip("0123456789abcdef")
    requirement = f"must be at most {MAX_ATTRIBUTE} bytes, in lower-case hexadecimal"
    return None if good and len(str(v)) <= 2 * MAX_ATTRIBUTE else requirement


class RadiusQuestion(wire.Message):
    """`POST /v1/radius`: one Access-Request. `challenge` is False if the client cannot show a second prompt.

    In JSON, each attribute is in hexadecimal, because FreeRADIUS escapes text in its own way. An absent attribute is
    empty.
    """

    id: str
    user: str
    service: str
    answer: str
    rhost: str | None = None
    state: str | None = None
    challenge: bool = True

    RULES: ClassVar[dict[str, Rule]] = {
        "id": wire.hex_of(wire.ID_BYTES),
        "user": wire.text_of(1, wire.MAX_NAME),
        "service": wire.text_of(1, wire.MAX_NAME),
        "answer": wire.text_of(0, MAX_ANSWER),
        "rhost": optional(wire.text_of(0, wire.MAX_NAME)),
        "state": optional(_attribute_bytes),
        "challenge": boolean,
    }
    TEXTS = ("user", "service", "answer", "rhost")

    def to_json(self) -> bytes:
        """Return the question as FreeRADIUS sends it."""
        document = {name: (getattr(self, name) or "").encode().hex() for name in self.TEXTS}
        document |= {"id": self.id, "state": self.state or "", "challenge": YES if self.challenge else NO}
        return json.dumps({"v": wire.VERSION, **document}).encode()

    @classmethod
    def from_json(cls, body: bytes | bytearray) -> Self:
        """Return the question in `body`. Raise WireError."""
        document = wire.parse_object(body)
        if document.pop("v", None) != wire.VERSION or document.keys() != cls._names:
            raise WireError(f"the keys must be v, which is {wire.VERSION}, and {', '.join(cls._fields)}")
        for name in (*cls.TEXTS, "state"):
            if (problem := _attribute_bytes(document[name])) is not None:
                raise WireError(f"{name}: {problem}")
        try:
            document |= {name: bytes.fromhex(document[name]).decode() for name in cls.TEXTS}
        except UnicodeDecodeError:
            raise WireError("an attribute must be UTF-8") from None
        if document["challenge"] not in (YES, NO):
            raise WireError(f"challenge: must be {YES} or {NO}")
        document |= {"rhost": document["rhost"] or None, "state": document["state"] or None}
        return cls(**document | {"challenge": document["challenge"] == YES})


class RadiusReply(wire.Message):
    """The reply: a verdict, messages for the user, and the State of a challenge, in hexadecimal."""

    verdict: str
    messages: tuple[str, ...] = ()
    state: str | None = None

    RULES: ClassVar[dict[str, Rule]] = {
        "verdict": choice(wire.ACCEPTED, wire.REFUSED, CHALLENGE),
        "messages": wire.texts(wire.line_of(1, wire.MAX_NAME), 0, wire.MAX_MESSAGES),
        "state": optional(_attribute_bytes),
    }

    def check(self, new: object) -> None:
        if (self.verdict == CHALLENGE) != (self.state is not None):
            raise WireError("state: must be null exactly if there is no challenge")

    @property
    def accepted(self) -> bool:
        """Return True if the user may pass."""
        return self.verdict == wire.ACCEPTED

    def to_json(self) -> bytes:
        """Return the lists of attributes that FreeRADIUS sets (rule 5)."""
        found: dict[str, Sequence[str]] = {f"control:{VERDICT}": (self.verdict,)}
        if self.messages:
            found["reply:Reply-Message"] = [_cut(message) for message in self.messages]
        if self.state is not None:
            found |= {"reply:State": (f"0x{self.state}",), "reply:Prompt": ("No-Echo",)}
        return json.dumps({name: _attribute(values) for name, values in found.items()}).encode()


def _attribute(values: Sequence[str]) -> dict[str, Any]:
    return {"value": list(values), "do_xlat": False, "op": ":=" if len(values) == 1 else "+="}


def _cut(text: str) -> str:
    """Return the beginning of `text` that fits in an attribute."""
    return text.encode()[:MAX_ATTRIBUTE].decode(errors="ignore")


# ---- the State of a challenge


class Before(NamedTuple):
    """The part of a login before an answer: the id of the login, and at most two refused answers."""

    id: str
    refused: tuple[str, ...]


_PLAIN = struct.Struct(">Q16sB24s24s")  # end (Unix seconds), id, number of answers, both answers
_NONCE, _TAG = 16, 16  # bytes


class States:
    """The encryption of the State of challenges, with keys that are derived from `secret`.

    The encryption is counter mode over HMAC-SHA256 with a random nonce. The tag is an HMAC of the nonce, the encrypted
    content and the context.
    """

    def __init__(self, secret: bytes) -> None:
        derived = (hmac.digest(secret, b"pam_totp: State of RADIUS: " + use, "sha256") for use in (b"hide", b"bind"))
        self._hide, self._bind = derived

    def seal(self, before: Before, context: Sequence[str], now: int) -> str:
        """Return the State for `before`, in hexadecimal. `open` requires the same `context`."""
        first, second = (*before.refused, "")[:2]
        parts = bytes.fromhex(before.id), len(before.refused), first.encode(), second.encode()
        nonce = os.urandom(_NONCE)
        hidden = self._apply(nonce, _PLAIN.pack(now + LIFE, *parts))
        return (nonce + hidden + self._tag(nonce + hidden, context)).hex()

    def open(self, state: str, context: Sequence[str], now: int) -> Before | None:
        """Return the part of a login; None if `seal` did not make the State for `context`, or the State has expired."""
        content = bytes.fromhex(state)
        sealed, tag = content[:-_TAG], content[-_TAG:]
        if len(sealed) != _NONCE + _PLAIN.size or not hmac.compare_digest(tag, self._tag(sealed, context)):
            return None
        end, id, count, *answers = _PLAIN.unpack(self._apply(sealed[:_NONCE], sealed[_NONCE:]))
        if now > end:
            return None
        return Before(id.hex(), tuple(answer.rstrip(b"\0").decode("ascii") for answer in answers[:count]))

    def _apply(self, nonce: bytes, content: bytes) -> bytes:
        """Return `content` encrypted, or decrypted if it is encrypted."""
        blocks = (hmac.digest(self._hide, nonce + bytes([n]), "sha256") for n in range(-(-len(content) // 32)))
        return bytes(a ^ b for a, b in zip(content, b"".join(blocks), strict=False))

    def _tag(self, sealed: bytes, context: Sequence[str]) -> bytes:
        parts = (sealed, *(text.encode() for text in context))
        framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._bind, framed, "sha256")[:_TAG]


def states_of(ca_key: str) -> States | None:
    """Return the States for the CA's key in the file `ca_key`; None if the file cannot be read."""
    try:
        lines = certificates.read(ca_key).splitlines()
    except CertificateError:
        return None
    body = "".join(line.strip() for line in lines if not line.startswith("-"))  # copies can differ in white space
    return States(sha256(body.encode()).digest())


# ---- the decision


def answer(answers: Answers, sealing: States | None, fingerprint: bytes, asked: RadiusQuestion) -> RadiusReply:
    """Return the reply to a question. The reply can be a challenge only with `sealing`. Raise the exceptions of
    `Answers.answer`.
    """
    before = Before(asked.id, ())
    if sealing is not None and asked.state is not None:
        member = answers.member(fingerprint)
        before = sealing.open(asked.state, (member.name, asked.user, asked.service), member.now) or before
    text = _normalised(asked.answer)
    first, second = (*before.refused, None, None)[:2]
    question = wire.Question(
        id=before.id,
        user=asked.user,
        service=asked.service,
        rhost=asked.rhost,
        tty=None,
        answer=text,
        first=first,
        second=second,
    )
    try:
        verdict = answers.answer(fingerprint, question)
    except NotPermitted:  # `Answers.answer` has logged the reason
        verdict = wire.Verdict(verdict=wire.REFUSED)
    if verdict.accepted:
        return RadiusReply(verdict=wire.ACCEPTED, messages=verdict.messages)
    refused = (*before.refused, text)
    asks_again = len(refused) == 1 or (len(refused) == 2 and verdict.again)
    if not asks_again or not asked.challenge or sealing is None:
        return RadiusReply(verdict=wire.REFUSED, messages=(REFUSED_TEXT,))
    member = answers.member(fingerprint)
    state = sealing.seal(Before(before.id, refused), (member.name, asked.user, asked.service), member.now)
    return RadiusReply(verdict=CHALLENGE, messages=(NEXT_PROMPT,), state=state)


def _normalised(typed: str) -> str:
    """Return the codes or the recovery code of an answer; "" if `typed` is malformed: it might be a password."""
    parsed = Answer.parse(typed.encode())
    try:
        code = parsed.digits if parsed.recovery_code is None else parsed.recovery_code
        return bytes(code).decode("ascii")
    finally:
        parsed.wipe()
