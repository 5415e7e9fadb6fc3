"""What all the tests reach of both packages, lines and branches, whichever process runs them: `make cover-all`.

The law:
- what is shipped has nothing for this: the tests run in a copy of the tree, in which whatever imports pam_totp or
  token_sim imports `measured` first, and that finds what it needs beside itself;
- so no process escapes: the helper (`python3 -I -S`, with an empty environment), what sshd and sudo start, what runs in
  a namespace, on an installed copy, or under another account. What is killed or cannot write leaves no trace;
- of relay.c it says what the relay's own tests reach, by gcov;
- tests marked `bare` are left out: they look at a process's system calls, modules, memory or time, or at the relay,
  which is another one here.

python -m tests.measure [PYTEST ARGUMENT...]

Exit status 0 where the tests held, and they reached 90 % of lines and branches together (tests/measure/coverage.ini),
and of the lines of relay.c.
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

from tests.measure import relay

TREE = Path(__file__).resolve().parents[2]
DATA = TREE / "build" / "coverage"
ENTRIES = (
    "pam_totp/__init__.py",
    "pam_totp/pam/helper.py",
    "pam_totp/system/enable/watchdog.py",
    "token_sim/__init__.py",
)


def copy_tree(tree: Path) -> Path:
    """A copy of this tree, with the virtual environment of the original."""
    shutil.copytree(TREE, tree, ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", ".*_cache"))
    (tree / ".venv").symlink_to(TREE / ".venv")
    return tree


def make_measured(tree: Path, library: Path) -> None:
    """Have whatever imports the copy's packages measured, wherever it runs."""
    for entry in ENTRIES:
        measure(tree, entry, library)
    spare_helpers(tree / "pam_totp" / "pam" / "relay.c")


def measure(tree: Path, entry: str, library: Path) -> None:
    """Put what starts the measurement in the file's place. The file itself is run from the library then, by its own
    name: what is under way when a measurement starts is not in it."""
    kept = library / "originals" / entry
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(tree / entry, kept)
    start = f"import sys; sys.path.append({str(library)!r}); import measured; sys.path.pop()"
    (tree / entry).write_text(f"{start}\nexec(measured.code({entry!r}, __file__))\n")


def spare_helpers(relay: Path) -> None:
    """Have the relay wait for a helper that has answered, where it would kill it."""
    source = relay.read_text()
    assert source.count("SIGKILL") == 1
    relay.write_text(source.replace("SIGKILL", "0"))


def make_library(folder: Path) -> None:
    """What a measured process needs, where any account can read it, and a folder where any can leave what it saw. Both
    are within the tree, which the machine of the real services has too."""
    library = folder / "library"
    shutil.copytree(Path(coverage.__file__).parent, library / "coverage", ignore=shutil.ignore_patterns("htmlfiles"))
    shutil.copy(TREE / "tests" / "measure" / "measured.py", library)
    shutil.copy(TREE / "tests" / "measure" / "coverage.ini", library)
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
    """Add up what the processes have left, and say it; whether it is as much as tests/measure/coverage.ini demands. It
    is kept in build/coverage, by the lines of the copy: this tree may have been edited meanwhile."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    print(f"{len(list(data.iterdir()))} processes measured", flush=True)
    os.chdir(tree)
    packages = ["pam_totp", "token_sim"]
    whole = coverage.Coverage(str(DATA / "data"), config_file="tests/measure/coverage.ini", source=packages)
    whole.start()  # and stopped at once: modules that nothing has imported count, too
    whole.stop()
    with warnings.catch_warnings():  # of those that were killed while they wrote
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
