"""Tests of the wheel and the sdist of `python -m build`, and of their metadata.

Rules:
- `pam_totp.__version__` is the version. Other files read this version, or a test compares their version with it.
- The wheel has every file for run time. The sdist also has every file for builds and tests.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

import pam_totp
import token_sim
from tests.support.package_index import Index, normal
from tests.support.site import TREE

FOLDERS = (".ci", "demo", "docs", "examples", "packaging", "pam_totp", "tests", "token_sim", "tools")
FILES = (
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "MANIFEST.in",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "pyproject.toml",
    "setup.cfg",
)
VERSION = pam_totp.__version__


class Built(NamedTuple):
    """The results of `python -m build` in a copy of the tree."""

    tree: Path
    sdist: Path
    wheel: Path  # the wheel built from the unpacked sdist
    wheel_of_tree: Path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Return a package index with stubs of all installed packages, except for the real setuptools."""
    made = Index(tmp_path_factory.mktemp("packaging") / "index")
    for name, version in {(normal(d.metadata["Name"]), d.version) for d in importlib.metadata.distributions()}:
        if name == "setuptools":
            made.installed(name)
        elif name not in ("pam-totp", "pip"):
            made.like_installed(name, version)
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, index: Index) -> Built:
    """Return the sdist and the wheels, built with the locked setuptools and without an index."""
    folder = tmp_path_factory.mktemp("packaging")
    tree = folder / "tree"
    for name in FOLDERS:
        shutil.copytree(TREE / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(TREE / name, tree)

    def build(out: str, *options: str) -> Path:
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / out), *options]
        environment = index.environment | {"PIP_NO_INDEX": "1"}
        done = subprocess.run(command, cwd=tree, env=environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return folder / out

    both = build("both")
    return Built(tree, *both.glob("*.tar.gz"), *both.glob("*.whl"), *build("alone", "--wheel").glob("*.whl"))


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def sources(tree: Path, *folders: str) -> set[str]:
    """Return the paths of all files below `folders`, relative to `tree`."""
    return {str(p.relative_to(tree)) for folder in folders for p in (tree / folder).rglob("*") if p.is_file()}


def in_sdist(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


@pytest.mark.skipif(not (TREE / ".git").exists(), reason="requires a git clone")
def test_the_sdist_has_every_tracked_file() -> None:
    command = ["git", "-c", f"safe.directory={TREE}", "ls-files"]
    tracked = subprocess.run(command, cwd=TREE, text=True, capture_output=True, check=True).stdout.splitlines()
    assert {name.partition("/")[0] for name in tracked} == {*FOLDERS, *FILES, ".gitignore", ".github"}


class Environment:
    """A virtual environment without pip. The tests' own pip installs packages from the local index only."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self._index = index
        self.run(sys.executable, "-m", "venv", "--without-pip", folder)  # an environment with pip would take 4 s longer

    def run(self, *words: str | Path) -> str:
        environment, cwd = self._index.environment, self.folder.parent
        done = subprocess.run(words, cwd=cwd, env=environment, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def pip(self, *words: str | Path) -> str:
        return self.run(sys.executable, "-m", "pip", "--python", self.folder, *words)


@pytest.fixture
def environment(tmp_path: Path, index: Index) -> Environment:
    return Environment(tmp_path / "environment", index)


def test_the_wheel_has_every_file_of_both_packages(built: Built) -> None:
    inside = content(built.wheel)
    assert {name for name in inside if ".dist-info/" not in name} == sources(built.tree, "pam_totp", "token_sim")
    data = ("system/data/install", "system/radiusd.conf")
    for name in ("pam/relay.c", "web/templates/base.html", "web/static/portal.css", *data, "py.typed"):
        assert inside[f"pam_totp/{name}"] == (TREE / "pam_totp" / name).read_bytes()


def test_the_sdist_has_the_tests_and_builds_the_same_wheel(built: Built) -> None:
    assert in_sdist(built.sdist) >= sources(built.tree, *FOLDERS) | set(FILES)
    assert content(built.wheel) == content(built.wheel_of_tree)


def test_the_wheel_runs_without_the_source_tree(built: Built, environment: Environment) -> None:
    environment.pip("install", "--no-index", "--no-deps", built.wheel)
    programs = environment.folder / "bin"
    script = "import pam_totp, token_sim; print(pam_totp.__file__, token_sim.__file__)"
    for file in environment.run(programs / "python", "-c", script).split():
        assert file.startswith(f"{environment.folder}/"), file
    for command in ("pam-totp", "token-sim"):
        assert environment.run(programs / command, "--version") == f"{command} {VERSION}\n"


def test_the_sdist_installs_with_only_the_build_requirements(built: Built, environment: Environment) -> None:
    """pip builds the wheel in a separate environment. Another test installs the dependencies of the wheel."""
    environment.pip("install", "--no-deps", built.sdist)
    assert environment.run(environment.folder / "bin/pam-totp", "--version") == f"pam-totp {VERSION}\n"


def test_the_tests_extra_installs(built: Built, environment: Environment) -> None:
    environment.pip("install", f"{built.wheel}[test]")
    assert "No broken requirements" in environment.pip("check")
    listed = {normal_pin(line) for line in environment.pip("list", "--format=freeze").split()}
    assert {f"pam-totp=={VERSION}", f"pytest=={pytest.__version__}"} <= listed


def normal_pin(text: str) -> str:
    name, _, version = text.partition("==")
    return f"{normal(name)}=={version}"


def test_the_metadata_names_the_author_licence_and_python_versions(built: Built) -> None:
    inside = content(built.wheel)
    metadata = inside[f"pam_totp-{VERSION}.dist-info/METADATA"].decode().split("\n\n")[0]
    pythons = re.findall(r"^PYTHONS = (.*)$", (TREE / "Makefile").read_text(), re.M)[0].split()
    assert re.findall(r"^Classifier: Programming Language :: Python :: (3\.\d+)$", metadata, re.M) == pythons
    assert f"\nRequires-Python: >={pythons[0]}\n" in metadata
    for line in ("Author: The pam_totp maintainers", "License: Apache-2.0", f"Version: {VERSION}"):
        assert f"\n{line}\n" in metadata


def test_only_the_code_states_the_version() -> None:
    assert token_sim.__version__ == VERSION
    config = configparser.ConfigParser(interpolation=None)
    config.read(TREE / "setup.cfg")
    assert config["metadata"]["version"] == "attr: pam_totp.__version__"
    manuals = (TREE / "pam_totp/system/data").glob("*.[158]")
    for path in (TREE / "README.md", TREE / "pyproject.toml", *(TREE / "docs").glob("*.md"), *manuals):
        assert VERSION not in path.read_text(), path


def test_the_changelog_groups_its_entries() -> None:
    """Check the format of https://keepachangelog.com."""
    lines = (TREE / "CHANGELOG.md").read_text().splitlines()
    assert next(line for line in lines if line.startswith("## ")) == "## Unreleased"
    groups = {line for line in lines if line.startswith("### ")}
    assert groups <= {f"### {name}" for name in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}
    under = ""
    for line in lines[1:]:
        under = line if line.startswith("#") else under
        assert not line.startswith("- ") or under in groups, line


def test_pre_commit_has_the_commands_of_make_lint() -> None:
    command = ["make", "--dry-run", "--no-print-directory", "--old-file=venv", "--old-file=need-lint", "lint"]
    made = subprocess.run(command, cwd=TREE, text=True, capture_output=True, check=True).stdout.splitlines()
    entries = re.findall(r"^ +entry: (.*)$", (TREE / ".pre-commit-config.yaml").read_text(), re.M)
    assert sorted(re.sub(r"^sh -c '(.*)'$", r"\1", entry) for entry in entries) == sorted(made)


def test_a_package_stops_the_units_that_an_administrator_starts() -> None:
    """debhelper stops only the units that it starts."""
    debian = TREE / "packaging/debian"
    started = re.findall(r"-p(\S+) --no-enable --no-start .*?(\S+\.service)$", (debian / "rules").read_text(), re.M)
    assert len(started) == 2
    for package, unit in started:
        assert f"deb-systemd-invoke stop {unit}" in (debian / f"{package}.prerm").read_text()
