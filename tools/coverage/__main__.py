"""`make cover-all`: a measurement of the lines and branches of both packages that the tests reach in any process.

Rules:
- The installed code has no support for the measurement. The tests run in a copy of the tree, in which every import of
  pam_totp or token_sim first imports `measured`. That module depends only on files in its folder.
- The measurement covers the helper (`python3 -I -S`, with an empty environment), sshd and sudo. It also covers
  processes of a namespace, an installed copy, or another account. Killed processes leave no data.
- For relay.c, gcov reports the lines that the relay's own tests reach.
- The run skips tests marked `bare`. The measurement changes the system calls, modules, memory and time of a process,
  and the build of the relay.

python -m tools.coverage [PYTEST ARGUMENT...]

The exit status is 0 if the tests pass and reach both minimums. These are 90 % of lines and branches together
(tools/coverage/coverage.ini), and 90 % of the lines of relay.c.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import coverage
from coverage.exceptions import CoverageWarning

from tools.coverage import relay

TREE = Path(__file__).resolve().parents[2]
DATA = TREE / "build" / "coverage"
ENTRIES = (
    "pam_totp/__init__.py",
    "pam_totp/pam/helper.py",
    "pam_totp/system/enable/watchdog.py",
    "token_sim/__init__.py",
)


def copy_tree(tree: Path) -> Path:
    """Copy this tree to `tree`, with a link to this tree's virtual environment. Return `tree`."""
    shutil.copytree(TREE, tree, ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache"))
    (tree / ".venv").symlink_to(TREE / ".venv")
    return tree


def make_measured(tree: Path, library: Path) -> None:
    """Change the packages of the copy `tree` so that each process that imports them measures itself."""
    for entry in ENTRIES:
        measure(tree, entry, library)
    spare_helpers(tree / "pam_totp" / "pam" / "relay.c")


def measure(tree: Path, entry: str, library: Path) -> None:
    """Replace the file `entry` with a stub, which starts the measurement, then runs the original file from `library`.

    A separate stub is necessary, because only code after the start is measured.
    """
    kept = library / "originals" / entry
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tree / entry, kept)
    start = f"import sys; sys.path.append({str(library)!r}); import measured; sys.path.pop()"
    (tree / entry).write_text(f"{start}\nexec(measured.code({entry!r}, __file__))\n")


def spare_helpers(relay: Path) -> None:
    """Change the relay: it waits for the helper's exit after the dialogue, instead of killing the helper."""
    source = relay.read_text()
    assert source.count("SIGKILL") == 2
    relay.write_text(source.replace("SIGKILL", "0"))


def make_library(folder: Path) -> None:
    """Create a library that every account can read, and a data folder to which every account can write.

    Both are in the copy of the tree, because the test machine of tests/services contains that copy.
    """
    library = folder / "library"
    shutil.copytree(Path(coverage.__file__).parent, library / "coverage", ignore=shutil.ignore_patterns("htmlfiles"))
    shutil.copy(TREE / "tools" / "coverage" / "measured.py", library)
    shutil.copy(TREE / "tools" / "coverage" / "coverage.ini", library)
    compileall.compile_dir(library, quiet=1)
    (folder / "data").mkdir()
    (folder / "data").chmod(0o1777)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="pam_totp-measured-") as made:
        folder = Path(made)
        folder.chmod(0o755)
        held = relay.cover(copy_tree(folder / "relay"))
        tree = copy_tree(folder / "tree")
        measured = tree / "build" / "measured"
        make_library(measured)
        make_measured(tree, measured / "library")
        environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(["make", "--no-print-directory", "build/pam_totp.so"], cwd=tree, check=True)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not bare", "--timeout=400", *sys.argv[1:]]
        tests = subprocess.run(command, cwd=tree, env=environment, check=False).returncode
        shutil.copytree(measured / "library" / "originals", tree, dirs_exist_ok=True)
        enough = report(tree, measured / "data")
        return 0 if held and tests == 0 and enough else 1


def report(tree: Path, data: Path) -> bool:
    """Combine and print the data of all processes. Return True if the coverage reaches the minimum in coverage.ini.

    The report quotes the lines of the copy, because a developer may edit this tree during the tests.
    """
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    print(f"{len(list(data.iterdir()))} processes measured", flush=True)
    os.chdir(tree)
    packages = ["pam_totp", "token_sim"]
    whole = coverage.Coverage(str(DATA / "data"), config_file="tools/coverage/coverage.ini", source=packages)
    whole.start()  # start and stop: this adds the modules that no test imports
    whole.stop()
    with warnings.catch_warnings():  # the data of killed processes are incomplete
        warnings.simplefilter("ignore", CoverageWarning)
        whole.combine([str(data)])
    whole.save()
    reached = whole.report()
    demanded = whole.get_option("report:fail_under")
    assert isinstance(demanded, float)
    return reached >= demanded


if __name__ == "__main__":
    if sys.argv[1:] in (["-h"], ["--help"]):
        sys.exit(print(__doc__))
    sys.exit(main())
