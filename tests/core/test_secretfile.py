"""Tests of the secret file: a record has exactly one encoding, and an error names the field without its value."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pam_totp.core.record import HotpToken, RecordError, TotpToken, UserRecord
from pam_totp.core.secretfile import MAX_FILE, base32, parse, serialize, unbase32
from tests.core.strategies import records
from tests.core.vectors import DATA

ALICE = (DATA / "alice.json").read_bytes()
DOCUMENT: dict[str, Any] = json.loads(ALICE)
MARKER = "Xmarker0X"  # errors must not contain this value

Path = tuple[str | int, ...]


def encoded(document: object) -> bytes:
    """Return the document as indented JSON with a newline, independently of `serialize`."""
    return (json.dumps(document, indent=1) + "\n").encode("ascii")


def with_value(path: Path, value: object) -> bytes:
    document = copy.deepcopy(DOCUMENT)
    *way, last = path
    target: Any = document
    for key in way:
        target = target[key]
    target[last] = value
    return encoded(document)


def field_name(path: Path) -> str:
    """Return the name of a field in an error, such as tokens[0].digits."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def refusal(data: bytes) -> str:
    """Return the text of the RecordError that `data` causes."""
    with pytest.raises(RecordError) as caught:
        parse(data)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    for secret in ("GEZDGNBV", "12345678901234567890", "e3b0c442", "ba7816bf", "00010203", MARKER):
        assert secret not in text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback shows no other exception"
    return text


def _parses(data: bytes) -> bool:
    try:
        parse(data)
    except RecordError:
        return False
    return True


# ---- valid files


def test_a_file_written_by_hand_is_read_and_written_back_byte_for_byte() -> None:
    record = parse(ALICE)
    fob, phone = record.tokens
    assert (record.user, record.failures, record.failures_at, record.refused) == ("alice", 2, 1_700_086_400, 3)
    assert record.salt == "000102030405060708090a0b0c0d0e0f"
    assert [d[:8] for d in record.recovery] == ["e3b0c442", "ba7816bf"]
    assert [(g.service, g.rhost, g.granted) for g in record.grace] == [("sshd", "192.0.2.7", 1_700_086_400)]
    assert isinstance(fob, HotpToken)
    assert (fob.name, fob.type, fob.algorithm, fob.digits) == ("fob", "hotp", "SHA1", 6)
    assert (fob.enabled, fob.confirmed, fob.serial) == (True, True, "HT-0042")
    assert (fob.secret, fob.created, fob.last_used) == (b"12345678901234567890", 1_700_000_000, 1_700_086_400)
    assert fob.counter == 2**64 - 1
    assert isinstance(phone, TotpToken)
    assert (phone.name, phone.type, phone.algorithm, phone.digits) == ("téléphone 📱", "totp", "SHA256", 8)
    assert (phone.enabled, phone.confirmed, phone.serial) == (False, False, None)
    assert (phone.created, phone.last_used) == (0, None)
    assert (phone.period, phone.last_step, phone.drift) == (30, 0, -3)
    assert phone.secret == b"12345678901234567890123456789012"
    assert serialize(record) == ALICE


ADDED = {"ticket": None, "temporary": None, "recent": "", "changes": ""}
PLAIN = encoded(DOCUMENT | ADDED)
OLD = encoded({key: value for key, value in DOCUMENT.items() if key not in ADDED})
OLDER = OLD.replace(b'   "row_needed": false,\n', b"")


@pytest.mark.parametrize("data", [OLD, OLDER])
def test_a_document_without_the_added_keys_is_read_and_written_with_them(data: bytes) -> None:
    assert b"recent" not in data
    assert parse(data) == parse(PLAIN)
    assert serialize(parse(data)) == PLAIN


@pytest.mark.parametrize(
    "data",
    [
        ALICE.replace(b'   "row_needed": false,\n', b"", 1),  # only one of the tokens has the field
        ALICE.replace(b'"row_needed": false', b'"row_needed": 0'),
        ALICE.replace(b'"row_needed": false', b'"row_needed": null'),
        ALICE.replace(b'   "row_needed": false,\n', b'   "row_needed":  false,\n'),
        OLDER.replace(b'"created": 0', b'"created":  0'),
        OLDER.replace(b"{", b"{ ", 1),
        OLDER + b" ",
        OLDER.replace(b'   "created": 0,\n', b""),
        PLAIN.replace(b'   "row_needed": false,\n', b""),  # no version of pam_totp wrote this document
        PLAIN.replace(b',\n "changes": ""', b""),
        PLAIN.replace(b',\n "recent": ""', b""),  # only some of the keys
        OLD.replace(b"\n}\n", b"\n}"),
        OLD.replace(b'"created": 0', b'"created":  0'),
    ],
)
def test_older_documents_have_one_encoding_too(data: bytes) -> None:
    assert data not in (ALICE, PLAIN, OLD, OLDER)
    refusal(data)


@given(records())
def test_every_record_is_read_from_its_older_document(record: UserRecord) -> None:
    plain = record._replace(ticket=None, temporary=None, recent="", changes="")
    if len(serialize(plain)) > MAX_FILE:
        return
    document = json.loads(serialize(plain))
    for key in ADDED:
        del document[key]
    assert parse(encoded(document)) == plain
    if any(token.row_needed for token in record.tokens):
        return
    for token in document["tokens"]:
        del token["row_needed"]
    assert parse(encoded(document)) == plain


def test_an_empty_record_has_every_key_and_null_for_missing_values() -> None:
    assert json.loads(serialize(UserRecord(user="bob"))) == {
        "version": 1,
        "user": "bob",
        "tokens": [],
        "salt": None,
        "recovery": [],
        "failures": 0,
        "failures_at": None,
        "refused": 0,
        "grace": [],
        "ticket": None,
        "temporary": None,
        "recent": "",
        "changes": "",
    }


@given(records())
def test_a_written_record_is_read_back_unchanged(record: UserRecord) -> None:
    data = serialize(record)
    assert data == encoded(json.loads(data))
    assert data.isascii()
    if len(data) <= MAX_FILE:
        again = parse(data)
        assert again == record
        assert hash(again) == hash(record)
        assert serialize(again) == data


@given(st.binary(max_size=300))
def test_any_bytes_are_an_error_or_a_round_trip(data: bytes) -> None:
    try:
        record = parse(data)
    except RecordError:
        return
    assert serialize(record) == data


@given(records(), st.data())
def test_a_few_changed_bytes_are_an_error_or_a_round_trip(record: UserRecord, data: st.DataObject) -> None:
    good = bytearray(serialize(record))
    start = data.draw(st.integers(0, len(good)))
    good[start : start + data.draw(st.integers(0, 3))] = data.draw(
        st.binary(max_size=3) | st.sampled_from([b"0", b"-", b"1", b" ", b"\n", b",", b'"', b"}", b"null", b"true"])
    )
    changed = bytes(good)
    try:
        again = parse(changed)
    except RecordError:
        return
    assert serialize(again) == changed


# ---- fields: types and ranges

BIG = 10**30
NOT_TEXT: list[object] = [
    *(None, 0, 1.5, True, [], {}),
    *("", " ", " x", "x ", "a\tb", "a\nb", "a\0b", "\x7f", "\ud800", "x" * 256),
]
NOT_BOOLEAN: list[object] = [None, 0, 1, "true", "", [], {}]
NOT_NUMBER: list[object] = [1.0, 0.5, 1e300, True, False, "0", "", [], {}, BIG, -BIG, float("nan"), float("inf"), -1]
NOT_TIME: list[object] = [*NOT_NUMBER, 2**62]
NOT_SECRET: list[object] = [
    *(None, 0, True, [], {}, "", "A", "========", "G" * 20, "G" * 207),
    "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ====",  # padding
    "gezdgnbvgy3tqojqgezdgnbvgy3tqojq",
    "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ ",
    "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ1",
    "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ\n",
    "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJß",
    "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQO3",  # spare bits that are not zero
    "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQG",  # 33 characters encode no whole number of bytes
]
NOT_SALT: list[object] = [
    *(0, True, [], ""),
    *("00" * 15, "00" * 65, "0" * 33, "0G" * 16, "AB" * 16, "0x" + "00" * 16, " " * 32),
]
NOT_DIGEST: list[object] = [None, 0, True, [], {}, "", "00" * 31, "00" * 33, "0" * 63, "AB" * 32, "zz" * 32]

TOKEN: dict[str, list[object]] = {
    "name": NOT_TEXT,
    "type": [None, 0, True, [], {}, "", "HOTP", "ocra", "hotp "],
    "secret": NOT_SECRET,
    "algorithm": [None, 0, True, [], {}, "", "sha1", "MD5", "SHA-1", "SHA1 "],
    "digits": [*NOT_NUMBER, None, 0, 5, 9],
    "enabled": NOT_BOOLEAN,
    "confirmed": NOT_BOOLEAN,
    "serial": [v for v in NOT_TEXT if v is not None],
    "created": [*NOT_TIME, None],
    "last_used": NOT_TIME,
    "row_needed": NOT_BOOLEAN,
}
BAD: dict[Path, list[object]] = {
    ("version",): [None, 0, 2, 1.0, True, "1", [], BIG],
    ("user",): [v for v in NOT_TEXT if v not in (" ", " x", "x ")],  # a user name may begin or end with a space
    ("tokens",): [None, 0, "", {}, True],
    **{("tokens", 0, name): values for name, values in TOKEN.items()},
    **{("tokens", 1, name): values for name, values in TOKEN.items()},
    ("tokens", 0, "counter"): [*NOT_NUMBER, None, 2**64 + 1],
    ("tokens", 1, "period"): [*NOT_NUMBER, None, 0, 86_401],
    ("tokens", 1, "last_step"): [*NOT_NUMBER, 2**64],
    ("tokens", 1, "drift"): [*[v for v in NOT_NUMBER if v != -1], None, 2**31 + 1, -(2**31) - 1],
    ("salt",): NOT_SALT,
    ("recovery",): [None, 0, "", {}, "00" * 32],
    ("recovery", 1): NOT_DIGEST,
    ("failures",): [*NOT_NUMBER, None, 2**62 + 1],
    ("failures_at",): NOT_TIME,
    ("refused",): [*NOT_NUMBER, None, 2**62 + 1],
    ("grace",): [None, 0, "", {}],
    ("grace", 0, "service"): NOT_TEXT,
    ("grace", 0, "rhost"): NOT_TEXT,
    ("grace", 0, "granted"): [*NOT_TIME, None],
    ("ticket",): [0, "", [], True],
    ("ticket", "salt"): [*NOT_SALT, None],
    ("ticket", "digest"): NOT_DIGEST,
    ("ticket", "ends"): [*NOT_TIME, None],
    ("ticket", "token"): NOT_TEXT,
    ("ticket", "picture"): [v for v in NOT_TEXT if v is not None],
    ("temporary",): [0, "", [], True],
    ("temporary", "salt"): [*NOT_SALT, None],
    ("temporary", "digest"): NOT_DIGEST,
    ("temporary", "ends"): [*NOT_TIME, None],
    ("recent",): [None, 0, [], {}, True, "a\nb", "\x7f", "x" * 2049],
    ("changes",): [None, 0, [], {}, True, "a\nb", "\x7f", "x" * 2049],
}
GOOD: dict[Path, list[object]] = {
    ("user",): ["a", "x" * 255, "DOMAIN\\user name", "ünï", "a/../b", "-", " "],
    ("tokens",): [[]],
    ("tokens", 0, "name"): ["x" * 255, "0", "a b"],
    ("tokens", 0, "secret"): ["GEZDGNBVGY3TQOJQGEZDGNA", "A" * 24 + "AA", "GEZDGNBV" * 25 + "GEZDG"],
    ("tokens", 0, "digits"): [6, 7, 8],
    ("tokens", 0, "algorithm"): ["SHA1", "SHA256", "SHA512"],
    ("tokens", 0, "serial"): [None, "x" * 255],
    ("tokens", 0, "created"): [0, 2**62 - 1],
    ("tokens", 0, "last_used"): [None, 0, 2**62 - 1],
    ("tokens", 0, "counter"): [0, 2**63, 2**64],
    ("tokens", 1, "period"): [1, 86_400],
    ("tokens", 1, "last_step"): [None, 0, 2**64 - 1],
    ("tokens", 1, "drift"): [0, -(2**31), 2**31],
    ("salt",): ["00" * 16, "ff" * 64],
    ("recovery",): [[]],
    ("failures",): [0, 2**62],
    ("failures_at",): [0, 2**62 - 1],
    ("refused",): [0, 2**62],
    ("grace",): [[]],
    ("grace", 0, "granted"): [0, 2**62 - 1],
}


@pytest.mark.parametrize("path", BAD, ids=field_name)
def test_an_error_names_the_field_of_a_wrong_type_or_range(path: Path) -> None:
    for value in BAD[path]:
        data = with_value(path, value)
        assert refusal(data).startswith(f"{field_name(path)}: "), value


@pytest.mark.parametrize("path", GOOD, ids=field_name)
def test_the_last_value_within_each_range_is_accepted(path: Path) -> None:
    for value in GOOD[path]:
        data = with_value(path, value)
        assert serialize(parse(data)) == data


def test_a_secret_below_112_bits_is_refused_and_one_of_112_is_not() -> None:
    for size in (1, 10, 13):
        assert refusal(with_value(("tokens", 0, "secret"), base32(b"\x55" * size))).startswith("tokens[0].secret: ")
    parse(with_value(("tokens", 0, "secret"), base32(b"\x55" * 14)))
    parse(with_value(("tokens", 0, "secret"), base32(b"\x55" * 128)))
    assert refusal(with_value(("tokens", 0, "secret"), base32(b"\x55" * 129))).startswith("tokens[0].secret: ")


def _tokens(count: int) -> list[object]:
    return [{**DOCUMENT["tokens"][0], "name": f"t{i}", "secret": base32(bytes([i]) * 20)} for i in range(count)]


TOGETHER: dict[str, tuple[Path, object]] = {
    "tokens: must be a list of at most 8 entries": (("tokens",), _tokens(9)),
    "tokens: duplicate name": (("tokens", 1, "name"), "fob"),
    "tokens: duplicate secret": (("tokens", 1, "secret"), DOCUMENT["tokens"][0]["secret"]),
    "recovery: must be a list of at most 100 entries": (("recovery",), [f"{i:064x}" for i in range(101)]),
    "recovery: duplicate digest": (("recovery", 1), DOCUMENT["recovery"][0]),
    "salt: required if there are recovery codes": (("salt",), None),
    "failures_at: required if there are failures": (("failures_at",), None),
    "grace: must be a list of at most 64 entries": (("grace",), DOCUMENT["grace"] * 65),
}


@pytest.mark.parametrize("said", TOGETHER)
def test_fields_that_contradict_each_other_are_refused(said: str) -> None:
    assert refusal(with_value(*TOGETHER[said])) == said


def test_lists_of_maximum_length_are_accepted() -> None:
    for path, value in [
        (("tokens",), _tokens(8)),
        (("recovery",), [f"{i:064x}" for i in range(100)]),
        (("grace",), DOCUMENT["grace"] * 64),
    ]:
        data = with_value((path[0],), value)
        assert serialize(parse(data)) == data


# ---- keys and containers

OBJECTS: list[Path] = [(), ("tokens", 0), ("tokens", 1), ("grace", 0)]


def _at(document: Any, path: Path) -> Any:
    for key in path:
        document = document[key]
    return document


def _each_key() -> Iterator[tuple[Path, str]]:
    for path in OBJECTS:
        for key in _at(DOCUMENT, path):
            yield path, key


EACH_KEY = pytest.mark.parametrize(
    ("path", "key"), list(_each_key()), ids=lambda v: v if isinstance(v, str) else field_name(v)
)


@EACH_KEY
def test_every_key_is_required(path: Path, key: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    del _at(document, path)[key]
    said = refusal(encoded(document))
    assert said.startswith(field_name((*path, key)))
    assert "missing" in said or key == "type"


@EACH_KEY
def test_a_duplicate_key_is_refused(path: Path, key: str) -> None:
    text = ALICE.decode()
    pad = " " * (1 + len(path))
    block = text.index("{", text.index('"tokens"' if path[:1] == ("tokens",) else '"grace"')) if path else 0
    if path == ("tokens", 1):
        block = text.index('{\n   "name": "t\\u00e9')
    at = text.index(f'{pad}"{key}"', block)
    for value in ("null", json.dumps(_at(DOCUMENT, (*path, key)))):
        again = f'{text[:at]}{pad}"{key}": {value},\n{text[at:]}'
        assert json.loads(again) == DOCUMENT, "json.loads accepts a duplicate key"
        refusal(again.encode())


@EACH_KEY
def test_a_key_under_another_spelling_is_refused(path: Path, key: str) -> None:
    for other in (key.upper(), key + " ", key + "\0", MARKER):
        document = copy.deepcopy(DOCUMENT)
        target = _at(document, path)
        items = [(other if k == key else k, v) for k, v in target.items()]
        target.clear()
        target.update(items)
        refusal(encoded(document))


@pytest.mark.parametrize("path", OBJECTS, ids=field_name)
def test_an_unknown_key_is_refused(path: Path) -> None:
    for key in (MARKER, "", "Version", "__class__", "note"):
        document = copy.deepcopy(DOCUMENT)
        _at(document, path)[key] = MARKER
        assert refusal(encoded(document)) == f"{field_name(path) or 'document'}: unknown key"


@pytest.mark.parametrize("path", OBJECTS, ids=field_name)
def test_keys_must_have_the_canonical_order(path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    target = _at(document, path)
    items = list(target.items())
    for i in range(len(items) - 1):
        swapped = [*items[:i], items[i + 1], items[i], *items[i + 2 :]]
        target.clear()
        target.update(swapped)
        assert refusal(encoded(document)).startswith("must be in the canonical encoding")


@pytest.mark.parametrize("path", OBJECTS[1:], ids=field_name)
@pytest.mark.parametrize("value", [None, [], "x", 1, True, [[]]])
def test_a_value_of_another_type_than_object_is_refused(path: Path, value: object) -> None:
    assert refusal(with_value(path, value)).startswith(field_name(path))


def test_the_type_determines_the_other_keys() -> None:
    assert refusal(with_value(("tokens", 0, "type"), "totp")) == "tokens[0].period: missing"
    assert refusal(with_value(("tokens", 1, "type"), "hotp")) == "tokens[1].counter: missing"


# ---- other encodings of the same document


def _replace(old: str, new: str) -> bytes:
    text = ALICE.decode()
    assert old in text
    return text.replace(old, new, 1).encode("utf-8")


BYTES: dict[str, bytes] = {
    "nothing": b"",
    "a line end": b"\n",
    "NUL": b"\0",
    "NULs": bytes(len(ALICE)),
    "null": b"null\n",
    "a list": b"[]\n",
    "a number": b"1\n",
    "a string": b'"x"\n',
    "an empty object": b"{}\n",
    "no newline": ALICE[:-1],
    "two newlines": ALICE + b"\n",
    "a space after the document": ALICE + b" ",
    "NUL after the document": ALICE + b"\0",
    "a second document": ALICE + ALICE,
    "text after the document": ALICE + MARKER.encode(),
    "a space before the document": b" " + ALICE,
    "a newline before the document": b"\n" + ALICE,
    "a byte order mark": b"\xef\xbb\xbf" + ALICE,
    "UTF-16": ALICE.decode().encode("utf-16"),
    "UTF-32": ALICE.decode().encode("utf-32"),
    "carriage returns": ALICE.replace(b"\n", b"\r\n"),
    "tabs": ALICE.replace(b"\n ", b"\n\t"),
    "two spaces": ALICE.replace(b"\n ", b"\n  "),
    "no indentation": json.dumps(DOCUMENT).encode() + b"\n",
    "no white space": json.dumps(DOCUMENT, separators=(",", ":")).encode() + b"\n",
    "a space before a colon": _replace('"version":', '"version" :'),
    "no space after a colon": _replace('"version": 1', '"version":1'),
    "a space before a comma": _replace('"version": 1,', '"version": 1 ,'),
    "a space at the end of a line": _replace('"version": 1,', '"version": 1, '),
    "a trailing comma": _replace('"counter": 18446744073709551615', '"counter": 18446744073709551615,'),
    "a comment": _replace('"version": 1,', '"version": 1, // one'),
    "an escaped letter": _replace('"alice"', '"\\u0061lice"'),
    "an escaped slash": _replace('"HT-0042"', '"HT\\/0042"'),
    "an escape in upper case": _replace("\\u00e9", "\\u00E9"),
    "an escaped key": _replace('"version"', '"\\u0076ersion"'),
    "UTF-8 instead of an escape": _replace("\\u00e9", "é"),
    "half a surrogate pair": _replace("\\ud83d\\udcf1", "\\ud83d"),
    "a reversed surrogate pair": _replace("\\ud83d\\udcf1", "\\udcf1\\ud83d"),
    "Latin-1": ALICE.replace(b"HT-0042", b"HT\xe90042"),
    "a number with a fraction": _replace('"digits": 6', '"digits": 6.0'),
    "a number with an exponent": _replace('"digits": 6', '"digits": 6e0'),
    "a number with a plus": _replace('"digits": 6', '"digits": +6'),
    "a number with a leading zero": _replace('"digits": 6', '"digits": 06'),
    "minus zero": _replace('"last_step": 0', '"last_step": -0'),
    "a hexadecimal number": _replace('"digits": 6', '"digits": 0x6'),
    "NaN": _replace('"digits": 6', '"digits": NaN'),
    "Infinity": _replace('"digits": 6', '"digits": Infinity'),
    "-Infinity": _replace('"failures": 2', '"failures": -Infinity'),
    "a number of 10,000 digits": _replace('"digits": 6', '"digits": ' + "6" * 10_000),
    "a number of 60,000 digits": _replace('"failures": 2', '"failures": -' + "6" * 60_000),
    "a huge exponent": _replace('"digits": 6', '"digits": 1e999999'),
    "True": _replace('"enabled": true', '"enabled": True'),
    "single quotes": _replace('"alice"', "'alice'"),
    "a raw newline in a string": _replace('"alice"', '"ali\nce"'),
    "a raw NUL in a string": _replace('"alice"', '"ali\0ce"'),
    "lists in lists": _replace('"digits": 6', '"digits": ' + "[" * 30_000 + "]" * 30_000),
    "nested lists that are not closed": b"[" * MAX_FILE,
    "nested objects that are not closed": b'{"a":' * (MAX_FILE // 5),
    "too large": ALICE + b" " * MAX_FILE,
}


@pytest.mark.parametrize("what", BYTES)
def test_another_encoding_is_refused(what: str) -> None:
    refusal(BYTES[what])


def test_a_byte_that_is_not_ascii_is_named_as_the_error() -> None:
    for what in ("UTF-8 instead of an escape", "Latin-1", "a byte order mark", "UTF-16"):
        assert refusal(BYTES[what]) == "must be ASCII"


@pytest.mark.parametrize("size", [0, 1, 2, 100, len(ALICE) // 2, len(ALICE) - 2, len(ALICE) - 1])
def test_a_truncated_file_is_refused(size: int) -> None:
    refusal(ALICE[:size])


def test_an_error_in_the_json_names_its_line() -> None:
    assert refusal(_replace('"digits": 6', '"digits": ?')) == "must be JSON (error at line 10)"


def test_a_file_of_64_kibibytes_is_read_and_one_byte_more_is_not() -> None:
    grace = [{"service": "ü" * 120, "rhost": "x", "granted": 0} for _ in range(64)]
    full = {**DOCUMENT, "grace": grace}
    room = MAX_FILE - len(encoded(full))
    for one in grace:
        more = min(room, 254)
        one["rhost"], room = f"x{'x' * more}", room - more
    data = encoded(full)
    assert len(data) == MAX_FILE
    assert serialize(parse(data)) == data
    full["user"] += "x"
    assert refusal(encoded(full)) == f"must be at most {MAX_FILE} bytes"


# ---- errors show no content of the file


def _paths(value: object, path: Path = ()) -> Iterator[Path]:
    yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        yield from _paths(member, (*path, key))


planted = st.sampled_from([MARKER, [MARKER], {MARKER: MARKER}, MARKER + "\n", MARKER * 60, MARKER + "\ud800"])


@given(path=st.sampled_from([p for p in _paths(DOCUMENT) if p]), value=planted, extra=st.booleans())
@example(path=("tokens", 0, "secret"), value=MARKER, extra=False)
@example(path=("user",), value={MARKER: 1}, extra=False)
def test_an_error_never_shows_content_of_the_file(path: Path, value: object, extra: bool) -> None:
    document = json.loads(with_value(path, value))
    if extra:
        document[MARKER] = MARKER
    if not _parses(encoded(document)):
        refusal(encoded(document))


@given(at=st.integers(0, len(ALICE) - 1), cut=st.integers(0, 40))
def test_a_marker_among_the_bytes_is_never_shown(at: int, cut: int) -> None:
    data = ALICE[:at] + MARKER.encode() + ALICE[at + cut :]
    if not _parses(data):
        refusal(data)


# ---- base32


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"f", "MY"),
        (b"fo", "MZXQ"),
        (b"foo", "MZXW6"),
        (b"foob", "MZXW6YQ"),
        (b"fooba", "MZXW6YTB"),
        (b"foobar", "MZXW6YTBOI"),  # RFC 4648 §10, without the padding
        (b"Hello world...\0", "JBSWY3DPEB3W64TMMQXC4LQA"),  # google-authenticator-libpam's test suite
    ],
)
def test_base32_matches_the_published_vectors(raw: bytes, text: str) -> None:
    assert base32(raw) == text
    assert unbase32(text) == raw


@given(st.binary(min_size=1, max_size=130))
def test_base32_round_trips(raw: bytes) -> None:
    assert unbase32(base32(raw)) == raw


@given(st.text(max_size=12) | st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567=", max_size=40))
def test_base32_has_one_spelling(text: str) -> None:
    try:
        raw = unbase32(text)
    except ValueError:
        return
    assert base32(raw) == text


def test_the_tables_above_cover_every_field() -> None:
    fields = {path for path in _paths(DOCUMENT) if path and not isinstance(_at(DOCUMENT, path), dict)}
    assert fields - {("recovery", 0)} == set(BAD) - {("ticket",), ("temporary",)}
