"""A pseudo-language: each translation is longer than its English text, has accents, and is enclosed in ⟦ and ⟧.

A text of a page is untranslated if it is outside these brackets.
"""

from __future__ import annotations

import re

from babel.messages.catalog import Catalog

from tools import texts

LANGUAGE = "eo"  # an existing language code, because browsers and Babel refuse others
_PARTS = re.compile(r"(%\(\w+\)[sd]|<[^>]*>|&\w+;)")
_ACCENTS = str.maketrans("aeiounycAEIOUNYC", "åéîöûñýçÅÉÎÖÛÑÝÇ")
_LONGER = 0.4  # the added length: German and French texts are up to 40 % longer


def pseudo(text: str) -> str:
    """Return the translation of `text`, with the same placeholders."""
    words = "".join(part if i % 2 else part.translate(_ACCENTS) for i, part in enumerate(_PARTS.split(text)))
    return f"⟦{words} {'pädding ' * round(_LONGER * len(text) / 8 + 0.5)}⟧"


def catalog() -> Catalog:
    """Return the catalogue of all marked texts."""
    made = Catalog(locale=LANGUAGE, fuzzy=False)
    for message in texts.marked():
        if message.id:
            text = message.id
            translation = pseudo(text) if isinstance(text, str) else tuple(map(pseudo, text))
            made.add(text, translation)
    return made
