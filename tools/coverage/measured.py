"""The start of the measurement of a process.

The packages in the copy of the tree for `make cover-all` import this module first.
"""

import os
from types import CodeType

import coverage

LIBRARY = os.path.dirname(os.path.abspath(__file__))
FOUND = {"COVERAGE_PROCESS_START": f"{LIBRARY}/coverage.ini", "COVERAGE_FILE": f"{os.path.dirname(LIBRARY)}/data/data"}

os.environ.update(FOUND)
coverage.process_startup()
for name in FOUND:  # restore the environment: the measurement must not change it
    del os.environ[name]


def code(entry: str, file: str) -> CodeType:
    """Return the compiled code of the original file `entry`. Tracebacks show `file` as its file name."""
    with open(f"{LIBRARY}/originals/{entry}", encoding="utf-8") as original:
        return compile(original.read(), file, "exec")
