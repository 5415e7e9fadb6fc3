"""Tests of the methods that the backend and the device inherit: each is overridden, or listed as harmless.

Rules:
- A new release of Django or django-otp can add a method that accepts a user without a code. The test then fails until
  the lists contain the name of the method, with a reason.
- The lists contain the methods of Django 4.2, 5.2 and 6.1 with django-otp 1.5 and 1.7. The installed versions can lack
  some of these methods.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.django.conftest import PASSWORD
from tests.support.site import ME

LOADS = "loads the user of a session that exists; checks is_active"
PERMITS = "reads permissions of a signed-in user"
READS = "reads fields or rows, which contain no key of a token"
WRITES = "writes the row of the device, which contains no key of a token"
VALIDATES = "validates the fields of a form"
IS_ERROR = "a class of errors, or options of the model"

BACKEND = {
    **dict.fromkeys(("get_user", "aget_user"), LOADS),
    **dict.fromkeys(("get_all_permissions", "aget_all_permissions"), PERMITS),
    **dict.fromkeys(("get_group_permissions", "aget_group_permissions"), PERMITS),
    **dict.fromkeys(("get_user_permissions", "aget_user_permissions"), PERMITS),
    **dict.fromkeys(("has_module_perms", "ahas_module_perms", "has_perm", "ahas_perm", "with_perm"), PERMITS),
    "user_can_authenticate": "returns False for an inactive user; authenticate calls it",
}
DEVICE = {
    "generate_challenge": "does nothing: the user's token shows the code",
    "generate_is_allowed": "concerns generate_challenge only",
    "is_interactive": "returns False, because there is no challenge",
    **dict.fromkeys(("from_persistent_id", "afrom_persistent_id", "model_label", "from_db"), READS),
    **dict.fromkeys(("refresh_from_db", "arefresh_from_db", "get_deferred_fields", "serializable_value"), READS),
    "prepare_database_save": READS,
    **dict.fromkeys(("asave", "save_base", "delete", "adelete"), WRITES),
    **dict.fromkeys(("clean", "clean_fields", "full_clean", "validate_constraints", "validate_unique"), VALIDATES),
    **dict.fromkeys(("check", "get_constraints", "date_error_message", "unique_error_message"), VALIDATES),
    **dict.fromkeys(("DoesNotExist", "MultipleObjectsReturned", "NotUpdated", "Meta"), IS_ERROR),
}


def public_methods(thing: type) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_") and callable(getattr(thing, name))}


@pytest.mark.usefixtures("_django")
def test_every_inherited_method_of_the_backend_has_a_reason() -> None:
    from pam_totp.django.backends import PamBackend

    assert public_methods(PamBackend) - set(BACKEND) == {"authenticate", "aauthenticate", "fields_of_new_user"}
    assert {"authenticate", "aauthenticate"} <= set(vars(PamBackend)), "both are overridden"


@pytest.mark.usefixtures("_django")
def test_every_inherited_method_of_the_device_has_a_reason() -> None:
    from pam_totp.django.models import HostDevice

    own = {"verify_token", "verify_code", "verify_is_allowed", "save"}
    assert public_methods(HostDevice) - set(DEVICE) == own
    assert own <= set(vars(HostDevice)), "all are overridden"


def test_an_asynchronous_sign_in_asks_pam(project: Any) -> None:
    from asgiref.sync import async_to_sync
    from django.contrib.auth import get_user_model

    from pam_totp.django.backends import PamBackend
    from pam_totp.django.models import HostDevice

    user = get_user_model().objects.create_user(ME, password="stale")
    sign_in = async_to_sync(PamBackend().aauthenticate)
    assert sign_in(None, username=ME, password="stale") is None, "Django's own password has no effect"
    assert sign_in(None, username=ME) is None
    assert HostDevice.objects.count() == 0
    assert sign_in(None, username=ME, password=PASSWORD) == user
    assert HostDevice.objects.count() == 1
