"""Tests of the text formats: the meaning of each line, errors that name the line, and remarks on dropped data."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from pam_totp.core.record import Token
from pam_totp.core.secretfile import base32
from pam_totp.formats.csv_tokens import parse_map
from pam_totp.formats.format import ParseOptions
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.otpauth import from_uri
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import FORMATS, sniff
from tests.formats.reading import NOW, parsed, written
from tests.support.site import KEY, TREE, fob, phone

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


def test_a_line_without_a_uri_is_refused_with_its_number() -> None:
    for line in ("https://example.net", B32, f"totp/x?secret={B32}"):
        with pytest.raises(FormatError, match="line 2: ") as refused:
            parsed("otpauth", f"otpauth://totp/x?secret={B32}\n{line}\n".encode())
        assert B32 not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "otpauth://motp/x?secret=" + B32,
        f"otpauth://steam/Steam%3Abob?period=30&digits=5&algorithm=SHA1&secret={B32}&issuer=Steam",
        f"otpauth://totp/x?secret={B32}&digits=5",
        "otpauth://totp/x",
        "otpauth://totp/x?secret=",
        "otpauth://totp/x?secret=1",
        f"otpauth://totp/secret={B32}&issuer=x",
        f"otpauth://hotp/x?secret={B32}",
        f"otpauth://hotp/x?secret={B32}&counter=-1",
        f"otpauth://totp/x?secret={B32}&digits=10",
        f"otpauth://totp/x?secret={B32}&period=0",
        f"otpauth://totp/x?secret={B32}&period=٣٠",
        f"otpauth://totp/x?secret={B32}&secret={B32[::-1]}",
        f"otpauth://totp/x?secret={B32}&algorithm=MD5",
        "otpauth://[totp/x?secret=" + B32,
        f"otpauth://totp/x?secret={B32}%FF",
        f"otpauth://totp/x?secret={B32}&algorithm=%FF",
        f"otpauth://totp/x?secret={B32}&issuer={'x' * 3000}",
    ],
)
def test_an_unusable_uri_is_skipped_with_a_reason_without_the_key(uri: str) -> None:
    found = parsed("otpauth", f"otpauth://totp/x?secret={B32}\n{uri}\notpauth://totp/y?secret={B32}\n".encode())
    assert [(token.line, token.unsupported is None) for token in found] == [(1, True), (2, False), (3, True)]
    assert found[1].unsupported
    assert B32 not in repr(found[1])
    with pytest.raises(ValueError, match=r"\S") as refused:
        from_uri(uri, "phone", NOW)
    assert B32 not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        f"OTPAUTH://TOTP/alice?SECRET={B32}&DIGITS=6",
        f"otpauth://totp/alice?secret={B32}&issuer&algorithm=SHA1",
        f"otpauth://totp/ACME:alice?secret={B32}&algorithm=&digits=&period=&",
        f"otpauth://totp/ACME:alice?secret={B32}&issuer=ACME&algorithm=Algorithm.sha1&digits=6&period=30",
        f"otpauth://totp/Text%3A%20More:alice?secret={B32[:4].lower()}%20{B32[4:].lower()}&algorithm=HmacSHA1&period=30s",
        f"otpauth://totp/A#1? Co: alice?secret={B32[:8]}+{B32[8:]}&&issuer=A#1?",
        f"otpauth://totp/alice?secret={B32}%3D%3D&amp;digits=6&secret={B32}==",
        f'  "otpauth://totp/A,B:alice?issuer=A,B&secret={B32}",',
    ],
)
def test_a_uri_is_read_as_apps_write_it(uri: str) -> None:
    found = only("otpauth", uri)
    assert (found.user, found.secret, found.digits, found.period, found.algorithm) == ("alice", KEY, 6, 30, "SHA1")
    assert (found.unsupported, found.remarks) == (None, ())


PUBLIC = [  # URIs that users of other programs reported, with other keys -> the account and the digits
    ("ente/ente 1253", f"otpauth://totp/A%20B:a,b?secret={B32}&issuer=A%20B", "a,b", 6),
    (
        "raycast/extensions 27629",
        f"otpauth://totp/example?secret={B32[:4]}+{B32[4:]}&issuer&algorithm=SHA1",
        "example",
        6,
    ),
    ("Spomky-Labs/otphp 242", f"otpauth://totp/Some+Company%3ame%40x.net?secret={B32.lower()}&issuer=X", "me@x.net", 6),
    ("stratumauth/app 271", f"otpauth://totp/My%20Code?secret={B32}&issuer=My+Code", "My Code", 6),
    ("hectorm/otpauth 25", f"otpauth://totp/Slack%20(Co%20W):g@m.com?secret={B32}&issuer=Slack", "g@m.com", 6),
    ("replydev/cotp 296", f"otpauth://totp/1%40Git%20?secret={B32}&algorithm=SHA1&digits=6&lock=false", "1@Git", 6),
    ("Authenticator 1508", f"otpauth://totp/U?secret={B32}&issuer=I&algorithm=SHA512&digits=8&period=60", "U", 8),
    ("Authenticator 286", f"otpauth://totp/%20:%3A%3A!!!?secret={B32}&issuer=%20&period=30", "!!!", 6),
]


@pytest.mark.parametrize(("uri", "user", "digits"), [row[1:] for row in PUBLIC], ids=[row[0] for row in PUBLIC])
def test_a_uri_that_other_programs_refused_is_read(uri: str, user: str, digits: int) -> None:
    found = only("otpauth", uri)
    assert (found.user, found.secret, found.digits, found.unsupported) == (user, KEY, digits, None)


@pytest.mark.parametrize("uri", [f"B%FCro:m%FCller?secret={B32}&issuer=B%FCro", f"%FF?secret={B32}&icon=%FF"])
def test_a_label_must_be_utf8_to_name_a_user(uri: str) -> None:
    """Users reported labels in ISO 8859-1 to dchapkine/extract-google-authenticator-credentials 12."""
    found = only("otpauth", f"otpauth://totp/{uri}")
    assert (found.user, found.secret, found.unsupported) == (None, KEY, None)
    assert found.remarks == ("user name dropped: it is not UTF-8",)


def test_text_in_another_encoding_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """The file is a spreadsheet's CSV in Windows-1252, which users reported to grokability/snipe-it 16518."""
    table = f"upn;serial number;secret key;model\nalice;A1;{B32};Größe 2\n"
    file = tmp_path / "tokens.csv"
    file.write_bytes(table.encode("cp1252"))
    remedy = "iconv -f WINDOWS-1252 -t UTF-8"
    with pytest.raises(FormatError, match=rf"line 2: must be UTF-8 \(convert the file, for example with '{remedy}'\)"):
        parsed("csv", file.read_bytes())
    converted = subprocess.run([*remedy.split(), file], capture_output=True, check=True).stdout
    assert only("csv", converted.decode()).serial == "A1"


def test_commas_and_spaces_may_separate_the_uris_of_one_line() -> None:
    uris = [f"otpauth://totp/A,{i} x:u{i}?secret={B32}" for i in range(200)]
    for between in (",", ", ", " ", '", "', "\n,"):
        found = parsed("otpauth", between.join(uris).encode())
        assert [token.user for token in found] == [f"u{i}" for i in range(200)]


def test_the_last_letter_of_a_phone_s_key_may_have_spare_bits() -> None:
    assert only("otpauth", f"otpauth://totp/x?secret={B32[:25]}H").secret == KEY[:15] + base64.b32decode(
        B32[24] + "H======"
    )


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
        f"A1,{HEX},hotp,6,-1",
        f"A1,{HEX},totp,6,0",
        f"A1,{HEX},totp,6,30,SHA1,x",
        f'"A1,{HEX}',
        "A1,GEZDGNBV",
        f"A1,{B32}!",
        f"A1,0x{B32}",
        f"1.23457E+11,{HEX}",
        f"A1,{HEX},hotp,six",
        f"a-0,{HEX}",
        f"A0,{HEX}",
    ],
)
def test_an_invalid_csv_line_is_refused_with_its_number(text: str) -> None:
    with pytest.raises(FormatError, match="line 2: ") as refused:
        parsed("csv", f"A0,{HEX}\n{text}\n".encode())
    assert HEX not in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (f"{HEX},motp", "unknown type: must be hotp or totp"),
        (f"{HEX},ocra,OCRA-1:HOTP-SHA1-6:QN08", "unknown type: must be hotp or totp"),
        (f"{HEX},hotp,9", "unsupported number of digits: must be 6 to 8"),
        (f"{HEX},totp,6,30,MD5", "unsupported algorithm: must be SHA1, SHA256, SHA512"),
    ],
)
def test_a_token_that_cannot_be_used_is_skipped_with_its_reason(columns: str, reason: str) -> None:
    found = parsed("csv", f"A1,{HEX}\nA2,{columns}\nA3,{HEX}\n".encode())
    assert [token.unsupported for token in found] == [None, reason, None]


ROWS = f"A1,{HEX},totp,8,60,SHA256\nA2,{HEX},hotp,6,7\n"


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + ROWS.encode(),
        ROWS.replace("\n", "\r\n").encode(),
        ROWS.replace("\n", "\r").encode(),
        ROWS.encode("utf-16"),
        b"\xfe\xff" + ROWS.encode("utf-16-be"),
        ROWS.replace(",", ";").encode(),
        ROWS.replace(",", "\t").encode(),
        b"sep=;\n" + ROWS.replace(",", ";").encode(),
        (ROWS + ",,,,\n \n;;\n").replace(";", ",").encode(),
        ROWS.replace(",", " , ").replace("A1", '"A1" ').replace("A2", '="A2"').encode(),
        ROWS.replace(HEX, f"0x{HEX.upper()}").replace("totp", "TOTP").encode(),
        ROWS.replace(HEX, B32).replace("60", "60s").replace("SHA256", "HMAC-SHA256").encode(),
        ROWS.replace(HEX, B32.lower() + "====").replace("60", "60 seconds").replace("SHA256", "HmacSHA256").encode(),
        ROWS.replace(HEX, " ".join(HEX[i : i + 2] for i in range(0, 40, 2))).encode(),
        "".join(f'"{line}"\r\n' for line in ROWS.splitlines()).encode(),
        b"# box 7\n\nserial,key,type,digits,counter or period,algorithm\n" + ROWS.encode(),
    ],
)
def test_a_table_is_read_as_vendors_and_spreadsheets_write_it(data: bytes) -> None:
    assert sniff(data) == "csv"
    first, second = parsed("csv", data)
    assert (first.serial, first.secret, first.type, first.digits, first.period, first.algorithm) == (
        "A1",
        KEY,
        "totp",
        8,
        60,
        "SHA256",
    )
    assert (second.serial, second.secret, second.type, second.digits, second.counter) == ("A2", KEY, "hotp", 6, 7)


def test_other_text_formats_are_read_as_editors_write_them() -> None:
    texts = {
        "users-oath": f"hotp/e/8 alice - 0x{HEX.upper()} 5\nHotp/t30 bob - {B32.lower()}\n",
        "google-authenticator": f'{B32.lower()}\n" hotp_counter 5 \n" Step_Size 30s\n" ALGORITHM hmac-sha1\n12345678\n',
        "otpauth": f"otpauth://totp/alice?secret={B32}\n",
    }
    for name, text in texts.items():
        expected = parsed(name, text.encode())
        assert {token.secret for token in expected} == {KEY}
        for data in (
            b"\xef\xbb\xbf" + text.encode(),
            text.encode("utf-16"),
            text.replace("\n", "\r\n").encode(),
            text.replace("\n", "\r").encode(),
        ):
            assert parsed(name, data) == expected
            assert sniff(data) == name


def understood(data: str) -> tuple[str, ...]:
    return FORMATS["csv"].parse(data.encode(), ParseOptions(now=NOW)).understood


def test_the_columns_of_entra_and_token2_are_recognised_by_the_heading() -> None:
    data = f"upn,serial number,secret key,time interval,manufacturer,model\r\na@x.org,123,{B32},60,Contoso,Key\r\n"
    found = only("csv", data)
    assert (found.user, found.serial, found.secret, found.type, found.period) == ("a@x.org", "123", KEY, "totp", 60)
    assert understood(data) == (
        "columns: 'upn' is the user, 'serial number' is the serial number, 'secret key' is the key, "
        "'time interval' is the period; not used: 'manufacturer', 'model'",
        "type: totp, because no column names it",
    )
    assert understood(f"1,{HEX}\n") == (), "without a heading"


@pytest.mark.parametrize(
    ("heading", "row", "expected"),
    [
        ("Serial No.;Seed (hex);OTP length", f"7;{HEX};8", ("7", None, "hotp", 8, 0, 30)),
        ("SECRET_BASE32,SN", f"{B32},7", ("7", None, "hotp", 6, 0, 30)),
        (
            "Token Type,User,Token Serial,OTPKey,Time Step",
            f"OATH-TOTP,al,7,{HEX},30 sec",
            ("7", "al", "totp", 6, 0, 30),
        ),
        ("serial,key,type,otplen,counter", f"7,{HEX},totp,6,60", ("7", None, "totp", 6, 0, 60)),
        ("serial,key,type,otplen,counter", f"7,{HEX},totp,6,0", ("7", None, "totp", 6, 0, 30)),
        ("serial,key,type,otplen,counter,period", f"7,{HEX},event,6,9,30", ("7", None, "hotp", 6, 9, 30)),
    ],
)
def test_a_heading_gives_each_column_its_meaning(heading: str, row: str, expected: tuple[object, ...]) -> None:
    found = only("csv", f"{heading}\n{row}\n")
    assert (found.serial, found.user, found.type, found.digits, found.counter, found.period) == expected
    assert found.secret == KEY
    assert understood(f"{heading}\n{row}\n")


URI = f"otpauth://totp/Host:alice?secret={B32}&issuer=Host"
MANAGERS = {  # CSV exports with a column for codes; users reported the columns to these projects
    "KeePassXC (keepassxreboot/keepassxc 6167)": '"Group","Title","Username","Password","URL","Notes","TOTP","Icon"\n'
    f'"Root","a","alice","p","u","one\n\n# ""two"", three","{URI}","0"\n'
    f'"Root","b","bob","p","u","","","0"\n"Root","c","carl","p","u","","{B32.lower()}","0"\n',
    "1Password (passbolt/passbolt_browser_extension 284)": "Title,Url,Username,Password,OTPAuth,Favorite,Notes\n"
    f"a,u,alice,p,{URI},false,\nb,u,bob,p,,false,\nc,u,carl,p,{URI},false,\n",
    "Bitwarden (aliasvault/aliasvault 852)": "folder,type,name,notes,login_username,login_password,login_totp\n"
    f",login,a,,alice,p,{URI}\n,note,b,text,,,\n,login,c,,carl,p,{B32[:4]} {B32[4:]}\n",
}


@pytest.mark.parametrize("table", MANAGERS.values(), ids=MANAGERS.keys())
def test_the_column_for_codes_of_a_password_manager_is_read(table: str) -> None:
    assert sniff(table.encode()) == "csv"
    found = parsed("csv", table.encode())
    assert [(token.user, token.secret, token.type, token.unsupported) for token in found] == [
        ("alice", KEY, "totp", None),
        ("carl", KEY, "totp", None),
    ], "an entry without a key is skipped, and the user is from the column of users"
    (columns,) = understood(table)
    assert "is the user" in columns and "is the key or otpauth URI" in columns
    assert re.search("not used: .*'(P|login_p)assword'", columns)


def test_one_unusable_entry_of_a_password_manager_is_skipped() -> None:
    values = [URI, "x", f"steam://{B32}", "otpauth://totp/x?secret=", "otpauth://totp/x", URI]
    found = parsed("csv", b"TOTP,user\n" + "".join(f"{value},u{i}\n" for i, value in enumerate(values, 1)).encode())
    assert [(token.user, token.unsupported is None) for token in found] == [
        (f"u{i}", i in (1, 6)) for i in range(1, 7)
    ], found
    assert B32 not in repr(found)


def test_a_quoted_column_may_have_line_ends_but_must_end() -> None:
    found = parsed("csv", f'serial,key,note\nA1,{HEX},"one\r\ntwo"\nA2,{HEX},x\n'.encode())
    assert [(token.line, token.serial) for token in found] == [(2, "A1"), (4, "A2")]
    for rest in (f"\nA2,{HEX},x\n", "\nx" * 100_000):
        with pytest.raises(FormatError, match="line 2: quotation marks must be balanced"):
            parsed("csv", f'serial,key,note\nA1,{HEX},"one{rest}'.encode())


def test_the_lines_of_a_long_note_are_read_once() -> None:
    """A single read of the notes takes 0.5 s of processor time. A copy for each of their lines would take 25 s."""
    script = (
        "import resource, sys; from pam_totp.formats.csv_rows import rows\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (10, resource.getrlimit(resource.RLIMIT_CPU)[1]))\n"
        "note = chr(10).join('x' * 32_000)\n"
        "assert [len(row[1]) for _, row in rows((f'A1,\"{note}\"\\n' * 40).encode())] == [63_999] * 40"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=TREE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_column_of_hexadecimal_keys_must_be_hexadecimal() -> None:
    for heading, key in (("hex key", B32), ("base32 key", HEX)):
        with pytest.raises(FormatError, match=f"line 2: key: must be {heading.split()[0][:3]}"):
            parsed("csv", f"serial,{heading}\n1,{key}\n".encode())


def test_the_token_janitor_s_column_of_users_is_recognised() -> None:
    found = only("csv", f"alice, OATH1, {HEX}, totp, 6, 30\n")
    assert (found.user, found.serial, found.type, found.period) == ("alice", "OATH1", "totp", 30)
    assert understood(f"alice, OATH1, {HEX}, totp, 6, 30\n")
    with pytest.raises(FormatError, match=r"line 2: must have 3 to 7 columns \(user, serial, key"):
        parsed("csv", f"alice, OATH1, {HEX}\nOATH2, {HEX}\n".encode())


def test_the_log_of_yubico_s_personalisation_tool_is_read() -> None:
    traditional = f"LOGGING START,11.12.13 18:55\r\nOATH-HOTP,11.12.13 18:55,1,,,{HEX},,,0,0,0,8,0,0,0,0,0,0\r\n"
    found = parsed("csv", (traditional + "Yubico OTP,11.12.13 18:56,1,cccc,ab,cd,,,0,0,0,0,0,0,0,0,0,0\r\n").encode())
    assert [(t.serial, t.type, t.digits, t.unsupported) for t in found] == [
        (None, "hotp", 8, None),
        (None, "hotp", 6, "unsupported mode: must be OATH-HOTP"),
    ]
    assert (found[0].secret, found[0].remarks) == (KEY, ())
    own = f"# OATH mode\n508326,,0,{HEX},,2013-12-12T08:41:07,\n508327,cccc,83ce,{HEX},,2013-12-12T08:43:17,\n"
    first, second = parsed("csv", own.encode())
    assert (first.serial, first.secret, first.remarks) == (
        "508326",
        KEY,
        ("assumed 6 digits: the file has no number of digits",),
    )
    assert second.unsupported
    assert "identifier" in only("csv", traditional.replace(",1,,,", ",1,ubom00000001,,")).remarks[0]
    for text in (traditional, own):
        assert sniff(text.encode()) == "csv"
        assert understood(text) == ("the log of Yubico's personalisation tool",)


def test_a_map_has_two_columns_and_each_serial_once() -> None:
    assert parse_map(b"Serial,User\n\n# box 1\n1, alice\n2,bob\n") == {"1": "alice", "2": "bob"}
    assert parse_map(b"\xef\xbb\xbfUPN;Serial number;x\r\nalice;'01';\r\n;02;\r\n;;\r\nbob;\"03\"\r\n") == {
        "01": "alice",
        "03": "bob",
    }
    assert parse_map("1\talice\r2\tbob\r".encode("utf-16")) == {"1": "alice", "2": "bob"}
    for bad in (b"1\n", b"1,\n", b"1,a,b\n", b"1,a\n1,b\n", b"a1,a\nA-1,b\n", b"1E+5,a\n"):
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
            continue  # an otpauth URI cannot contain these fields
        assert getattr(back, field, None) == getattr(token, field, None), field


def test_a_format_names_the_tokens_that_it_cannot_hold() -> None:
    for token in (fob(0), phone(digits=8), phone(algorithm="SHA256"), phone(period=61)):
        assert FORMATS["google-authenticator"].unwritable(token) is not None
    for token in (phone(period=45), phone(algorithm="SHA512"), fob(secret=b"x" * 33), fob(2**64)):
        assert FORMATS["users-oath"].unwritable(token) is not None
    for user in ("a b", "#a"):
        with pytest.raises(FormatError, match="name"):
            written("users-oath", [fob()], user=user)
