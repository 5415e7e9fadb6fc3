"""What the web's tests share."""

from __future__ import annotations

import pytest

from tests.site import Site
from tests.web.kit import Portal


@pytest.fixture
def portal(site: Site) -> Portal:
    """The portal in this process, without limits on tries."""
    return Portal(site)
