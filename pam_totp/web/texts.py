"""The texts of the pages in the language of the user.

Rules:
- The English text in the code is the key of its translations. A text without a translation is shown in English.
- The folder `translations/LANGUAGE/LC_MESSAGES` has one file, messages.po. The portal reads this file itself, so there
  are no compiled files. A new folder adds a language.
- Mark each text for users. In a template: `{{ _("Sign in") }}`, or `ngettext`. In Python: `gettext("Sign in")` during
  a request, and `lazy_gettext("Sign in")` at an import, for example for the label of a field. Then run `make texts`.
- A text is a whole sentence or label. Its values have names: `gettext("%(name)s is in use now.", name=token.name)`. Use
  `ngettext` if a number can be 1. Never put a value into the text itself with an f-string.
- A lazy text must be without values, because templates would insert them unescaped. `gettext` returns text, which
  templates escape.
- The language comes from the link of the page (`?lang=de`), otherwise from the cookie that such a link sets, otherwise
  from the browser (Accept-Language). The default is English.
"""

from __future__ import annotations

from functools import cache
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode

import flask_babel
from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.support import NullTranslations, Translations
from flask import Flask, Response, current_app, has_request_context, request, url_for

from pam_totp.operations.authenticate import REFUSED
from pam_totp.operations.recent_logins import OTHER_WORDS, WORDS
from pam_totp.operations.self_service import TEXTS, Problem
from pam_totp.web.headers import WITHOUT_USER

FOLDER = Path(__file__).parent / "translations"
ENGLISH = "en"  # the language of the code
COOKIE_LASTS = 365 * 24 * 3600  # seconds
# Texts of other modules, which `make texts` adds to the catalogues.
TEXTS_OF_OPERATIONS = (REFUSED, *TEXTS.values(), *WORDS.values(), *OTHER_WORDS.values())


def path_of(language: str) -> Path:
    """Return the path of the translations into `language`."""
    return FOLDER / language / "LC_MESSAGES" / "messages.po"


@cache
def languages() -> dict[str, str]:
    """Return the name of each language in that language, by its code, sorted by name."""
    codes = [ENGLISH, *(path.name for path in FOLDER.iterdir() if path_of(path.name).exists())]
    names = {code: Locale.parse(code).get_display_name(code) or code for code in codes}
    return {code: name[:1].upper() + name[1:] for code, name in sorted(names.items(), key=lambda item: item[1].lower())}


def read_catalog(language: str) -> Catalog:
    """Return the catalogue of a language, with its fuzzy and missing translations."""
    with open(path_of(language), "rb") as file:
        return read_po(file, locale=language)


@cache
def _translations(language: str) -> NullTranslations:
    if language == ENGLISH:
        return NullTranslations()
    compiled = BytesIO()
    write_mo(compiled, read_catalog(language))
    compiled.seek(0)
    return Translations(compiled)


class _Texts(flask_babel.Domain):  # type: ignore[misc]
    """Flask-Babel's functions, with the translations from messages.po."""

    def get_translations(self) -> NullTranslations:
        return _translations(current_language())


_texts = _Texts()


def gettext(text: str, **values: object) -> str:
    """Return `text` in the user's language, with `values`. `text` may be a lazy text."""
    translated: str = _texts.gettext(str(text), **values)
    return translated


def ngettext(singular: str, plural: str, number: int, **values: object) -> str:
    """Return the text for `number` in the user's language, with `values`. `%(num)d` in a text stands for `number`."""
    translated: str = _texts.ngettext(singular, plural, number, **values)
    return translated


def lazy_gettext(text: str) -> str:
    """Return a text that is translated when a page shows it."""
    lazy: str = _texts.lazy_gettext(text)
    return lazy


def of_problem(problem: Problem) -> str:
    """Return the message that tells the user why a change failed, in the language of the page."""
    if problem.minutes > 0:
        return ngettext(
            "The clock of your phone seems to be %(num)d minute ahead. Let the phone set its time by itself. Then enter"
            " the next code.",
            "The clock of your phone seems to be %(num)d minutes ahead. Let the phone set its time by itself. Then"
            " enter the next code.",
            problem.minutes,
        )
    if problem.minutes < 0:
        return ngettext(
            "The clock of your phone seems to be %(num)d minute behind. Let the phone set its time by itself. Then"
            " enter the next code.",
            "The clock of your phone seems to be %(num)d minutes behind. Let the phone set its time by itself. Then"
            " enter the next code.",
            -problem.minutes,
        )
    return gettext(TEXTS[problem.reason])


def current_language() -> str:
    """Return the code of the language of the current request, such as `de`."""
    return str(flask_babel.get_locale() or ENGLISH)


def _choose() -> str:
    if not has_request_context():
        return ENGLISH
    chosen = (request.args.get("lang"), request.cookies.get(_cookie_name()))
    return next(filter(None, map(_find, chosen)), None) or _accepted()


def _find(tag: str | None) -> str | None:
    """Return the language that a tag such as `de-AT` selects, by the whole tag or by its first part, or None."""
    known = {code.lower().replace("_", "-"): code for code in languages()}
    wanted = (tag or "").lower().replace("_", "-")
    return known.get(wanted) or known.get(wanted.partition("-")[0])


def _accepted() -> str:
    """Return the first language of the portal that the browser accepts, or English."""
    for tag, quality in request.accept_languages:
        found = _find(tag)
        if found is not None and quality > 0:
            return found
    return ENGLISH


def _cookie_name() -> str:
    return "__Host-pam_totp_language" if _is_tls() else "pam_totp_language"


def _is_tls() -> bool:
    return bool(current_app.extensions["pam_totp"].config.tls)


def _link_to(language: str) -> str:
    """Return the link to the current page in `language`, or to the overview if no link can open the current page."""
    adapter = current_app.create_url_adapter(request)
    if adapter is None or not adapter.test(method="GET"):
        return url_for("tokens.overview", lang=language)
    return "?" + urlencode(request.args.to_dict() | {"lang": language})


def _finish(response: Response) -> Response:
    """Set the headers with the language of a page, and the cookie with the language that the user chose."""
    if request.endpoint in WITHOUT_USER:
        return response
    response.content_language.add(_tag(current_language()))
    response.vary.update(("Accept-Language", "Cookie"))
    # A page of another site can also embed an image from such a link.
    is_page = request.headers.get("Sec-Fetch-Dest", "document") == "document"
    if is_page and _find(request.args.get("lang")) is not None:
        response.set_cookie(
            _cookie_name(),
            current_language(),
            max_age=COOKIE_LASTS,
            secure=_is_tls(),
            httponly=True,
            samesite="Lax",
            path="/",
        )
    return response


def _tag(language: str) -> str:
    """Return the tag of a language in HTML and HTTP (BCP 47)."""
    return language.replace("_", "-")


def add_to(app: Flask) -> None:
    """Translate the pages of `app`. Read all translations, so that an error occurs at the start."""
    for code in languages():
        _translations(code)
    if hasattr(flask_babel.Babel, "localeselector"):  # Flask-Babel 2, of Debian 12
        flask_babel.Babel(app, configure_jinja=False).localeselector(_choose)
    else:
        flask_babel.Babel(app, configure_jinja=False, locale_selector=_choose)
    app.jinja_env.add_extension("jinja2.ext.i18n")
    app.jinja_env.policies["ext.i18n.trimmed"] = True
    # Jinja puts the values into the texts, and escapes them.
    app.jinja_env.install_gettext_callables(  # type: ignore[attr-defined]
        lambda text: _texts.get_translations().gettext(text),
        lambda one, many, number: _texts.get_translations().ngettext(one, many, number),
        newstyle=True,
    )
    app.context_processor(
        lambda: {
            "language": _tag(current_language()),
            "languages": [(code, _tag(code), name, _link_to(code)) for code, name in languages().items()],
        }
    )
    app.after_request(_finish)
