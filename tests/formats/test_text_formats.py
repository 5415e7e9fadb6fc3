"""Tests of the text formats: the meaning of each line, errors that name the line, and remarks on dropped data."""

from __future__ import annotations

import base64
import time

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.record import Token
from pam_totp.core.secretfile import base32
from pam_totp.formats.csv_tokens import parse_map
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import FORMATS
from tests.formats.reading import NOW, parsed, written
from tests.support.site import KEY, fob, phone

STEP = NOW // 30
HEX = KEY.hex()
B32 = base32(KEY)


def only(name: str, text: str) -> ImportedToken:
    (token,) = parsed(name, text.encode())
    return token


def ga(*lines: str) -> ImportedToken:
    return only("google-authenticator", "".join(f"{line}\n" for line in lines))


def oath(text: str) -> ImportedToken:
    return only("users-oath", text)


# google-authenticator


def test_a_google_authenticator_hotp_file_is_read() -> None:
    found = ga(B32, '" HOTP_COUNTER 42', '" WINDOW_SIZE 3', "12345678", "87654321")
    assert (found.type, found.secret, found.counter, found.unsupported) == ("hotp", KEY, 42, None)
    assert found.remarks == ("2 scratch codes dropped: they are too short (see 'pam-totp recovery')",)


def test_a_google_authenticator_totp_file_keeps_its_used_codes() -> None:
    lines = [B32, '" RATE_LIMIT 3 30 1699999999', '" WINDOW_SIZE 17', f'" DISALLOW_REUSE {STEP} {STEP - 4} {STEP - 2}']
    found = ga(*lines, '" TIME_SKEW -3', '" STEP_SIZE 30', '" TOTP_AUTH')
    assert (found.type, found.last_step, found.drift, found.period) == ("totp", STEP, -3, 30)
    assert set(found.remarks) == {
        "RATE_LIMIT dropped: pam_totp always counts wrong answers",
        "WINDOW_SIZE 17 dropped (set 'window=8' in the policy for the same width)",
    }
    assert ga(B32, '" DISALLOW_REUSE', '" TOTP_AUTH').last_step is None, "an empty DISALLOW_REUSE lists no used code"


def test_without_a_list_of_used_codes_all_up_to_now_count_as_used() -> None:
    found = ga(B32, '" TIME_SKEW 2', '" TOTP_AUTH')
    assert found.last_step == STEP + 2
    assert any("all codes up to now count as used" in remark for remark in found.remarks)


def test_a_key_is_decoded_as_google_authenticator_decodes_it() -> None:
    spelled = f"{B32[:4].lower()} -\t{B32[4:]}"
    assert ga(spelled, '" HOTP_COUNTER 1').secret == KEY
    lookalikes = "BO" * 12 + "LL"
    mixed = lookalikes.replace("O", "0").replace("L", "1").replace("B", "8")
    expected = base64.b32decode(lookalikes + "A" * 6)[: 26 * 5 // 8]
    assert ga(mixed, '" HOTP_COUNTER 1').secret == expected, "incomplete bytes at the end of the key are dropped"


def test_the_first_of_two_settings_applies_and_hotp_precedes_totp() -> None:
    found = ga(B32, '" HOTP_COUNTER 7', '" HOTP_COUNTER 9', '" TOTP_AUTH', '" DIGITS 8', '" ALGORITHM SHA256')
    assert (found.type, found.counter, found.digits, found.algorithm) == ("hotp", 7, 8, "SHA256")
    assert "duplicate HOTP_COUNTER dropped: the first value is kept" in found.remarks
    assert ga(B32, '" HOTP_COUNTER 0', '" TOTP_AUTH').type == "totp"


def test_a_file_that_accepts_no_code_is_skipped() -> None:
    for lines in ([B32], [B32, '" HOTP_COUNTER 0']):
        assert ga(*lines).unsupported == "TOTP_AUTH or a HOTP_COUNTER above 0 is required"


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["GEZDGNBV=", '" TOTP_AUTH'], 1),
        (["not base32!"], 1),
        ([B32, '" HOTP_COUNTER 5junk'], 2),
        ([B32, '" HOTP_COUNTER 9223372036854775808'], 2),
        ([B32, '" HOTP_COUNTER -1'], 2),
        ([B32, '" TOTP_AUTH', '" STEP_SIZE 61'], 3),
        ([B32, '" TOTP_AUTH', '" WINDOW_SIZE 0'], 3),
        ([B32, '" TOTP_AUTH', f'" DISALLOW_REUSE {STEP + 1000}'], 3),
        ([B32, '" TOTP_AUTH', '" DISALLOW_REUSE x'], 3),
        ([B32, '" TOTP_AUTH', "1234567"], 3),
        ([B32, '" TOTP_AUTH', "01234567"], 3),
        ([B32, '" '], 2),
        ([B32, '" TOTP_AUTH', '" ALGORITHM MD5'], 3),
    ],
)
def test_an_invalid_google_authenticator_file_is_refused_with_its_line(lines: list[str], line: int) -> None:
    with pytest.raises(FormatError, match=f"line {line}: "):
        ga(*lines)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"x" * 65537, b"GEZDGNBV\0", b"\xff\xfe"])
def test_a_file_of_another_kind_is_refused_as_google_authenticator(data: bytes) -> None:
    with pytest.raises(FormatError):
        parsed("google-authenticator", data)


# users.oath


def test_the_counter_of_pam_oath_is_that_of_the_last_code() -> None:
    assert oath(f"HOTP alice - {HEX}").counter == 0
    assert oath(f"HOTP alice - {HEX} 5").counter == 5
    used = oath(f"HOTP/E/8\talice\t1234\t{HEX}\t5\t{hotp(KEY, 5, 8)}\t2023-11-14T12:00:00L")
    assert (used.counter, used.digits, used.user) == (6, 8, "alice")
    assert used.remarks == ("PIN dropped: a login asks for the code only",)
    assert used.last_used == int(time.mktime((2023, 11, 14, 12, 0, 0, 0, 0, -1)))


@pytest.mark.parametrize("pin", ["-", "+"])
def test_an_absent_or_external_pin_needs_no_remark(pin: str) -> None:
    assert oath(f"HOTP alice {pin} {HEX}").remarks == ()


@pytest.mark.parametrize(("away", "drift"), [(0, 0), (1, 0), (-1, 0), (3, 3), (-8, -8)])
def test_a_time_token_s_last_code_gives_its_step_and_its_drift(away: int, drift: int) -> None:
    used = NOW - 7200
    code = hotp(KEY, used // 30 + away)
    at = time.strftime("%Y-%m-%dT%H:%M:%SL", time.localtime(used))
    found = oath(f"HOTP/T30 bob - {HEX} 1 {code} {at}")
    assert (found.type, found.last_step, found.drift) == ("totp", used // 30 + away, drift)
    assert found.remarks == ()


def test_with_a_last_code_of_another_time_all_codes_up_to_now_are_used() -> None:
    found = oath(f"HOTP/T60/7 bob - {HEX} 1 0000000 2001-01-01T00:00:00L")
    assert (found.last_step, found.period, found.digits) == (NOW // 60, 60, 7)
    assert "all codes up to now count as used" in found.remarks[0]
    assert oath(f"HOTP/T30 bob - {HEX} 1 000000").last_step == STEP, "a code without a timestamp has the same result"


def test_the_nine_column_variant_holds_the_next_counter() -> None:
    line = f"HOTP/E carl - {HEX} 5 0 {hotp(KEY, 4)} 2023-11-14T12:00:00L 192.0.2.1"
    assert oath(line).counter == 5
    used = NOW - 60
    code, at = hotp(KEY, used // 30 - 2), time.strftime("%Y-%m-%dT%H:%M:%SL", time.localtime(used))
    found = oath(f"HOTP/T30 carl - {HEX} -2 0 {code} {at} 192.0.2.1")
    assert (found.drift, found.last_step) == (-2, used // 30 - 2)


@pytest.mark.parametrize(
    "text",
    [
        "HOTP alice -",
        "HOTP",
        f"hotp alice - {HEX}",
        f"HOTP/6 alice - {HEX}",
        f"HOTP/E/9 alice - {HEX}",
        f"HOTP/T45 alice - {HEX}",
        f"HOTP alice - {HEX}0",
        f"HOTP alice - {'0g' * 20}",
        f"HOTP alice - {'00' * 33}",
        f"HOTP alice - {HEX} -1",
        f"HOTP alice - {HEX} 18446744073709551616",
        f"HOTP alice - {HEX} 1_0",
        f"HOTP alice - {HEX} 5 12345",
        f"HOTP alice - {HEX} 5 123456 yesterday",
        f"HOTP alice - {HEX} 5 123456 2023-13-41T99:99:99L",
        f"HOTP alice - {HEX} 5 0 123456 2023-11-14T12:00:00L",
        "x" * 5000,
    ],
)
def test_an_invalid_users_oath_line_is_refused_with_its_number(text: str) -> None:
    with pytest.raises(FormatError, match="line 3: ") as refused:
        parsed("users-oath", f"# users\n\n{text}\nHOTP bob - {HEX}\n".encode())
    assert HEX not in str(refused.value)


# otpauth


def test_a_uri_names_the_user_and_the_token() -> None:
    found = only(
        "otpauth",
        f"# phones\n\notpauth://totp/ACME%20Co:alice@example.net?secret={B32}&issuer=ACME%20Co&algorithm=SHA512&digits=8&period=60\n",
    )
    assert (found.line, found.user, found.type, found.algorithm) == (3, "alice@example.net", "totp", "SHA512")
    assert (found.secret, found.digits, found.period, found.remarks) == (KEY, 8, 60, ())
    counter = only("otpauth", f"otpauth://hotp/bob?secret={B32.lower()}&counter=18446744073709551615&algoritm=SHA256")
    assert (counter.user, counter.counter) == ("bob", 2**64 - 1)
    assert counter.remarks == ("1 unknown parameters dropped",)


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.net",
        "otpauth://motp/x?secret=" + B32,
        "otpauth://totp/x",
        "otpauth://totp/x?secret=",
        "otpauth://totp/x?secret=1",
        f"otpauth://hotp/x?secret={B32}",
        f"otpauth://hotp/x?secret={B32}&counter=-1",
        f"otpauth://totp/x?secret={B32}&digits=10",
        f"otpauth://totp/x?secret={B32}&period=0",
        f"otpauth://totp/x?secret={B32}&period=٣٠",
        f"otpauth://totp/x?secret={B32}&secret={B32}",
        f"otpauth://totp/x?secret={B32}&algorithm=MD5",
        "otpauth://[totp/x?secret=" + B32,
        f"otpauth://totp/%FF?secret={B32}",
        f"otpauth://totp/x?secret={B32}&issuer={'x' * 3000}",
    ],
)
def test_an_invalid_uri_is_refused_with_its_line_and_without_the_key(uri: str) -> None:
    with pytest.raises(FormatError, match="line 2: ") as refused:
        parsed("otpauth", f"otpauth://totp/x?secret={B32}\n{uri}\n".encode())
    assert B32 not in str(refused.value)


# CSV


def test_the_columns_of_privacyidea_are_read() -> None:
    found = parsed(
        "csv",
        f'# serial, key, type, digits, counter\nA1, {HEX}\n"A2","{HEX}",hotp,8,17\nA3,{HEX},TOTP,6,60,sha-256\r\n'
        f"A4,{HEX}\nA5,{'ab' * 32},totp\nA6,{HEX},motp\n".encode(),
    )
    assert [(f.serial, f.type, f.digits, f.counter, f.period, f.algorithm) for f in found[:4]] == [
        ("A1", "hotp", 6, 0, 30, "SHA1"),
        ("A2", "hotp", 8, 17, 30, "SHA1"),
        ("A3", "totp", 6, 0, 60, "SHA256"),
        ("A4", "hotp", 6, 0, 30, "SHA1"),
    ]
    assert "SHA256" in found[4].remarks[0]
    assert found[5].unsupported == "unknown type: must be hotp or totp"


@pytest.mark.parametrize(
    "text",
    [
        "A1",
        f",{HEX}",
        f"A1,{HEX},hotp,9",
        f"A1,{HEX},hotp,6,-1",
        f"A1,{HEX},totp,6,0",
        f"A1,{HEX},totp,6,30,MD5",
        f"A1,{HEX},totp,6,30,SHA1,x",
        f'"A1,{HEX}',
        "A1,GEZDGNBV",
        f"A0,{HEX}",
    ],
)
def test_an_invalid_csv_line_is_refused_with_its_number(text: str) -> None:
    with pytest.raises(FormatError, match="line 2: ") as refused:
        parsed("csv", f"A0,{HEX}\n{text}\n".encode())
    assert HEX not in str(refused.value)


def test_a_map_has_two_columns_and_each_serial_once() -> None:
    assert parse_map(b"Serial,User\n\n# box 1\n1, alice\n2,bob\n") == {"1": "alice", "2": "bob"}
    for bad in (b"1\n", b"1,\n", b"1,a,b\n", b"1,a\n1,b\n"):
        with pytest.raises(FormatError, match="line "):
            parse_map(bad)


# ---- export and import


@pytest.mark.parametrize("name", ["otpauth", "google-authenticator", "users-oath", "json"])
@pytest.mark.parametrize(
    "token",
    [fob(7), fob(2**63 - 2), phone(), phone(last_step=STEP, drift=-4), phone(period=60, last_step=NOW // 60)],
    ids=["hotp", "hotp far on", "totp", "totp drifting", "totp 60 s"],
)
def test_an_exported_file_is_read_back_unchanged(name: str, token: Token) -> None:
    back = parsed(name, written(name, [token]))[0].token(0)
    for field in ("type", "secret", "algorithm", "digits", "counter", "period", "last_step", "drift"):
        if name == "otpauth" and field in ("last_step", "drift"):
            continue  # an otpauth URI has no such fields
        assert getattr(back, field, None) == getattr(token, field, None), field


def test_a_format_names_the_tokens_that_it_cannot_hold() -> None:
    for token in (fob(0), phone(digits=8), phone(algorithm="SHA256"), phone(period=61)):
        assert FORMATS["google-authenticator"].unwritable(token) is not None
    for token in (phone(period=45), phone(algorithm="SHA512"), fob(secret=b"x" * 33), fob(2**64)):
        assert FORMATS["users-oath"].unwritable(token) is not None
    for user in ("a b", "#a"):
        with pytest.raises(FormatError, match="name"):
            written("users-oath", [fob()], user=user)
