"""A check of an XML file before a library builds a tree of it.

Rules:
- A document type is refused. This rule excludes entities and external references.
- Size, depth and number of elements are bounded.
- A file that the expat parser rejects is refused.
- The requested elements are returned with their line numbers, because XML libraries drop line numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from xml.parsers import expat

from pam_totp.formats.parsing import MAX_INPUT, FormatError

MAX_DEPTH = 30
MAX_ELEMENTS = 2_000_000
_NAMESPACE_ENDS = "}"


@dataclass(slots=True)
class Element:
    """An XML element. `path` has the local names of its parents, then the element's own local name."""

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


def elements(data: bytes, names: frozenset[str]) -> list[Element]:
    """Return the elements whose local name is in `names`, in document order. Raise FormatError."""
    if len(data) > MAX_INPUT:
        raise FormatError(None, f"the file must be at most {MAX_INPUT // 1024 // 1024} MiB")
    reader = _Reader(names)
    try:
        reader.parser.Parse(data, True)
    except expat.ExpatError as e:
        raise FormatError(e.lineno, f"must be XML ({expat.errors.messages[e.code]})") from None
    except FormatError:
        raise
    except (ValueError, LookupError):  # an encoding that Python or expat does not support
        raise FormatError(1, "must be XML in a supported encoding") from None
    return reader.found


class _Reader:
    def __init__(self, names: frozenset[str]) -> None:
        self.parser = expat.ParserCreate(namespace_separator=_NAMESPACE_ENDS)
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.EntityDeclHandler = self._doctype
        self.parser.ExternalEntityRefHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.buffer_text = True
        self.found: list[Element] = []
        self._names = names
        self._path: list[str] = []
        self._open: list[Element | None] = []
        self._count = 0

    def _doctype(self, *_: object) -> int:
        raise FormatError(self.parser.CurrentLineNumber, "must not contain a document type or an entity")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if len(self._path) >= MAX_DEPTH or self._count > MAX_ELEMENTS:
            limits = f"must have at most {MAX_ELEMENTS} elements, nested at most {MAX_DEPTH} deep"
            raise FormatError(self.parser.CurrentLineNumber, limits)
        local = name.rpartition(_NAMESPACE_ENDS)[2]
        self._path.append(local)
        element = None
        if local in self._names:
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
