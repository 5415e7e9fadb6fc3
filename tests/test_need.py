"""Tests of .ci/need, which installs or lists missing packages, with substitutes for the commands of apt and dpkg."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.site import TREE

NEED = TREE / ".ci" / "need"


def need(folder: Path, *packages: str, uid: int, installed: str = "", known: str = "") -> tuple[int, str, list[str]]:
    """Run .ci/need on a simulated system. Return the exit status, the output, and the arguments of apt-get."""
    asked = folder / "asked"
    asked.touch()
    answers = {
        "id": f"echo {uid}",
        "dpkg-query": f'for name; do :; done; case " {installed} " in *" $name "*) echo installed ;; *) exit 1 ;; esac',
        "apt-cache": f'case " {known} " in *" $2 "*) ;; *) exit 100 ;; esac',
        "apt-get": f'echo "$@" >> {asked}',
    }
    for name, body in answers.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    done = subprocess.run(
        ["sh", NEED, *packages],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, asked.read_text().splitlines()


def test_with_all_packages_installed_nothing_is_printed_or_done(tmp_path: Path) -> None:
    assert need(tmp_path, "gcc", "git", uid=1000, installed="gcc git") == (0, "", [])


def test_for_an_ordinary_user_the_apt_get_line_is_printed(tmp_path: Path) -> None:
    status, said, asked = need(tmp_path, "gcc", "git", "strace", uid=1000, installed="git", known="gcc strace")
    assert (status, asked) == (1, [])
    assert said.splitlines()[1:] == ["    sudo apt-get install -y --no-install-recommends gcc strace"]


@pytest.mark.parametrize("known", ["", "gcc", "strace"])
def test_without_package_lists_the_line_starts_with_apt_get_update(tmp_path: Path, known: str) -> None:
    status, said, asked = need(tmp_path, "gcc", "strace", uid=1000, known=known)
    assert (status, asked) == (1, [])
    assert said.splitlines()[1:] == [
        "    sudo apt-get update && sudo apt-get install -y --no-install-recommends gcc strace"
    ]


def test_root_installs_the_missing_packages(tmp_path: Path) -> None:
    status, _, asked = need(tmp_path, "gcc", "git", uid=0, installed="git", known="gcc")
    assert (status, asked) == (0, ["install -y --no-install-recommends gcc"])
