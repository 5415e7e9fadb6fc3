"""The catalogues of the portal's texts. `make texts` runs this program after a change of a text.

Rules:
- The program finds the marked texts of pam_totp/web (see texts.py there), and writes them to each catalogue.
- The program keeps existing translations, and removes unused texts. A changed text counts as a new text.
- A catalogue is sorted by the English text, and has no dates or line numbers, so that two changes rarely conflict.
- `make texts ARGS=it` adds the catalogue of a new language, here Italian.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from babel import Locale, UnknownLocaleError
from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.pofile import write_po

from pam_totp.web import texts

WEB = Path(texts.__file__).parent
KEYWORDS: Any = {**DEFAULT_KEYWORDS, "lazy_gettext": None}
HEADER = "# {name}: the texts of pam_totp's portal. docs/translating.md describes this file.\n"
_DROPPED = "POT-Creation-Date", "PO-Revision-Date", "Last-Translator", "Report-Msgid-Bugs-To", "Generated-By"
_VARIABLE = re.compile(rf'^"(?:{"|".join(_DROPPED)}): .*\n', re.M)


def marked() -> Catalog:
    """Return the marked texts, without translations."""
    found = Catalog(charset="utf-8")
    methods = [("templates/**.html", "jinja2"), ("**.py", "python")]
    options = {"templates/**.html": {"trimmed": "true", "silent": "false"}}
    for file, _, text, comments, context in extract_from_dir(str(WEB), methods, options, KEYWORDS):
        found.add(text, locations=[(f"pam_totp/web/{file}", 0)], auto_comments=comments, context=context)
    for text in texts.TEXTS_OF_OPERATIONS:
        found.add(text, locations=[("pam_totp/operations", 0)])
    return found


def updated(language: str) -> Catalog:
    """Return the catalogue of `language` with exactly the marked texts."""
    is_new = not texts.path_of(language).exists()
    catalog = Catalog(locale=language) if is_new else texts.read_catalog(language)
    catalog.update(marked(), no_fuzzy_matching=True)
    catalog.obsolete.clear()
    catalog.project, catalog.version, catalog.fuzzy = "pam_totp", "portal", False
    catalog.language_team = catalog.locale_identifier or language
    catalog.header_comment = HEADER.format(name=Locale.parse(language).english_name).rstrip()
    return catalog


def as_text(catalog: Catalog) -> str:
    """Return the catalogue as the text of a file messages.po."""
    file = BytesIO()
    write_po(file, catalog, width=120, sort_output=True, include_lineno=False)
    return _VARIABLE.sub("", file.getvalue().decode())


def missing(catalog: Catalog) -> Iterator[str]:
    """Yield each text whose translation is missing, or is marked for review (fuzzy)."""
    for message in catalog:
        translations = message.string if isinstance(message.string, (tuple, list)) else (message.string,)
        if message.id and (message.fuzzy or not all(translations)):
            yield str(message.id)


def main(new_languages: list[str]) -> None:
    for language in [*texts.languages(), *new_languages]:
        if language == texts.ENGLISH:
            continue
        try:
            name = Locale.parse(language).english_name
        except (UnknownLocaleError, ValueError):
            raise SystemExit(f"{language}: unknown language (example: make texts ARGS=it)") from None
        catalog, path = updated(language), texts.path_of(language)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_text(catalog), "utf-8")
        print(f"{name}: {len(catalog)} texts, {len(list(missing(catalog)))} to translate")


if __name__ == "__main__":
    main(sys.argv[1:])
