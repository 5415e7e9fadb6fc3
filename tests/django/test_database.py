"""Tests of Django with a service that has its records in PostgreSQL."""

from __future__ import annotations

from typing import Any

from pam_totp.core.record import UserRecord
from pam_totp.store.postgres import PostgresStore
from tests.support.cluster import with_postgresql
from tests.support.site import ME, PATIENCE, Site, codes, fob


@with_postgresql
def test_a_code_is_accepted_once_from_a_store_in_a_database(stopped: Any, site: Site, database: str) -> None:
    from django.contrib.auth import get_user_model

    from pam_totp.django.models import HostDevice

    store = PostgresStore(database, wait=PATIENCE)
    store.update(ME, lambda _: (UserRecord(user=ME, tokens=(fob(),)), None), create=True)
    site.start("--store", database)
    device = HostDevice(user=get_user_model().objects.create_user(ME))
    assert [device.verify_token(code) for code in (codes(0), codes(0), codes(1))] == [True, False, True]
    assert store.read(ME).tokens[0].next_factor == 2
