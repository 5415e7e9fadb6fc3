"""Valid files of each format, for tests that damage them, and functions that read them."""

from __future__ import annotations

from collections.abc import Sequence

from pam_totp.core.secretfile import base32
from pam_totp.formats.csv_tokens import parse_map
from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import FORMATS, sniff
from tests.formats.backups import BACKUPS, PASSWORD
from tests.formats.reading import NOW, parsed, written
from tests.formats.test_migration import part
from tests.formats.test_migration import token as message
from tests.formats.test_pskc import UNLOCKS, figure
from tests.support.site import KEY, fob, phone

HEX, B32 = KEY.hex(), base32(KEY)

SAMPLES: dict[str, list[bytes]] = {
    "google-authenticator": [
        f'{B32}\n" RATE_LIMIT 3 30 1699999999\n" WINDOW_SIZE 17\n" DISALLOW_REUSE 56666666\n" TIME_SKEW -1\n'
        f'" TOTP_AUTH\n12345678\n'.encode(),
        f'{B32}\n" HOTP_COUNTER 5\n" DIGITS 8\n'.encode(),
    ],
    "users-oath": [
        f"# users\nHOTP a - {HEX}\nHOTP/E/8 b 1234 {HEX} 5 12345678 2023-11-14T00:00:00L\n"
        f"HOTP/T30/7 c + {HEX} -1 0 1234567 2023-11-14T00:00:00L ::1\n".encode()
    ],
    "otpauth": [
        f"otpauth://totp/A%20B:a@b?secret={B32}&algorithm=SHA256&digits=8&period=60&issuer=A%20B\n"
        f"otpauth://hotp/a?secret={B32}&counter=9\n".encode()
    ],
    "migration": ["\n".join(part(i, 2, message(counter=i, kind=1), message(digits=2)) for i in range(2)).encode()],
    "qr": [f"otpauth://totp/a?secret={B32}\n".encode()],  # the text of a picture, which zbarimg reads
    "csv": [
        f'A1,{HEX},totp,8,60,SHA256\n"A2","{HEX}"\n'.encode(),
        f"upn;serial number;secret key;time interval\r\na@b;A1;{B32};30s\r\n".encode("utf-16"),
        f"LOGGING START,1\nOATH-HOTP,1.1.20 1:00,1,,,{HEX},,,0,0,0,6,0\n"
        f"508326,,0,{HEX},,2013-12-12T08:41:07,\n".encode(),
    ],
    **BACKUPS,
    "map": [b"serial,user\nA1,alice\n"],
    "json": [written("json", [fob(), phone(drift=-1, last_step=5)])],
    "pskc": [*map(figure, (3, 6, 7, 10)), written("pskc", [fob(), phone()])],
}


def read(name: str, data: bytes) -> Sequence[ImportedToken]:
    """Return the tokens of a file of the format `name`. A map from serials to users has no tokens."""
    if name == "map":
        parse_map(data)
        return ()
    secrets = {**UNLOCKS, "password": PASSWORD} if name == "aegis" else UNLOCKS
    return parsed(name, data, ask_secret=secrets.__getitem__)


def check(name: str, data: bytes) -> None:
    """Check that a parser returns only valid or unsupported tokens for `data`, or raises an error of one short line."""
    assert sniff(data) in {None, *FORMATS}
    try:
        tokens = read(name, data)
    except FormatError as e:
        text = str(e)
        assert "\n" not in text
        assert len(text) < 300
        assert HEX not in text
        assert B32 not in text
        return
    for token in tokens:
        assert B32 not in repr(token)
        assert repr(KEY) not in repr(token)
        if token.unsupported is None:
            try:
                token.token(NOW)
            except ValueError as e:
                assert len(str(e)) < 300
