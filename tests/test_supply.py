"""What comes from elsewhere is pinned, and what is built is the same bytes wherever, whenever and by whomever."""

from __future__ import annotations

import configparser
import importlib.metadata
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import audit
from tests.site import TREE

REQUIREMENTS = (TREE / "tests" / "requirements.txt").read_text()
PINNED = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==\S+ \\$", REQUIREMENTS, re.MULTILINE)}


def wanted(extra: str) -> set[str]:
    """The packages of an extra in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(TREE / "setup.cfg")
    lines = config["options.extras_require"][extra].splitlines()
    names = [re.match(r"[\w.-]+", line.strip()) for line in lines if line.strip() and not line.startswith("#")]
    return {found[0].lower().replace("_", "-") for found in names if found}


@pytest.mark.parametrize("extra", ["test", "lint"])
def test_whatever_the_tests_install_is_pinned(extra: str) -> None:
    assert wanted(extra)
    assert wanted(extra) - PINNED == set(), "run 'make requirements'"


def test_every_pin_has_hashes_and_nothing_else_is_in_the_file() -> None:
    entries = re.split(r"\n(?=[a-z])", REQUIREMENTS.strip())
    assert len(entries) == len(PINNED) >= 40
    for entry in entries:
        assert re.fullmatch(r"(#.*\n)*[\w.-]+==[\w.]+( \\\n    --hash=sha256:[0-9a-f]{64})+(\n+#.*)*", entry), entry[
            :80
        ]


def test_make_installs_nothing_that_is_not_in_it() -> None:
    made = (TREE / "Makefile").read_text().split("\n.venv/.made:")[1].split("\n\n")[0]
    installs = re.findall(r"\$\(PIP\) (.*)", made)
    assert installs == [
        "--require-hashes --only-binary=:all: --requirement tests/requirements.txt",
        "--no-deps --no-build-isolation --editable .",
    ]


def test_nothing_is_installed_that_is_not_pinned() -> None:
    """What a pinned package needs in its turn is pinned, too. `make fuzz` adds one more, and pip was there."""
    besides = {"pam-totp", "pip", *wanted("fuzz")}
    installed = {
        f"{found.metadata['Name'].lower().replace('_', '-')}=={found.version}"
        for found in importlib.metadata.distributions()
        if found.metadata["Name"].lower().replace("_", "-") not in besides
    }
    pinned = set(re.findall(r"^([\w.-]+==\S+) \\$", REQUIREMENTS, re.MULTILINE))
    assert len(installed) >= 40
    assert installed - pinned == set()


def pins(*found: dict[str, object]) -> str:
    return json.dumps({"dependencies": list(found), "fixes": []})


FINE = {"name": "six", "version": "1.17.0", "vulns": []}
SKIPPED = {"name": "flask", "skip_reason": "not found"}
KNOWN = {"name": "jinja2", "version": "3.1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.6"]}]}


@pytest.mark.parametrize(
    ("said", "status", "line"),
    [
        (pins(FINE), audit.CLEAN, "1 of 1 pins looked up, 0 advisories"),
        (pins(FINE, KNOWN), audit.KNOWN, "jinja2 3.1.0: PYSEC-1, mended in 3.1.6"),
        (pins(SKIPPED, KNOWN), audit.KNOWN, "1 of 2 pins looked up, 1 advisories"),
        (pins(FINE, SKIPPED), audit.OUT_OF_REACH, "1 of 2 pins looked up, 0 advisories: "),
        (pins(), audit.OUT_OF_REACH, "0 of 0 pins looked up, 0 advisories: "),
        ("", audit.OUT_OF_REACH, "pip-audit came to no result: "),
        ("[]", audit.OUT_OF_REACH, "pip-audit came to no result: "),
    ],
)
def test_a_pin_that_could_not_be_looked_up_is_not_called_clean(said: str, status: int, line: str) -> None:
    judged, lines = audit.judge(said)
    assert judged == status
    assert any(one.startswith(line) for one in lines), lines


@pytest.mark.parametrize("more", ["", "-g"])
def test_the_relay_is_the_same_bytes_from_two_folders(tmp_path: Path, more: str) -> None:
    built = []
    for name, environment in (
        ("one", {"TZ": "UTC", "LC_ALL": "C"}),
        ("another/of-a-longer-name", {"TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8"}),
    ):
        tree = tmp_path / name
        shutil.copytree(TREE / "pam_totp", tree / "pam_totp")
        shutil.copytree(TREE / ".ci", tree / ".ci")
        shutil.copy(TREE / "Makefile", tree)
        knows = (
            "RELAY_KNOWS=-DINTERPRETER='\"/usr/bin/python3\"' -DHELPER='\"/usr/lib/pam_totp/pam_totp/pam/helper.py\"'"
        )
        subprocess.run(
            ["make", "build/pam_totp.so", knows, f"CPPFLAGS={more}"],
            cwd=tree,
            env={"PATH": "/usr/bin:/bin", **environment},
            check=True,
            capture_output=True,
        )
        built.append((tree / "build" / "pam_totp.so").read_bytes())
    assert built[0] == built[1]
    assert str(tmp_path).encode() not in built[0]
