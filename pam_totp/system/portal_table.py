"""The table [portal] of the site file: the name, logo, colours and help of the site on each page of the portal.

Rules:
1. A login ignores the table, so that an error in the table locks no user out. The portal does not start if the table
   has an error, and `doctor` reports the error.
2. The logo is a file of this host. The portal reads the file once, and determines the type from the content.
3. The contrast of the accent colour to each background is at least that of WCAG 2.2, 1.4.3, in both themes.
4. Without `accent_dark`, the accent colour of the dark theme is the lightened `accent`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import floor
from typing import Any
from urllib.parse import urlsplit

from pam_totp.core import fields
from pam_totp.core.fields import Rule, require
from pam_totp.core.settings import SITE_FILE, SettingsError, Site, table_of

MAX_LOGO = 256 * 1024  # bytes
MAX_HELP = 1000  # characters
MIN_CONTRAST = 4.5  # of text to its background: WCAG 2.2, 1.4.3
# The colours around the accent colour in static/portal.css: backgrounds, and the text on a button.
LIGHT = ("#f6f7f9", "#ffffff", "#e8f1fc")
DARK = ("#12161d", "#1b212b", "#1c2c42", "#0d1622")
_STEPS = 20  # from a colour to white, to lighten it

_SIGNATURES = {  # the type of an image, by the bytes at its beginning
    re.compile(rb"\x89PNG\r\n\x1a\n"): "image/png",
    re.compile(rb"\xff\xd8\xff"): "image/jpeg",
    re.compile(rb"RIFF....WEBP", re.DOTALL): "image/webp",
    # <svg> as the first element, after the declaration, comments and the type of the document.
    re.compile(
        rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*|<!DOCTYPE[^[>]*(?:\[.*?\]\s*)?>\s*)*"
        rb"<svg\s[^>]*xmlns\s*=\s*[\"']http://www\.w3\.org/2000/svg[\"'][^>]*>",
        re.DOTALL,
    ): "image/svg+xml",
}
_COLOUR = re.compile(r"#(?:[0-9a-f]{3}|[0-9a-f]{6})", re.IGNORECASE)
_TELEPHONE = re.compile(r"\+?[0-9 ()/.-]+")
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(?:[_-][A-Za-z0-9]{2,8})*")
_PLACE = f"{SITE_FILE}: portal"


@dataclass(frozen=True, slots=True)
class Logo:
    """An image, and its type as in Content-Type."""

    content: bytes = field(repr=False)
    type: str


@dataclass(frozen=True, slots=True)
class Appearance:
    """The site on the pages of the portal. A field is None, or `help` is empty, if the site file omits its value.

    `help` has texts by language; the key "" is for a text without a language. `accent` and `accent_dark` are the
    colours of links and buttons in the two themes; both are set, or both are None.
    """

    name: str | None = None
    logo: Logo | None = None
    accent: str | None = None
    accent_dark: str | None = None
    help: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None
    telephone: str | None = None

    @property
    def has_help(self) -> bool:
        return bool(self.help or self.url or self.telephone)

    def help_in(self, language: str) -> tuple[str, str]:
        """Return the help for a page in `language`, and the language of the text, or "" if it has none.

        The order is: `language`, its base language, a text without a language, English, any language.
        """
        for code in (language, language.partition("_")[0], "", "en", *self.help):
            if code in self.help:
                return self.help[code], code
        return "", ""

    @property
    def number(self) -> str:
        """Return the telephone number as in a tel: link, without the `(0)` of an international number."""
        text = self.telephone or ""
        return re.sub(r"[^+0-9]", "", text.replace("(0)", "") if text.startswith("+") else text)


def appearance(site: Site, locate: Callable[[str], str] = str) -> Appearance:
    """Return the table [portal] of a site file. `locate` returns the path of the logo to read. Raise SettingsError."""
    if site.portal is None:
        return Appearance()
    table = table_of(site.portal, "portal", _RULES)
    for name, value in table.items():
        require(_RULES[name], value, f"{_PLACE}.{name}", SettingsError)
    if "accent_dark" in table and "accent" not in table:
        raise SettingsError(f"{_PLACE}.accent_dark: requires accent, the colour of the light theme")
    accent, accent_dark = _accents(table)
    help_text = table.get("help", {})
    return Appearance(
        name=table.get("name"),
        logo=_read_logo(locate(table["logo"])) if "logo" in table else None,
        accent=accent,
        accent_dark=accent_dark,
        help={"": help_text} if isinstance(help_text, str) else {_code(k): v for k, v in help_text.items()},
        url=table.get("url"),
        telephone=table.get("telephone"),
    )


# ---- colours


def contrast(colour: str, other: str) -> float:
    """Return the contrast of two colours, #rrggbb, from 1 to 21 (WCAG 2.2, "contrast ratio")."""
    dark, light = sorted(map(_luminance, (colour, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    """Return the relative luminance of a colour, from 0 to 1 (WCAG 2.2, "relative luminance")."""
    shares = (value / 255 for value in _parts(colour))
    red, green, blue = (s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _parts(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _accents(table: Mapping[str, Any]) -> tuple[str | None, str | None]:
    if "accent" not in table:
        return None, None
    accent = _full(table["accent"])
    _require_contrast("accent", accent, LIGHT, "darker")
    if "accent_dark" not in table:
        return accent, _lightened(accent)
    dark = _full(table["accent_dark"])
    _require_contrast("accent_dark", dark, DARK, "lighter")
    return accent, dark


def _require_contrast(name: str, colour: str, others: tuple[str, ...], better: str) -> None:
    """Raise SettingsError with the lowest contrast of `colour` to `others` if this contrast is too low."""
    lowest, other = min((contrast(colour, other), other) for other in others)
    if lowest < MIN_CONTRAST:
        ratio = floor(lowest * 100) / 100  # rounded down, so that 4.499 is not shown as 4.5
        what = f"the contrast of {colour} to {other} is {ratio:.2f}:1, and must be at least {MIN_CONTRAST}:1"
        raise SettingsError(f"{_PLACE}.{name}: {what} (use a {better} colour)")


def _lightened(colour: str) -> str:
    """Return the first colour between `colour` and white with enough contrast in the dark theme."""
    mixed = (
        "#" + bytes(value + (255 - value) * step // _STEPS for value in _parts(colour)).hex()
        for step in range(_STEPS + 1)
    )
    return next(each for each in mixed if all(contrast(each, other) >= MIN_CONTRAST for other in DARK))


def _full(colour: str) -> str:
    """Return a colour as #rrggbb."""
    digits = colour[1:].lower()
    return "#" + (digits if len(digits) == 6 else "".join(2 * digit for digit in digits))


# ---- the logo


def _read_logo(path: str) -> Logo:
    """Return the image at `path`. Raise SettingsError if the file is missing, too large, or of an unknown type."""
    place = f"{_PLACE}.logo: {path}"
    try:
        # O_NONBLOCK: the open of a named pipe would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SettingsError(f"{place}: must be a regular file")
            content = file.read(MAX_LOGO + 1)
    except OSError as e:
        raise SettingsError(f"{place}: {(e.strerror or str(e)).lower()}") from None
    if len(content) > MAX_LOGO:
        raise SettingsError(f"{place}: must have at most {MAX_LOGO // 1024} KiB")
    kind = next((kind for signature, kind in _SIGNATURES.items() if signature.match(content)), None)
    if kind is None:
        raise SettingsError(f"{place}: must be a PNG, JPEG, WebP or SVG image")
    return Logo(content, kind)


# ---- rules


def _matching(pattern: re.Pattern[str], requirement: str) -> Rule:
    return lambda v: None if type(v) is str and pattern.fullmatch(v) else requirement


def _url(v: object) -> str | None:
    if type(v) is str and v.isascii() and v.isprintable() and not set(' "<>\\') & set(v):
        try:
            parts = urlsplit(v)
            is_page = parts.scheme in ("https", "http") and bool(parts.hostname) and parts.username is None
        except ValueError:  # an invalid IPv6 address
            is_page = False
        if is_page or re.fullmatch(r"mailto:[^@?]+@[^@?]+", v):
            return None
    return 'must be a URL such as https://HOST/, http://HOST/ or mailto:USER@HOST, in ASCII without spaces and "<>\\'


def _telephone(v: object) -> str | None:
    good = type(v) is str and len(v) <= fields.MAX_TEXT and _TELEPHONE.fullmatch(v) and sum(map(str.isdigit, v)) > 1
    what = f"must be a telephone number of at most {fields.MAX_TEXT} characters: 2 digits or more, spaces and ()/.-"
    return None if good else f'{what}, after an optional + (example: "+49 30 123456")'


def _help(v: object) -> str | None:
    texts = v if isinstance(v, dict) else {"en": v}
    good = bool(texts) and all(_LANGUAGE.fullmatch(code) and _is_help(text) for code, text in texts.items())
    what = f"must be a text of 1 to {MAX_HELP} printable characters without spaces at its ends"
    return None if good else f"{what}, or a table of such texts by language"


def _is_help(v: object) -> bool:
    return type(v) is str and 0 < len(v) <= MAX_HELP and v.isprintable() and v == v.strip()


def _absolute(v: object) -> str | None:
    return None if type(v) is str and v.startswith("/") and "\0" not in v else "must be an absolute path"


def _code(language: str) -> str:
    """Return the code of a language as in the names of the catalogues, such as `de` and `pt_BR`."""
    return language.replace("-", "_")


_COLOUR_RULE = _matching(_COLOUR, 'must be a colour of the form "#1d4f91" or "#14f"')
_RULES: Mapping[str, Callable[[Any], str | None]] = {
    "name": fields.text,
    "logo": _absolute,
    "accent": _COLOUR_RULE,
    "accent_dark": _COLOUR_RULE,
    "help": _help,
    "url": _url,
    "telephone": _telephone,
}
