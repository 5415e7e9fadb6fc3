"""Starts the measurement of a process; the copy of the tree that `make cover-all` tests imports this first."""

import os
from types import CodeType

import coverage

LIBRARY = os.path.dirname(os.path.abspath(__file__))
FOUND = {"COVERAGE_PROCESS_START": f"{LIBRARY}/coverage.ini", "COVERAGE_FILE": f"{os.path.dirname(LIBRARY)}/data/data"}

os.environ.update(FOUND)
coverage.process_startup()
for name in FOUND:  # nobody's environment is another one for being measured
    del os.environ[name]


def code(entry: str, file: str) -> CodeType:
    """The original of a file of the tree, as if it were in `file`."""
    with open(f"{LIBRARY}/originals/{entry}", encoding="utf-8") as original:
        return compile(original.read(), file, "exec")
