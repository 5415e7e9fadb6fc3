"""A look at an XML file before a library that builds trees sees it.

The law: no document type, so no entities and nothing external; a bounded size, depth and number of elements; and what
the expat parser does not take is refused. What is looked for comes back with its line numbers, which the libraries
forget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from pam_totp.formats.imported_token import MAX_INPUT, FormatError

MAX_DEPTH = 30
MAX_ELEMENTS = 2_000_000
_NAMESPACE_ENDS = "}"


@dataclass(slots=True)
class Element:
    """An element that was looked for: its local name, its parents' names, its line and its text."""

    path: tuple[str, ...]
    line: int
    attributes: dict[str, str]
    text: list[str] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        return self.path[-1]

    @property
    def content(self) -> str:
        return "".join(self.text).strip()


def elements(data: bytes, wanted: frozenset[str]) -> list[Element]:
    """The elements with a wanted local name, in document order. Raises FormatError."""
    if len(data) > MAX_INPUT:
        raise FormatError(None, f"larger than {MAX_INPUT // 1024 // 1024} MiB")
    reader = _Reader(wanted)
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as e:
        raise FormatError(e.lineno, f"not XML ({expat.errors.messages[e.code]})") from None
    except FormatError:
        raise
    except (ValueError, LookupError):  # an encoding that Python does not know, or that expat cannot take from it
        raise FormatError(1, "not XML in an encoding that is known") from None
    return reader.found


class _Reader:
    def __init__(self, wanted: frozenset[str]) -> None:
        self.parser = expat.ParserCreate(namespace_separator=_NAMESPACE_ENDS)
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.EntityDeclHandler = self._doctype
        self.parser.ExternalEntityRefHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.buffer_text = True
        self.found: list[Element] = []
        self._wanted = wanted
        self._path: list[str] = []
        self._open: list[Element | None] = []
        self._count = 0

    def _doctype(self, *_: object) -> int:
        raise FormatError(self.parser.CurrentLineNumber, "a document type or an entity: refused, no token file has one")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if len(self._path) >= MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise FormatError(self.parser.CurrentLineNumber, "elements too deep, or too many")
        local = name.rpartition(_NAMESPACE_ENDS)[2]
        self._path.append(local)
        element = None
        if local in self._wanted:
            element = Element(tuple(self._path), self.parser.CurrentLineNumber, attributes)
            self.found.append(element)
        self._open.append(element)

    def _end(self, _: str) -> None:
        self._path.pop()
        self._open.pop()

    def _text(self, text: str) -> None:
        element = self._open[-1] if self._open else None
        if element is not None:
            element.text.append(text)
