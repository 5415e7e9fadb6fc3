"""Tests of pictures of QR codes."""

from __future__ import annotations

import io
import resource
import subprocess
from pathlib import Path

import pytest
import segno

from pam_totp.core.secretfile import base32
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.picture import LIMITS, PICTURE_MEMORY
from pam_totp.formats.registry import FORMATS, sniff
from tests.formats.reading import parsed
from tests.formats.test_migration import part, token
from tests.support.site import KEY

URI = f"otpauth://totp/ACME:alice?secret={base32(KEY)}"
# The JPEG and the WebP are stored files, because no package of the tests writes these formats (see their README.md).
DATA = Path(__file__).parent / "data" / "qr"


def png(text: str, dark: str = "black", light: str | None = "white") -> bytes:
    out = io.BytesIO()
    segno.make(text, micro=False).save(out, kind="png", scale=5, dark=dark, light=light)
    return out.getvalue()


PICTURES = [png(URI), (DATA / "alice.jpg").read_bytes(), (DATA / "alice.webp").read_bytes()]


@pytest.mark.parametrize("data", PICTURES, ids=["png", "jpeg", "webp"])
@pytest.mark.parametrize("name", ["qr", "otpauth"])
def test_a_picture_with_an_otpauth_code_is_read(name: str, data: bytes) -> None:
    (found,) = parsed(name, FORMATS[name].decode(data))
    assert (found.user, found.secret, found.type) == ("alice", KEY, "totp")


@pytest.mark.parametrize(("dark", "light"), [("white", "black"), ("#ddd", "#222"), ("black", None)])
def test_a_picture_from_an_app_with_a_dark_theme_is_read(dark: str, light: str | None) -> None:
    """Users reported pictures with light modules to ente/ente 6456. Other pictures have a transparent background."""
    (found,) = parsed("qr", FORMATS["qr"].decode(png(URI, dark, light)))
    assert (found.user, found.secret) == ("alice", KEY)


def test_the_output_of_zbarimg_without_raw_is_read() -> None:
    """Users reported this output to krissrex/google-authenticator-exporter 22."""
    text = f"QR-Code:{URI}\nqr-code:{URI.replace('alice', 'bob')}\n".encode()
    assert sniff(text) == "otpauth"
    assert [found.user for found in parsed("otpauth", text)] == ["alice", "bob"]
    parts = "".join(f"QR-Code:{part(i, 2, token(name=b'Co:alice'))}\n" for i in range(2)).encode()
    assert sniff(parts) == "migration"
    assert [found.user for found in parsed("migration", parts)] == ["alice", "alice"]


def test_pictures_of_a_migration_are_joined() -> None:
    pictures = [png(part(i, 2, token(bytes([i]) * 20, name=b"Co:alice"))) for i in range(2)]
    assert {sniff(picture) for picture in pictures} == {"qr"}
    texts = [FORMATS["qr"].decode(picture) for picture in pictures]
    assert [found.secret for found in parsed("qr", b"\n".join(texts))] == [bytes(20), b"\1" * 20]


def test_a_picture_without_a_code_and_damaged_pictures_are_refused() -> None:
    for data in (*(picture[: len(picture) // 2] for picture in PICTURES), PICTURES[0][:8] + b"x" * 100):
        with pytest.raises(FormatError, match="no QR code was found in this picture"):
            FORMATS["qr"].decode(data)


def test_a_code_of_other_text_is_refused() -> None:
    text = FORMATS["qr"].decode(png("https://example.net"))
    with pytest.raises(FormatError, match="line 1: must be an otpauth"):
        parsed("qr", text)


def test_a_missing_zbarimg_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FormatError, match=r"zbarimg is not installed \(apt-get install zbar-tools"):
        FORMATS["qr"].decode(PICTURES[0])


HOSTILE = """#!/bin/sh
env > {found}/environment
echo picture > "$TMPDIR/magick-cache" && echo "$TMPDIR" > {found}/folder
ulimit -c > {found}/core
ulimit -v > {found}/memory
while :; do :; done
"""


def test_zbarimg_has_limits_no_environment_and_leaves_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A picture of finder patterns keeps zbarimg busy. A killed zbarimg leaves a copy of the picture."""
    (tmp_path / "zbarimg").write_text(HOSTILE.format(found=tmp_path))
    (tmp_path / "zbarimg").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("MAGICK_CONFIGURE_PATH", "/nonexist")
    monkeypatch.setitem(LIMITS, resource.RLIMIT_CPU, 1)
    with pytest.raises(FormatError, match="no QR code was found within 10 s of processor time"):
        FORMATS["qr"].decode(PICTURES[0])
    names = {line.partition("=")[0] for line in (tmp_path / "environment").read_text().splitlines()}
    assert names - {"PWD", "SHLVL", "OLDPWD", "_"} == {"TMPDIR", "OMP_NUM_THREADS"}
    assert not Path((tmp_path / "folder").read_text().strip()).exists()
    assert (tmp_path / "core").read_text() == "0\n"
    assert int((tmp_path / "memory").read_text()) * 1024 <= PICTURE_MEMORY


def test_a_picture_that_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def expire(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("zbarimg", 60)

    monkeypatch.setattr(subprocess, "run", expire)
    with pytest.raises(FormatError, match="no QR code was found within 60 s"):
        FORMATS["qr"].decode(PICTURES[0])
