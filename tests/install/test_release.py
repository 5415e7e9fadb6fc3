"""Tests of the layout for packages: no login loads parts of two releases, although dpkg replaces files one by one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pam_totp.system import probe
from pam_totp.system.trust import distrust_around
from tests.support.site import TREE

PYTHON = "/usr/bin/python3"


@pytest.fixture
def packaged(tmp_path: Path) -> Path:
    """Install release 1.2 below a temporary prefix, in the layout of a package. Return the prefix."""
    prefix = tmp_path / "usr"
    given = (f"PREFIX={prefix}", "RELEASE=1.2", f"SIM={prefix}/share/token-sim", f"DESTDIR={tmp_path}/root")
    subprocess.run(["make", "-s", "install", *given], cwd=TREE, check=True, capture_output=True)
    (tmp_path / "root" / prefix.relative_to("/")).rename(prefix)
    return prefix


def test_a_release_has_its_code_in_its_folder_and_fixed_paths_to_it(packaged: Path) -> None:
    lib = packaged / "lib/pam_totp"
    fixed = {str(p.relative_to(lib)) for p in lib.rglob("*.py") if "1.2" not in p.parts}
    assert fixed == {f"pam_totp/{name}.py" for name in ("__init__", "pam/helper", "system/enable/watchdog")}
    order = sorted(str(p.relative_to(packaged)) for p in lib.rglob("*.py"))
    assert order.index("lib/pam_totp/pam_totp/__init__.py") == len(order) - 3, (
        "dpkg unpacks the code before __init__.py, which names the folder of the code"
    )
    helper = lib / "pam_totp/pam/helper.py"
    assert probe.helper(PYTHON, str(helper)) is None
    (lib / "1.2/pam_totp/pam/helper_main.py").unlink()
    for compiled in lib.rglob("*.pyc"):
        compiled.unlink()
    assert "helper_main" in str(probe.helper(PYTHON, str(helper))), (
        "the helper loads code only from the folder of its release"
    )


def test_commands_load_their_release_and_token_sim_runs_without_pam_totp(packaged: Path) -> None:
    for command in ("pam-totp", "token-sim"):
        done = subprocess.run([packaged / "bin" / command, "--version"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    lib = packaged / "lib/pam_totp"
    assert not (lib / "1.2/token_sim").exists()
    lib.rename(packaged / "elsewhere")
    made: list[str | Path] = [packaged / "bin/token-sim", "factory", "--count", "1", "--out", packaged / "box"]
    subprocess.run(made, check=True, capture_output=True)
    assert (packaged / "box/seeds.csv").exists()


def test_a_helper_that_starts_during_an_upgrade_loads_the_next_release(packaged: Path) -> None:
    """The upgrade happens after the helper has found the old package, and before the helper loads the modules."""
    lib = packaged / "lib/pam_totp"
    new, lead = lib / "1.3", lib / "pam_totp/__init__.py"
    (lib / "1.2").rename(new)
    old = lib / "1.2/pam_totp/pam"
    old.mkdir(parents=True)
    upgrade = "import os, shutil; os.rename({!r}, {!r}); shutil.rmtree({!r})"
    (lib / "lead").write_text(lead.read_text().replace("/1.2/", "/1.3/"))
    for compiled in lib.rglob("*.pyc"):
        compiled.unlink()
    (old / "__init__.py").write_text(upgrade.format(str(lib / "lead"), str(lead), str(lib / "1.2")))
    assert probe.helper(PYTHON, str(lib / "pam_totp/pam/helper.py")) is None
    assert not (lib / "1.2").exists()
    new.rename(lib / "1.4")
    assert probe.helper(PYTHON, str(lib / "pam_totp/pam/helper.py")) is not None, "the number of attempts is limited"


def test_doctor_checks_the_code_of_the_release_too(packaged: Path) -> None:
    helper = packaged / "lib/pam_totp/pam_totp/pam/helper.py"
    module = packaged / "lib/pam_totp/1.2/pam_totp/core/verify.py"
    owners = {module.stat().st_uid, 0}
    for folder in (packaged, *packaged.parents):
        if not folder.stat().st_mode & 0o1000:
            owners.add(folder.stat().st_uid)
    assert distrust_around(str(helper), owners) is None
    module.chmod(0o666)
    assert str(module) in (distrust_around(str(helper), owners) or "")
