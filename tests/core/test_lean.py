"""Tests of the lean parts of the standard library: they behave like the public modules of the same names.

Most tests also run with the fallbacks for other versions and builds of Python.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import hashlib
import importlib.util
import json
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pam_totp.core import lean
from pam_totp.core.verify import Outcome
from pam_totp.operations.verifier import Result


def _with_modules(**private: object) -> Any:
    """Return `lean`, imported with the modules `private` by name. The import of a module that is None fails."""
    spec = importlib.util.spec_from_file_location("lean_again", lean.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, private):
        spec.loader.exec_module(module)
    return module


def _holding(**names: object) -> ModuleType:
    module = ModuleType("private")
    vars(module).update(names)
    return module


SHA256, SHA512 = {"sha256": hashlib.sha256}, {"sha512": hashlib.sha512}
VARIANTS = {
    "this interpreter": lean,
    "no private module": _with_modules(_functools=None, _json=None, _sha1=None, _struct=None),
    "Python 3.11": _with_modules(_sha2=None, _sha256=_holding(**SHA256), _sha512=_holding(**SHA512)),
    "Python 3.12": _with_modules(_sha2=_holding(**SHA256, **SHA512)),
    "no SHA-2": _with_modules(_sha2=None, _sha256=None, _sha512=None),
}
DOCUMENTS = [
    "",
    " ",
    "\n{}\r\n\t ",
    "{}\x0b",
    "\x0c{}",
    "\xa0{}",
    "\ufeff{}",
    "{} {}",
    "[1,]",
    '{"a":1,"a":2}',
    '{"a" 1}',
    '{"a":',
    "{1:2}",
    '"\n"',
    '"\x00"',
    '"\\x"',
    '"\\ud800"',
    '"\\ud834\\udd1e"',
    '"open',
    "NaN",
    "[Infinity, -Infinity]",
    "-",
    "01",
    "1.5e3",
    "1e999",
    "-0",
    "-0.0",
    "9" * 4000,
    "9" * 5000,
    "tru",
    "true",
    "null",
    "'a'",
    "[" * 100_000,
    '{"a":' * 100_000,
]


def _outcome(job: Callable[[], object]) -> str:
    """Return the text of the result or of the error. The tests compare texts, because NaN is unequal to itself."""
    try:
        return repr(job())
    except Exception as e:
        return f"{type(e).__name__}: {e}"


variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())


@variants
@pytest.mark.parametrize("name", ["sha1", "sha256", "sha512"])
def test_a_hash_is_that_of_hashlib(variant: Any, name: str) -> None:
    for size in (0, 1, 63, 64, 65, 127, 128, 129, 1000):
        data = bytes(i % 251 for i in range(size))
        state, public = getattr(variant, name)(data), getattr(hashlib, name)(data)
        other = state.copy()
        other.update(b"more")
        assert (state.digest(), state.digest_size, state.block_size) == (
            public.digest(),
            public.digest_size,
            public.block_size,
        )
        assert other.hexdigest() == getattr(hashlib, name)(data + b"more").hexdigest()


@variants
def test_a_packed_structure_is_that_of_struct(variant: Any) -> None:
    for pattern, values in ((">I", (2**32 - 1,)), ("hhqqi4x", (1, 2, 2**62, -1, 7))):
        data = variant.Struct(pattern).pack(*values)
        assert data == struct.pack(pattern, *values)
        assert variant.Struct(pattern).unpack_from(data) == values


@variants
@pytest.mark.parametrize("text", DOCUMENTS, ids=lambda text: repr(text[:12]))
def test_a_document_or_its_error_is_that_of_json_loads(variant: Any, text: str) -> None:
    assert _outcome(lambda: variant.json_loads(text)) == _outcome(lambda: json.loads(text))


@pytest.mark.parametrize("text", DOCUMENTS, ids=lambda text: repr(text[:12]))
def test_an_error_of_a_document_needs_no_earlier_import_of_json(text: str) -> None:
    expected = _outcome(lambda: json.loads(text))
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.partition(".")[0] == "json"]:
            del sys.modules[name]
        assert _outcome(lambda: lean.json_loads(text)) == expected


@given(text=st.text(alphabet='[]{}:,"\\/ \t\n\r0123456789eE+-.truefalsnINy\x00\x1f\x7f\xa0é𝄞'))
@example(text='{"a": [1, 2.5, true, "x\\u0041"]}')
def test_json_loads_is_the_same_for_any_text(text: str) -> None:
    assert _outcome(lambda: lean.json_loads(text)) == _outcome(lambda: json.loads(text))


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8)
objects = st.dictionaries(st.text(), values | st.dictionaries(st.text(), values, max_size=3), max_size=5)


@given(document=objects, at=st.integers(0, 50), other=st.characters())
def test_json_loads_is_the_same_for_a_changed_document(document: object, at: int, other: str) -> None:
    text = json.dumps(document, indent=1)
    assert _outcome(lambda: lean.json_loads(text)) == _outcome(lambda: json.loads(text))
    changed = text[:at] + other + text[at + 1 :]
    assert _outcome(lambda: lean.json_loads(changed)) == _outcome(lambda: json.loads(changed))


@variants
@pytest.mark.parametrize("text", ["", "alice", 'a"b\\', "\x00\x1f\x7f", "é𝄞", "\udc80"])
def test_a_string_is_encoded_like_by_json_dumps(variant: Any, text: str) -> None:
    assert variant.encode_basestring_ascii(text) == json.dumps(text)


def _manager(kind: str) -> Callable[[list[str]], Iterator[str]]:
    """Return the generator function of a context manager that treats an error of its block as `kind` specifies."""

    def generate(log: list[str]) -> Iterator[str]:
        log.append("enter")
        try:
            yield "value"
        except KeyError:
            log.append("error")
            if kind == "suppress":
                return
            if kind == "replace":
                raise LookupError("another") from None
            raise
        finally:
            log.append("exit")
        if kind == "yield twice":
            yield "again"

    return generate


@variants
@pytest.mark.parametrize("kind", ["raise", "suppress", "replace", "yield twice"])
@pytest.mark.parametrize("error", [None, KeyError("k"), OSError("o"), KeyboardInterrupt()])
def test_a_context_manager_ends_like_that_of_contextlib(variant: Any, kind: str, error: BaseException | None) -> None:
    def use(contextmanager: Any) -> tuple[list[str], type[BaseException] | None]:
        log: list[str] = []
        try:
            with contextmanager(_manager(kind))(log) as value:
                log.append(value)
                if error is not None:
                    raise error
        except BaseException as e:
            return log, type(e)
        return log, None

    assert use(variant.contextmanager) == use(contextlib.contextmanager)


def test_the_traceback_of_an_error_in_a_block_ends_at_the_block() -> None:
    @lean.contextmanager
    def manager() -> Iterator[None]:
        yield

    try:
        with manager():
            raise KeyError
    except KeyError as e:
        assert e.__traceback__ is not None
        assert e.__traceback__.tb_next is None, "the traceback contains only the frame of the block, as with contextlib"


@variants
def test_suppress_suppresses_only_its_types(variant: Any) -> None:
    with variant.suppress(KeyError, OSError):
        raise FileNotFoundError
    with variant.suppress(KeyError):
        pass
    with pytest.raises(ValueError), variant.suppress(KeyError, OSError):
        raise ValueError
    with pytest.raises(KeyError), variant.suppress():
        raise KeyError


def test_an_enumeration_behaves_like_that_of_enum() -> None:
    class Public(enum.Enum):
        RED = "red"
        DARK_BLUE = 2

        @property
        def is_red(self) -> bool:
            return self is type(self).RED

    metaclass: Any = type(lean.Enum)
    Lean = metaclass("Public", (lean.Enum,), {"RED": "red", "DARK_BLUE": 2, "is_red": Public.is_red})
    members, public = ([(m.name, m.value, m.is_red, repr(m)) for m in kind] for kind in (Lean, Public))
    assert members == public
    assert Lean.RED is Lean.RED
    assert Lean.RED != Lean.DARK_BLUE
    assert {Lean.RED: 1, Lean.DARK_BLUE: 2}[Lean.DARK_BLUE] == 2


@pytest.mark.parametrize("member", [*Outcome, *Result])
def test_a_copy_of_a_member_is_the_member(member: enum.Enum) -> None:
    assert copy.copy(member) is copy.deepcopy(member) is pickle.loads(pickle.dumps(member)) is member  # noqa: S301


def test_an_enumeration_gets_no_other_member() -> None:
    with pytest.raises(TypeError):
        Outcome("code")


@variants
def test_a_cache_keeps_the_last_results(variant: Any) -> None:
    calls: list[int] = []

    def count(number: int) -> int:
        calls.append(number)
        return 2 * number

    double = variant.lru_cache(maxsize=2)(count)
    assert [double(n) for n in (1, 2, 1, 3, 1, 2)] == [2, 4, 2, 6, 2, 4]
    assert calls == [1, 2, 3, 2]


@variants
def test_a_partial_call_gets_the_given_arguments(variant: Any) -> None:
    assert variant.partial(int, base=16)("ff") == 255


def test_types_are_checked_by_type_checkers_only() -> None:
    class Shape(lean.Protocol):
        pass

    assert lean.dataclass_transform(frozen_default=True)(Shape) is Shape
    assert not lean.TYPE_CHECKING
