"""Tests of the registry of formats: a file is recognised only by its own format, and the documents list every
format."""

from __future__ import annotations

import re

import pytest

from pam_totp.core.record import Token, UserRecord
from pam_totp.formats.format import Format, ParseOptions
from pam_totp.formats.parsing import FormatError
from pam_totp.formats.registry import EXPORT_FORMATS, FORMATS, sniff
from tests.formats.reading import NOW, written
from tests.formats.samples import SAMPLES
from tests.formats.test_qr_pictures import PICTURES
from tests.support.site import TREE, fob, phone

TOKENS = [fob(7), phone(last_step=NOW // 30)]


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_recognised_only_by_its_own_format(name: str) -> None:
    for sample in PICTURES if name == "qr" else SAMPLES[name]:
        assert [other for other, known in FORMATS.items() if known.sniff(sample)] == [name]
        assert sniff(sample) == name


@pytest.mark.parametrize(
    "data",
    [b"", b"\n\n# comment\n", b"\xff\xfe\0", b"hello, world\n", b"thing, worldwideinterests\n", SAMPLES["map"][0]],
)
def test_a_file_of_another_format_is_not_recognised(data: bytes) -> None:
    assert sniff(data) is None


@pytest.mark.parametrize("name", EXPORT_FORMATS)
@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token.type)
def test_an_exported_file_is_recognised(name: str, token: Token) -> None:
    assert sniff(written(name, [token])) == name


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in EXPORT_FORMATS])
def test_a_format_only_for_import_refuses_to_write(name: str) -> None:
    with pytest.raises(FormatError, match="export is unsupported"):
        FORMATS[name].write(UserRecord(user="alice"), [])


@pytest.mark.parametrize("name", FORMATS)
def test_the_tokens_of_a_file_can_be_iterated_again(name: str) -> None:
    parsed = FORMATS[name].parse(SAMPLES[name][0], ParseOptions(now=NOW))
    tokens = list(parsed.tokens)
    assert tokens == list(parsed.tokens)
    assert 1 <= len(tokens) <= parsed.max_tokens


@pytest.mark.parametrize("chosen", FORMATS.values(), ids=lambda known: known.name)
def test_every_format_is_in_the_documentation(chosen: Format) -> None:
    assert re.search(rf"^\| `{chosen.name}` \|", (TREE / "docs" / "tokens.md").read_text(), re.MULTILINE)
    manual = (TREE / "pam_totp" / "system" / "data" / "pam-totp.1").read_text()
    assert re.search(rf"The first argument can name the format instead:(\n\.Cm.*|\nor)*\b{chosen.name}\b", manual)
