"""Start the measurement of a process. In the copy of the tree for `make cover-all`, this is imported first."""

import os
from types import CodeType

import coverage

LIBRARY = os.path.dirname(os.path.abspath(__file__))
FOUND = {"COVERAGE_PROCESS_START": f"{LIBRARY}/coverage.ini", "COVERAGE_FILE": f"{os.path.dirname(LIBRARY)}/data/data"}

os.environ.update(FOUND)
coverage.process_startup()
for name in FOUND:  # the measurement does not change the environment
    del os.environ[name]


def code(entry: str, file: str) -> CodeType:
    """Return the code of an original file of the tree, as if it were in `file`."""
    with open(f"{LIBRARY}/originals/{entry}", encoding="utf-8") as original:
        return compile(original.read(), file, "exec")
