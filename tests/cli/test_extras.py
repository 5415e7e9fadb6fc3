"""Tests of the message for a missing package: the message contains a command to install the package on this system."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

import token_sim.extras as simulators
from pam_totp.system import extras
from pam_totp.system.extras import how_to_get
from tests.formats.backups import BACKUPS
from tests.support.site import ME, PIPE, TREE, Site


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("segno", "apt-get install python3-segno, or make install EXTRAS=qr"),
        ("pyserial", "apt-get install python3-serial, or make install EXTRAS=serial"),
        ("python-pskc", "apt-get install python3-pskc, or make install EXTRAS=pskc"),
        ("cryptography", "apt-get install python3-cryptography, or make install EXTRAS=aegis"),
        ("python-pam", "apt-get install python3-pampy python3-six, or make install EXTRAS=web"),
    ],
)
def test_pip_is_named_only_in_a_virtual_environment(monkeypatch: pytest.MonkeyPatch, package: str, said: str) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert how_to_get(package) == said
    monkeypatch.setattr(sys, "prefix", "/home/alice/environment")
    assert how_to_get(package) == f"pip install {package}"


def test_the_simulator_names_pip_only_in_a_virtual_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert simulators.missing("pyserial") == "pyserial is missing (apt-get install python3-serial)"
    assert simulators.missing("textual") == "textual is missing (make install EXTRAS=tui)"
    monkeypatch.setattr(sys, "prefix", "/home/alice/environment")
    assert simulators.missing("textual") == "textual is missing (pip install textual)"


def test_every_extra_of_a_message_is_in_setup_and_in_the_manual() -> None:
    setup = configparser.ConfigParser(interpolation=None)
    setup.read(TREE / "setup.cfg")
    table = (TREE / "docs/installing.md").read_text()
    for package, (debian, extra) in extras._SOURCES.items():
        assert package in setup["options.extras_require"][extra]
        assert f"`{extra}` |" in table
        assert f"`{debian}`" in table


def test_without_cryptography_only_an_encrypted_backup_is_refused(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cryptography.py").write_text("raise ModuleNotFoundError(name='cryptography')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{TREE}"}
    plain, encrypted = BACKUPS["aegis"]
    for data, status, said in ((plain, 1, "2 tokens"), (encrypted, 3, f"cryptography ({how_to_get('cryptography')})")):
        (tmp_path / "file").write_bytes(data)
        command: list[str | Path] = [sys.executable, "-m", "pam_totp.cli", "import", tmp_path / "file", "--user", ME]
        command += ["--store", site.store, "--dry-run"]
        done = subprocess.run(command, cwd=TREE, env=env, text=True, capture_output=True, check=False, input="x\n")
        assert (done.returncode, said in done.stderr) == (status, True), done.stderr


def test_without_segno_the_key_and_the_missing_package_are_shown(site: Site, tmp_path: Path) -> None:
    (tmp_path / "segno.py").write_text("raise ModuleNotFoundError(name='segno')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{TREE}"}
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pam_totp.cli",
        "enroll",
        ME,
        "--store",
        site.store,
        "--yes",
        *PIPE,
    ]
    done = subprocess.run(command, cwd=TREE, env=env, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("key: ")
    assert f"\n(no QR code, because segno is missing: {how_to_get('segno')})\n" in done.stdout


@pytest.mark.parametrize(
    ("module", "package", "words"),
    [
        ("serial", "pyserial", ["resync", ME, "--port", "/dev/null"]),
        ("segno", "segno", ["enroll", ME, "--qr", "png=code.png"]),
        ("pskc", "python-pskc", ["import", "pskc", "/dev/null", "--user", ME]),
        ("pskc", "python-pskc", ["export", ME, "--format", "pskc"]),
    ],
)
def test_a_missing_extra_is_named_with_the_remedy(site: Site, module: str, package: str, words: list[str]) -> None:
    site.enrol()
    words = [words[0], "--store", str(site.store), *words[1:]]
    script = f"import sys; sys.modules[{module!r}] = None; from pam_totp.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=TREE, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith(f" needs {package} ({how_to_get(package)})\n")
