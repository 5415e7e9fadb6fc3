"""Tests of PSKC files: the examples of RFC 6030, refused input, and remarks on dropped data."""

from __future__ import annotations

import base64
import hmac
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from pam_totp.formats.imported_token import ImportedToken
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import FORMATS
from tests.formats.reading import parsed, written
from tests.support.site import KEY, fob, phone

FIGURES = Path(__file__).parent / "data" / "rfc6030"
NOW = 1_700_000_000  # 2023-11-14
UNLOCKS = {"key": "12345678901234567890123456789012", "password": "qwerty"}


def figure(number: int) -> bytes:
    return (FIGURES / f"figure{number}.xml").read_bytes()


def read(data: bytes, **unlocks: str) -> list[ImportedToken]:
    return parsed("pskc", data, now=NOW, ask_secret=(UNLOCKS | unlocks).__getitem__)


def replaced(data: bytes, old: str, new: str) -> bytes:
    assert old.encode() in data
    return data.replace(old.encode(), new.encode(), 1)


@pytest.mark.parametrize(
    ("number", "digits", "serials"),
    [
        (3, 8, ["987654321"]),
        (5, 8, ["987654321"]),
        (6, 8, ["987654321"]),
        (7, 8, ["987654321"]),
        (10, 8, ["654321", "123456", "9999999", "9999999"]),
    ],
)
def test_the_figures_of_rfc_6030_have_the_right_secret_and_counter(
    number: int, digits: int, serials: list[str]
) -> None:
    tokens = [found.token(NOW) for found in read(figure(number)) if found.unsupported is None]
    assert [token.serial for token in tokens] == serials
    for token in tokens:
        assert (token.type, token.secret, token.digits, token.algorithm) == ("hotp", KEY, digits, "SHA1")
        assert getattr(token, "counter", None) == 0


def test_figure_2_is_read_and_its_key_of_32_bits_is_refused_as_weak() -> None:
    (found,) = read(figure(2))
    assert (found.secret, found.counter, found.type) == (b"1234", 0, "hotp")
    assert "assumed counter 0: the file has no counter" in found.remarks
    with pytest.raises(ValueError, match="secret: must be 112"):
        found.token(NOW)


def test_the_pin_of_figure_5_is_skipped_with_its_reason() -> None:
    token, pin = read(figure(5))
    assert (token.unsupported, pin.unsupported, pin.line) == (
        None,
        "unsupported algorithm PIN: must be HOTP or TOTP",
        44,
    )


def test_a_dropped_policy_is_named_and_disables_a_token_it_forbids() -> None:
    found = read(figure(10))
    assert not any(f.enabled for f in found)
    assert "policy dropped: until 2006-05-31" in found[0].remarks
    assert any("imported as disabled" in remark for remark in found[0].remarks)
    later = replaced(replaced(figure(10), "2006-05-01", "2020-01-01"), "2006-05-31", "2030-12-31")
    first = read(later)[0]
    assert first.enabled
    assert "policy dropped: until 2030-12-31" in first.remarks
    unknown = replaced(figure(10), "<StartDate>2006-05-01T00:00:00Z</StartDate>", "<OnlyOnSundays/>")
    assert not read(replaced(unknown, "2006-05-31", "2030-12-31"))[0].enabled, (
        "a key with an unknown policy must not be used (RFC 6030 §5)"
    )


@pytest.mark.parametrize(
    ("number", "unlocks"),
    [(6, {"key": "12345678901234567890123456789013"}), (6, {"key": "1234"}), (7, {"password": "qwertz"})],
)
def test_a_wrong_key_or_password_is_refused(number: int, unlocks: dict[str, str]) -> None:
    with pytest.raises(FormatError, match="cannot be decrypted"):
        read(figure(number), **unlocks)


def test_a_key_that_is_not_hexadecimal_is_refused_without_showing_it() -> None:
    with pytest.raises(FormatError) as refused:
        read(figure(6), key="sesame, open")
    assert "sesame" not in str(refused.value)


def test_the_mac_is_checked_and_required() -> None:
    cipher = "AAECAwQFBgcICQoLDA0OD+cIHItlB3Wra1DUpxVvOx2lef1VmNPCMl8jwZqIUqGv"
    flipped = bytearray(base64.b64decode(cipher))
    flipped[0] ^= (
        1  # a bit of the initialisation vector: it changes the key's first byte, and the padding remains valid
    )
    with pytest.raises(FormatError, match="cannot be decrypted"):
        read(replaced(figure(6), cipher, base64.b64encode(flipped).decode()))
    with pytest.raises(FormatError, match="line 36: an encrypted value must have a MAC") as refused:
        read(replaced(figure(6), "<ValueMAC>Su+NvtQfmvfJzF6bmQiJqoLRExc=\n                    </ValueMAC>", ""))
    assert cipher not in str(refused.value)


ENTITIES = {
    "internal": '<!DOCTYPE KeyContainer [<!ENTITY a "1">]>',
    "external": '<!DOCTYPE KeyContainer [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
    "parameter": '<!DOCTYPE KeyContainer [<!ENTITY % a SYSTEM "http://127.0.0.1:9/"> %a;]>',
    "document type": '<!DOCTYPE KeyContainer SYSTEM "file:///etc/passwd">',
    "laughs": '<!DOCTYPE KeyContainer [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;">]>',
}


@pytest.mark.parametrize("kind", ENTITIES)
def test_entities_and_external_references_are_refused(kind: str) -> None:
    with pytest.raises(FormatError, match="line 2: must not contain a document type or an entity"):
        read(replaced(figure(3), "?>\n", f"?>\n{ENTITIES[kind]}"))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("MTIzNDU2Nzg5MDEyMzQ1Njc4OTA=", "MTIzNDU2Nzg5MDEyMzQ1Njc4OTA=!", 22),
        ("MTIzNDU2Nzg5MDEyMzQ1Njc4OTA=", "MTIzNDU2Nzg5MDEyMzQ1Njc4OTA", 22),
        ("<PlainValue>0</PlainValue>", "<PlainValue>1_0</PlainValue>", 26),
        ("<PlainValue>0</PlainValue>", "<PlainValue>٣</PlainValue>", 26),
        ('Length="8"', 'Length="eight"', 14),
        ("<KeyPackage>", "<KeyPackage><", 5),
    ],
)
def test_ambiguous_input_is_refused_with_its_line(old: str, new: str, line: int) -> None:
    with pytest.raises(FormatError) as refused:
        read(replaced(figure(3), old, new))
    assert f"line {line}:" in str(refused.value)
    assert new not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "must be XML"),
        (b"<a/>", "must be a KeyContainer"),
        (b'<KeyContainer Version="2.0"/>', "must be a KeyContainer"),
        (b'<KeyContainer Version="1.0">' + b"<a>" * 40, "nested at most 30 deep"),
        (b"\xff\xfe<\0a\0", "must be XML"),
        (b'<?xml version="1.0" encoding="utf-7"?><a/>', "must be XML"),
    ],
)
def test_input_that_is_not_a_container_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read(data)


def test_the_work_that_a_password_costs_is_bounded() -> None:
    with pytest.raises(FormatError, match="line 15: IterationCount"):
        read(replaced(figure(7), "<IterationCount>1000<", "<IterationCount>2000000000<"))


@pytest.mark.parametrize(
    ("old", "new", "unsupported"),
    [
        (
            'Encoding="DECIMAL"',
            'Encoding="HEXADECIMAL"',
            "unsupported code format",
        ),
        (
            'Encoding="DECIMAL"',
            'Encoding="DECIMAL" CheckDigits="true"',
            "unsupported code format",
        ),
        ("pskc:hotp", "pskc:ocra", "unknown algorithm"),
        (
            "<ResponseFormat",
            "<Suite>OCRA-1:HOTP-SHA1-6:QN08</Suite><ResponseFormat",
            "unknown Suite",
        ),
    ],
)
def test_a_token_of_another_kind_is_skipped_for_that_reason(old: str, new: str, unsupported: str) -> None:
    (found,) = read(replaced(figure(3), old, new))
    assert (found.unsupported or "").startswith(unsupported)


def test_the_user_is_the_uid_of_a_distinguished_name() -> None:
    assert read(figure(3))[0].user == "jsmith"
    assert read(replaced(figure(3), "UID=jsmith,DC=example-bank,DC=net", "alice"))[0].user == "alice"
    assert read(replaced(figure(3), "UID=jsmith,DC=example-bank,DC=net", "CN=Ann,O=x"))[0].user is None


@pytest.mark.parametrize("password", [None, "a pass phrase"])
def test_an_exported_file_is_read_back_unchanged(password: str | None) -> None:
    step = NOW // 60
    tokens = [
        fob(7, serial="S-1", digits=8),
        phone(algorithm="SHA256", period=60, last_step=step, drift=-2),
        phone(name="third", secret=b"x" * 64, algorithm="SHA512"),
    ]
    data = written("pskc", tokens, password=password)
    back = [found.token(0) for found in read(data, password=password or "")]
    assert back == tokens
    assert (base64.b64encode(KEY) in data) == (password is None)


def test_a_time_in_the_future_does_not_lock_the_token() -> None:
    far = phone(last_step=(NOW + 10 * 365 * 86400) // 30)
    (found,) = read(written("pskc", [far]))
    assert found.last_step is None
    assert any("Time" in remark for remark in found.remarks)


# --- the drafts before RFC 6030, and ActivIdentity's files


def draft(data: str, *, root: str = "KeyContainer", key: str = "Key", head: str = "") -> bytes:
    """Return a file in the form of the drafts: Device, DeviceId, attributes such as KeyAlgorithm, and Data by name."""
    return f"""<?xml version="1.0"?>
<{root} xmlns="urn:ietf:params:xml:ns:keyprov:container">{head}
<Device><DeviceId><Manufacturer>M</Manufacturer><SerialNo>0950380269</SerialNo></DeviceId>
<{key} KeyAlgorithm="http://www.ietf.org/keyprov/pskc#hotp" SecretAlgorithm="HOTP" KeyId="1">
<Issuer>I</Issuer><Usage OTP="true"><ResponseFormat format="DECIMAL" length="8"/></Usage>
{data}</{key}></Device></{root}>""".encode()


PLAIN = f"""<Data Name="SECRET"><Value>{base64.b64encode(KEY).decode()}</Value></Data>
<Data Name="COUNTER"><Value>12</Value></Data>"""


@pytest.mark.parametrize(("root", "key"), [("KeyContainer", "Key"), ("SecretContainer", "Secret")])
def test_the_drafts_names_of_the_elements_are_read(root: str, key: str) -> None:
    (found,) = read(draft(PLAIN, root=root, key=key))
    assert (found.type, found.serial, found.digits, found.secret, found.counter) == ("hotp", "0950380269", 8, KEY, 12)
    assert FORMATS["pskc"].sniff(draft(PLAIN, root=root, key=key))


def test_the_pskc_namespace_of_draft_02_is_read() -> None:
    data = figure(3).decode().replace("KeyPackage>", "Device>").replace("Key Id=", "Key KeyId=")
    data = data.replace('Algorithm="urn', 'KeyAlgorithm="urn').replace("pskc:hotp", "pskc#hotp")
    (found,) = read(data.replace("AlgorithmParameters>", "Usage>").encode())
    assert (found.type, found.digits, found.secret) == ("hotp", 8, KEY)


def activ_identity(*, digest: bool = True) -> bytes:
    """Return a file in ActivIdentity's form: AES with the IV at the beginning, and the MAC of the plain key."""
    encryption, iv = bytes.fromhex(UNLOCKS["key"]), b"an IV of 16 byte"
    padded = KEY + bytes([32 - len(KEY)]) * (32 - len(KEY))
    encryptor = Cipher(AES(encryption), CBC(iv)).encryptor()
    value = base64.b64encode(encryptor.update(padded) + encryptor.finalize()).decode()
    mac = base64.b64encode(hmac.digest(encryption, KEY, "sha1")).decode()
    head = f"""<EncryptionMethod Algorithm="http://www.w3.org/2001/04/xmlenc#aes128-cbc">
<IV>{base64.b64encode(iv).decode()}</IV></EncryptionMethod>
<DigestMethod Algorithm="http://www.w3.org/2000/09/xmldsig#hmac-sha1"/>"""
    of_key = f"<ValueDigest>{mac}</ValueDigest>" if digest else ""
    data = f"""<Data Name="SECRET"><Value>{value}</Value>{of_key}</Data>
<Data Name="COUNTER"><Value>AAAAAAAAAQA=</Value></Data>"""
    return draft(data, head=head)


def test_a_file_of_activ_identity_is_decrypted() -> None:
    (found,) = read(activ_identity())
    assert (found.secret, found.counter, found.serial) == (KEY, 256, "0950380269")
    with pytest.raises(FormatError, match="wrong key or password"):
        read(activ_identity(), key="00" * 16)


def test_an_encrypted_value_of_a_draft_without_a_mac_is_not_used() -> None:
    """python-pskc reads this encrypted value as a plain key, so the token would have a wrong key."""
    with pytest.raises(FormatError, match="an encrypted value must have a MAC"):
        read(activ_identity(digest=False))


@pytest.mark.parametrize("bad", ["&lt;", "12=", "*"])
def test_a_value_of_a_draft_must_be_base64(bad: str) -> None:
    with pytest.raises(FormatError, match="Value: must be base64"):
        read(draft(f'<Data Name="SECRET"><Value>{bad}</Value></Data>'))


@pytest.mark.parametrize("root", ['KeyContainer Version="2.0"', 'KeyContainer version="1.1"', "Keys"])
def test_another_container_is_refused(root: str) -> None:
    with pytest.raises(FormatError, match=r"must be a KeyContainer of version 1\.0, or a SecretContainer"):
        read(
            draft(PLAIN, root="KeyContainer")
            .replace(b"<KeyContainer", f"<{root}".encode())
            .replace(b"</KeyContainer", f"</{root.split(maxsplit=1)[0]}".encode())
        )
