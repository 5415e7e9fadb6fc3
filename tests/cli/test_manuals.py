"""Tests of the manuals: they list all commands, options, arguments and keys, and have the titles of Linux manuals."""

from __future__ import annotations

import argparse
import re

import pytest

from pam_totp.cli import parser as pam_totp_parser
from pam_totp.core import settings
from pam_totp.core.policy import Policy
from tests.support.site import TREE
from token_sim.cli import _parser as token_sim_parser

DATA = TREE / "pam_totp/system/data"
MANUALS = sorted(path.name for path in DATA.glob("*.[1-8]"))


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of all commands, by name."""
    return next(a.choices for a in parser._actions if isinstance(a.choices, dict))


def subsections(manual: str) -> dict[str, str]:
    """Return the subsections of the section COMMANDS, by command name."""
    section = manual.partition(".Sh COMMANDS\n")[2].partition("\n.Sh ")[0]
    return {text.split(maxsplit=1)[0]: text for text in re.split(r"^\.Ss ", section, flags=re.MULTILINE)[1:]}


def items(text: str, macro: str) -> list[str]:
    """Return the words after `macro` in the list items (`.It` lines) of a manual's text."""
    lines = re.findall(r"^\.It (.*)$", text, re.MULTILINE)
    return [word for line in lines for word in re.findall(rf"\b{macro} (-?[\w-]+)", line)]


PARSERS = [("pam-totp.1", pam_totp_parser()), ("token-sim.1", token_sim_parser())]


@pytest.mark.parametrize(
    ("manual", "command", "parser"),
    [(manual, name, parser) for manual, top in PARSERS for name, parser in commands_of(top).items()],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manual_has_exactly_the_options_of_each_command(
    manual: str, command: str, parser: argparse.ArgumentParser
) -> None:
    text = subsections((DATA / manual).read_text())[command]
    options = {action.option_strings[-1][1:] for action in parser._actions if action.option_strings} - {"-help"}
    assert sorted(items(text, "Fl")) == sorted(options)


@pytest.mark.parametrize(("manual", "parser"), PARSERS, ids=["pam-totp", "token-sim"])
def test_a_manual_has_exactly_the_commands(manual: str, parser: argparse.ArgumentParser) -> None:
    assert subsections((DATA / manual).read_text()).keys() == commands_of(parser).keys()


def test_the_module_manual_has_every_argument() -> None:
    section = (DATA / "pam_totp.8").read_text().partition(".Sh ARGUMENTS\n")[2].partition("\n.Sh ")[0]
    assert sorted(items(section, "Cm")) == sorted((*settings._VALUES, *settings._FLAGS))


def test_the_site_file_manual_has_every_key_and_default() -> None:
    section = (DATA / "pam_totp.toml.5").read_text().partition(".Ss Keys of")[2].partition("\n.S")[0]
    assert sorted(items(section, "Li")) == sorted(settings._SITE)
    for name, value in {**Policy._defaults, "grace_period": 0}.items():
        text = section.partition(f".It Li {name} ")[2].partition(".It ")[0]
        assert re.search(rf"[Dd]efault(?: is)?:? {value}\b", text), name


@pytest.mark.parametrize("name", MANUALS)
def test_a_manual_is_dated_and_titled(name: str) -> None:
    title, section = name.rsplit(".", 1)
    date, heading, source = (DATA / name).read_text().splitlines()[:3]
    assert re.fullmatch(r"\.Dd [A-Z][a-z]+ \d{1,2}, 20\d\d", date)
    assert heading == f".Dt {title.upper()} {section}"
    assert source == ".Os pam_totp"


def test_there_is_a_manual_for_each_command_file_and_module() -> None:
    assert MANUALS == ["pam-totp.1", "pam_totp.8", "pam_totp.toml.5", "token-sim.1"]
    installed = (DATA / "install").read_text() + (DATA / "uninstall").read_text()
    assert all(installed.count(f'/{name}"') >= 2 for name in MANUALS)
