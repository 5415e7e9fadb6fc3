"""Tests of the table [portal] of the site file: its rules, the contrast of its colours, and the logo."""

from __future__ import annotations

import os
import re
from itertools import product
from pathlib import Path

import pytest

from pam_totp.core.settings import SettingsError, parse_site, settings
from pam_totp.system.portal_table import DARK, LIGHT, MAX_LOGO, MIN_CONTRAST, Appearance, appearance, contrast
from tests.support.site import TREE

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
SVG = b'<?xml version="1.0"?>\n<!-- ours --><svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'


def read(*lines: str) -> Appearance:
    return appearance(parse_site("\n".join(("[portal]", *lines))))


@pytest.mark.parametrize("table", ["portal = 5", "[portal]\nnmae = 1", '[portal]\naccent = "#ffff00"'])
def test_a_mistake_in_the_table_locks_no_user_out(table: str) -> None:
    site = parse_site(table)
    assert settings("sshd", (), site).nullok is False
    with pytest.raises(SettingsError):
        appearance(site)


def test_without_the_table_nothing_is_shown() -> None:
    assert appearance(parse_site("")) == Appearance()
    assert not read('name = "Example"').has_help


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('nmae = "x"', "unknown setting 'nmae'"),
        ('name = ""', "name: must be 1 to 255 printable characters"),
        ("name = 5", "name: must be 1 to 255 printable characters"),
        ('accent = "blue"', 'accent: must be a colour of the form "#1d4f91"'),
        ('accent = "#12"', "accent: must be a colour"),
        ('accent = "#1d4f91;}"', "accent: must be a colour"),
        ('accent_dark = "#ffffff"', "accent_dark: requires accent"),
        ('url = "portal.example"', "url: must be a URL"),
        ('url = "javascript:alert(1)"', "url: must be a URL"),
        ('url = "https://"', "url: must be a URL"),
        ('url = "https://[::1"', "url: must be a URL"),
        ('url = "https://a b"', "url: must be a URL"),
        ('url = "https://user@portal.example"', "url: must be a URL"),
        ('url = "mailto:help"', "url: must be a URL"),
        ('telephone = "ask me"', "telephone: must be a telephone number"),
        ('telephone = "+"', "telephone: must be a telephone number"),
        ('help = ""', "help: must be a text"),
        ('help = "\\u0007"', "help: must be a text"),
        ("help = {}", "help: must be a text"),
        ('help."../x" = "a"', "help: must be a text"),
        ("help.de = 5", "help: must be a text"),
        ('logo = "logo.png"', "logo: must be an absolute path"),
        ('logo = "/nonexistent"', "logo: /nonexistent: no such file or directory"),
        ('logo = "/"', "logo: /: "),
    ],
)
def test_an_invalid_value_is_refused_with_its_place(line: str, message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read(line)
    assert str(raised.value).startswith(f"/etc/pam_totp.toml: portal{'' if message.startswith('unk') else '.'}"), raised
    assert message in str(raised.value)


# Colours


def test_the_contrast_is_that_of_wcag() -> None:
    # https://www.w3.org/WAI/WCAG22/Techniques/general/G18: the formula; WebAIM's checker gives the ratios.
    assert contrast("#ffffff", "#000000") == contrast("#000000", "#ffffff") == 21
    assert contrast("#777777", "#777777") == 1
    assert [round(contrast(grey, "#ffffff"), 2) for grey in ("#767676", "#777777", "#0000ff")] == [4.54, 4.48, 8.59]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['accent = "#fc0"'], "accent: the contrast of #ffcc00 to #e8f1fc is 1.32:1, and must be at least 4.5:1"),
        (['accent = "#767676"'], "(use a darker colour)"),
        (['accent = "#1d4f91"', 'accent_dark = "#1d4f91"'], "accent_dark: the contrast of #1d4f91 to "),
        (['accent = "#1d4f91"', 'accent_dark = "#1d4f91"'], "(use a lighter colour)"),
    ],
)
def test_a_colour_that_is_hard_to_read_is_refused_with_the_ratio(lines: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read(*lines)
    assert message in str(raised.value)


def test_a_ratio_just_below_the_limit_is_not_rounded_to_the_limit() -> None:
    greys = [f"#{value:02x}{value:02x}{value + 1:02x}" for value in range(0x60, 0x80)]
    best = max((min(contrast(grey, other) for other in LIGHT), grey) for grey in greys if _fails(grey))
    with pytest.raises(SettingsError) as raised:
        read(f'accent = "{best[1]}"')
    found = re.search(r"is (\d\.\d\d):1,", str(raised.value))
    assert found
    assert float(found[1]) <= best[0] < MIN_CONTRAST


def _fails(grey: str) -> bool:
    return min(contrast(grey, other) for other in LIGHT) < MIN_CONTRAST


def test_every_dark_colour_gets_a_readable_colour_in_the_dark_theme() -> None:
    for parts in product(("00", "40", "60", "90"), repeat=3):
        colour = f"#{''.join(parts)}"
        if not _fails(colour):
            shown = read(f'accent = "{colour}"')
            assert shown.accent == colour
            assert shown.accent_dark is not None
            assert min(contrast(shown.accent_dark, other) for other in DARK) >= MIN_CONTRAST
    assert read('accent = "#123"', 'accent_dark = "#eee"').accent_dark == "#eeeeee"


def test_the_colours_that_are_checked_are_those_of_the_pages() -> None:
    css = (TREE / "pam_totp/web/static/portal.css").read_text()
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", block)) for block in css.split("@media", 2)[:2])
    assert {light[name] for name in ("paper", "card", "good", "accent-ink")} == set(LIGHT)
    assert {dark[name] for name in ("paper", "card", "good", "accent-ink")} == set(DARK)


# Logo


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 20, "image/jpeg"),
        (b"RIFF\x0a\0\0\0WEBPVP8 ", "image/webp"),
        (SVG, "image/svg+xml"),
        (b"\xef\xbb\xbf" + SVG, "image/svg+xml"),
        (b"<!DOCTYPE svg [<!ENTITY a 'b'>]>\n" + SVG.partition(b"?>")[2], "image/svg+xml"),
    ],
)
def test_the_type_of_a_logo_comes_from_its_content(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "logo.txt").write_bytes(content)
    logo = read(f'logo = "{tmp_path}/logo.txt"').logo
    assert logo is not None
    assert (logo.content, logo.type) == (content, kind)
    assert repr(content)[2:8] not in repr(logo)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"root:x:0:0:",
        b"<html></html>",
        b"<svg/>",
        b"GIF89a",
        b"RIFF\x0a\0\0\0WAVE",
        b"<?xml version='1.0' encoding='x'?>",
    ],
)
def test_a_logo_that_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "logo.png").write_bytes(content)
    with pytest.raises(SettingsError, match=r"logo\.png: must be a PNG, JPEG, WebP or SVG image"):
        read(f'logo = "{tmp_path}/logo.png"')


def test_a_logo_that_is_too_large_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(PNG.ljust(MAX_LOGO + 1))
    (tmp_path / "exact").write_bytes(PNG.ljust(MAX_LOGO))
    os.mkfifo(tmp_path / "pipe")
    assert read(f'logo = "{tmp_path}/exact"').logo is not None
    with pytest.raises(SettingsError, match="large: must have at most 256 KiB"):
        read(f'logo = "{tmp_path}/large"')
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(SettingsError, match=r"must be a regular file|is a directory"):
            read(f'logo = "{path}"')


# Help


@pytest.mark.parametrize(
    ("help_text", "language", "shown"),
    [
        ('help = "Ask us."', "de", ("Ask us.", "")),
        ('help = {en = "Ask us.", de = "Fragen Sie uns."}', "de", ("Fragen Sie uns.", "de")),
        ('help = {en = "Ask us.", de = "Fragen Sie uns."}', "fr", ("Ask us.", "en")),
        ('help = {de = "Fragen Sie uns."}', "fr", ("Fragen Sie uns.", "de")),
        ('help = {pt-BR = "Pergunte."}', "pt_BR", ("Pergunte.", "pt_BR")),
        ('help = {pt = "Pergunte."}', "pt_BR", ("Pergunte.", "pt")),
        ('name = "x"', "fr", ("", "")),
    ],
)
def test_the_help_is_in_the_language_of_the_page(help_text: str, language: str, shown: tuple[str, str]) -> None:
    assert read(help_text).help_in(language) == shown


@pytest.mark.parametrize(
    ("telephone", "number"),
    [("+49 30 123-456", "+4930123456"), ("+49 (0)30 / 12.34", "+49301234"), ("(030) 12 34", "0301234"), ("112", "112")],
)
def test_a_telephone_number_can_be_dialled(telephone: str, number: str) -> None:
    assert read(f'telephone = "{telephone}"').number == number
