"""A fixture with a folder for a store, and the number of examples of the property tests.

`make test` uses the same examples in each run. PAM_TOTP_EXAMPLES multiplies the number of examples, and selects the
examples at random:

PAM_TOTP_EXAMPLES=20 make test ARGS=tests/core      use twenty times as many examples
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("PAM_TOTP_EXAMPLES", "0"))

settings.register_profile(
    "pam_totp",
    derandomize=TIMES == 0,
    max_examples=100 * max(TIMES, 1),
    deadline=None,  # no time limit for an example
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("pam_totp")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "store"
    made.mkdir(mode=0o700)
    return made
