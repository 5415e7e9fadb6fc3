"""Tests of the portal and of `pam_totp.client`, which Django uses, with a sealed store."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp import client
from pam_totp.core.secretfile import base32
from pam_totp.store import seal_key
from pam_totp.store.file import FileStore
from pam_totp.store.keyring import Keyring, State, serialize_keyring
from pam_totp.store.seal import Sealer
from tests.conftest import with_mounts
from tests.support.site import KEY, ME, Site, codes, fob
from tests.web.kit import Portal, code_of_app, key_on_page
from tests.web.test_tokens import open_scan_page

KEYRING = Keyring(current=b"1" * 32)


def sealed(site: Site) -> FileStore:
    return FileStore(str(site.store), codec=Sealer(KEYRING))


def test_a_user_enrols_a_phone_in_a_sealed_store_and_signs_in(site: Site) -> None:
    portal = Portal(site, store=sealed(site))
    browser = portal.signed_in()
    key = key_on_page(open_scan_page(browser))
    assert browser.send(code=code_of_app(key, portal.wall)).notice == "phone is in use now."
    assert base32(key) not in site.path("alice").read_text()
    second = portal.browser()
    second.sign_in()
    assert second.send(proof=code_of_app(key, portal.wall, 1)).heading == "Your tokens"


@pytest.fixture
def keyring(site: Site) -> Iterator[Path]:
    """Write the keyring of this namespace, and yield its path."""
    file = Path(seal_key.FILE)
    file.parent.mkdir(exist_ok=True)  # the folder of an earlier test can exist
    file.write_bytes(serialize_keyring(KEYRING.with_store(str(site.store), State.SEALED)))
    file.chmod(0o400)
    yield file
    shutil.rmtree(seal_key.FOLDER)


@with_mounts
@pytest.mark.usefixtures("keyring")
def test_a_client_of_the_service_checks_codes_of_a_sealed_store(site: Site) -> None:
    site.start()
    sealed(site).update(ME, lambda record: (record.with_token(fob()), None), create=True)
    assert base32(KEY) not in site.path().read_text()
    assert client.verify(ME, codes(0), service="web", path=str(site.socket))
    assert not client.verify(ME, codes(0), service="web", path=str(site.socket))
