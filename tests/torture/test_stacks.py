"""Tests of many random stacks of PAM, in `make torture` only. tests/install contains the short form."""

from __future__ import annotations

from tests.torture.pace import LONG

if LONG:
    from tests.install.test_dispatch import test_the_verdict_of_any_stack_is_that_of_the_real_libpam  # noqa: F401
    from tests.install.test_ways import test_the_real_libpam_has_the_same_ways_without_a_code  # noqa: F401
