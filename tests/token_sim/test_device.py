"""The token itself, in virtual time."""

from __future__ import annotations

from tests.token_sim.tokens import APPENDIX_D, press, token


def test_ten_presses_show_the_codes_of_rfc_4226() -> None:
    device = token()
    assert [code for _ in range(10) for code in press(device)] == APPENDIX_D
