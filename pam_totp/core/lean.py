"""Parts of the standard library that a login needs, without the import of the modules that define them.

The user waits for every import, because each helper starts an interpreter for one login. The imports of `typing`,
`enum`, `contextlib`, `functools`, `json` and `hashlib` would take more time than the login.

Rules:
1. Each part does the same as its public namesake, for the uses in this package. Type checkers see the namesake.
2. A private module of the interpreter is used only if it exists. Otherwise, the public module is imported.
3. Names that only annotations use are imported only if TYPE_CHECKING is True. `from __future__ import annotations`
   makes that safe.
"""

from __future__ import annotations

__all__ = [
    "TYPE_CHECKING",
    "Enum",
    "Protocol",
    "Struct",
    "contextmanager",
    "dataclass_transform",
    "encode_basestring_ascii",
    "json_loads",
    "lru_cache",
    "partial",
    "sha1",
    "sha256",
    "sha512",
    "suppress",
]

TYPE_CHECKING = False  # type checkers read a variable of this name as True

if TYPE_CHECKING:
    from contextlib import contextmanager, suppress
    from enum import Enum
    from functools import lru_cache, partial
    from hashlib import sha1, sha256, sha512
    from json import loads as json_loads
    from json.encoder import encode_basestring_ascii
    from struct import Struct
    from typing import Protocol, dataclass_transform
else:
    # ---- typing

    class Protocol:
        """A base class that only type checkers use."""

    def dataclass_transform(**_):
        return lambda cls: cls

    # ---- enum

    class _EnumType(type):
        def __new__(cls, name, bases, namespace):
            kind = super().__new__(cls, name, bases, namespace)
            kind._members = tuple(kind._member(n, v) for n, v in namespace.items() if n.isupper())
            return kind

        def _member(cls, name, value):
            member = object.__new__(cls)
            member.name, member.value = name, value
            type.__setattr__(cls, name, member)
            return member

        def __iter__(cls):
            return iter(cls._members)

    class Enum(metaclass=_EnumType):
        """A class with its upper-case names as its only members. Members are compared by identity."""

        def __new__(cls, *_):
            raise TypeError(f"{cls.__name__} has no other members")

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __reduce__(self):
            return getattr, (type(self), self.name)

    # ---- contextlib

    class suppress:
        """A context manager that suppresses exceptions of the given types in its block."""

        def __init__(self, *types):
            self._types = types

        def __enter__(self):
            return None

        def __exit__(self, kind, error, trace):
            return kind is not None and issubclass(kind, self._types)

    class _GeneratorContext:
        def __init__(self, generator):
            self._generator = generator

        def __enter__(self):
            return next(self._generator)

        def __exit__(self, kind, error, trace):
            try:
                if error is None:
                    next(self._generator)
                else:
                    self._generator.throw(error)
            except StopIteration:
                return error is not None  # the generator handled the error
            except BaseException as raised:
                if raised is not error:
                    raise
                error.__traceback__ = trace
                return False
            raise RuntimeError("the generator must yield once")

    def contextmanager(function):
        """Return `function`, whose generator yields once, as a factory of context managers. The block must not raise
        StopIteration.
        """
        return lambda *args, **options: _GeneratorContext(function(*args, **options))

    # ---- functools

    try:
        from _functools import _lru_cache_wrapper, partial

        def lru_cache(maxsize):
            return lambda function: _lru_cache_wrapper(function, maxsize, False, tuple)
    except ImportError:
        from functools import lru_cache, partial

    # ---- struct

    try:
        from _struct import Struct
    except ImportError:
        from struct import Struct

    # ---- hashlib

    try:
        from _sha1 import sha1

        try:
            from _sha2 import sha256, sha512  # Python 3.12 and later
        except ImportError:
            from _sha256 import sha256
            from _sha512 import sha512
    except ImportError:
        from hashlib import sha1, sha256, sha512

    # ---- json

    try:
        from _json import encode_basestring_ascii, make_scanner

        class _Context:
            """The settings of json.JSONDecoder()."""

            strict = True
            object_hook = object_pairs_hook = None
            parse_int, parse_float, parse_constant = int, float, float

        _scan = make_scanner(_Context)
        _SPACE = " \t\n\r"

        def json_loads(text):
            """Return the value that the JSON document `text` encodes. json.loads raises the error for other text."""
            try:
                document, end = _scan(text, len(text) - len(text.lstrip(_SPACE)))
                if not text[end:].strip(_SPACE):
                    return document
            except (ValueError, RecursionError, StopIteration, SystemError):  # SystemError if `json` is not imported
                pass
            import json

            return json.loads(text)
    except ImportError:
        from json import loads as json_loads
        from json.encoder import encode_basestring_ascii
