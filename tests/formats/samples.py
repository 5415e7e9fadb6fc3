"""One good file of each format, for tests that spoil them, and the one way to read each."""

from __future__ import annotations

from collections.abc import Callable

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import base32, serialize
from pam_totp.formats import csv_tokens, google_authenticator, migration, otpauth, pskc, record_json, users_oath
from pam_totp.formats.imported_token import FormatError, Found
from tests.formats.test_migration import part, token
from tests.formats.test_pskc import UNLOCKS, figure
from tests.site import KEY, fob, phone

NOW = 1_700_000_010
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
    "migration": ["\n".join(part(i, 2, token(counter=i, kind=1), token(digits=2)) for i in range(2)).encode()],
    "csv": [f'A1,{HEX},totp,8,60,SHA256\n"A2","{HEX}"\n'.encode()],
    "map": [b"serial,user\nA1,alice\n"],
    "json": [serialize(UserRecord(user="alice", tokens=(fob(), phone(drift=-1, last_step=5))))],
    "pskc": [*map(figure, (3, 6, 7, 10)), pskc.write("alice", [fob(), phone()], None)],
}
READ: dict[str, Callable[[bytes], object]] = {
    "google-authenticator": lambda data: google_authenticator.parse(data, NOW),
    "users-oath": lambda data: users_oath.parse(data, NOW),
    "otpauth": lambda data: otpauth.parse(data, NOW),
    "migration": lambda data: migration.parse(data, NOW),
    "csv": lambda data: csv_tokens.parse(data, NOW),
    "map": csv_tokens.parse_map,
    "json": lambda data: record_json.parse(data, NOW),
    "pskc": lambda data: pskc.parse(data, NOW, UNLOCKS.__getitem__),
}


def check(name: str, data: bytes) -> None:
    """What must hold for any bytes: tokens that are valid or say why not, or one short error; and nothing else."""
    try:
        found = READ[name](data)
    except FormatError as e:
        text = str(e)
        assert "\n" not in text
        assert len(text) < 300
        assert HEX not in text
        assert B32 not in text
        return
    for one in found if isinstance(found, list) else ():
        assert isinstance(one, Found)
        assert B32 not in repr(one)
        assert repr(KEY) not in repr(one)
        if one.unfit is None:
            try:
                one.token(NOW)
            except ValueError as e:
                assert len(str(e)) < 300
