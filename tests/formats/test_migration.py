"""Tests of the exports of the Google Authenticator app: one or more parts, as URIs or as pictures of QR codes."""

from __future__ import annotations

import base64
import io
import urllib.parse

import pytest
import segno

from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import FORMATS
from tests.formats.reading import NOW, parsed
from tests.support.site import KEY

# An example that is published on several web pages: an 80-bit key with the label "Example:alice@google.com".
PUBLISHED = "otpauth-migration://offline?data=CjEKCkhlbGxvId6tvu8SGEV4YW1wbGU6YWxpY2VAZ29vZ2xlLmNvbRoHRXhhbXBsZTAC"


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """Return a protocol-buffers message with `fields`: field numbers, each with an integer or a byte string."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def token(secret: bytes = KEY, name: bytes = b"ACME:alice", kind: int = 2, digits: int = 1, **more: int) -> bytes:
    fields: list[tuple[int, int | bytes]] = [(1, secret), (2, name), (3, b"ACME")]
    fields += [(4, more.get("algorithm", 1)), (5, digits), (6, kind)]
    return message(*fields, *([(7, more["counter"])] if "counter" in more else []))


def uri(data: bytes) -> str:
    return "otpauth-migration://offline?data=" + urllib.parse.quote(base64.b64encode(data), safe="")


def part(index: int, size: int, *tokens: bytes, batch: int = 77) -> str:
    return uri(message(*[(1, t) for t in tokens], (2, 1), (3, size), (4, index), (5, batch)))


def read(*lines: str) -> list[ImportedToken]:
    return parsed("migration", "\n".join(lines).encode())


def test_the_published_example_is_read() -> None:
    (found,) = read(PUBLISHED)
    assert (found.type, found.secret, found.user) == ("totp", b"Hello!\xde\xad\xbe\xef", "alice@google.com")
    with pytest.raises(ValueError, match="secret"):
        found.token(NOW)


def test_types_digits_algorithms_and_counters_are_kept() -> None:
    found = read(
        part(0, 1, token(), token(b"x" * 20, kind=1, digits=2, counter=300), token(b"y" * 32, algorithm=2, digits=2))
    )
    assert [(f.type, f.digits, f.algorithm, f.counter, f.user) for f in found] == [
        ("totp", 6, "SHA1", 0, "alice"),
        ("hotp", 8, "SHA1", 300, "alice"),
        ("totp", 8, "SHA256", 0, "alice"),
    ]


def test_all_parts_are_required_in_any_order() -> None:
    parts = [part(i, 3, token(bytes([i]) * 20)) for i in range(3)]
    assert len(read(parts[2], parts[0], parts[1])) == 3
    with pytest.raises(FormatError, match="part 2 of 3 is missing"):
        read(parts[0], parts[2])
    with pytest.raises(FormatError, match="line 2: part 1 is a duplicate of line 1"):
        read(parts[0], parts[0])
    with pytest.raises(FormatError, match="line 2: must be a part of the same export"):
        read(parts[0], part(1, 3, token(), batch=78))


def test_fields_of_later_versions_are_ignored_and_unknown_types_skipped() -> None:
    newer = token() + message((8, b"some-id"), (15, 5))
    (found,) = read(part(0, 1, newer))
    assert found.unsupported is None
    for strange in (token(kind=3), token(digits=9), token(algorithm=4)):
        (found,) = read(part(0, 1, strange))
        assert "unknown type" in (found.unsupported or "")


@pytest.mark.parametrize(
    "line",
    [
        "otpauth://totp/x?secret=" + "A" * 32,
        "otpauth-migration://online?data=AA==",
        "otpauth-migration://offline?data=A",
        "otpauth-migration://offline?data=AA%FF",
        "otpauth-migration://offline?other=AA==",
        "otpauth-migration://offline",
        uri(b"\x0a\xff\xff\xff\xff\x0f"),
        uri(b"\x0a\x05abc"),
        uri(b"\x0b"),
        uri(b"\x80" * 11),
        uri(b"\x02\x00"),
        uri(message((1, 5))),
        uri(message((1, token()), (3, 2), (3, 2))),
        uri(message((1, token()), (3, b"2"))),
        part(5, 3, token()),
        part(0, 101, token()),
        part(0, 1, message((1, KEY), (2, b"\xff"), (6, 2))),
        part(0, 1, *[token()] * 1001),
        "otpauth-migration://offline?data=" + "A" * 9000,
    ],
)
def test_other_input_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(FormatError, match=r"line \d"):
        read("", line)


def test_a_picture_of_the_qr_code_is_accepted() -> None:
    out = io.BytesIO()
    segno.make(part(0, 1, token(counter=9, kind=1)), micro=False).save(out, kind="png", scale=5)
    migration = FORMATS["migration"]
    (found,) = parsed("migration", migration.decode(out.getvalue()))
    assert (found.secret, found.counter) == (KEY, 9)
    blank = io.BytesIO()
    segno.make("x", micro=True).save(blank, kind="png", border=0)
    with pytest.raises(FormatError, match="no QR code was found"):
        migration.decode(blank.getvalue())
