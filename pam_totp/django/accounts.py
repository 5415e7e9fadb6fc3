"""Public: the account on this host that belongs to a Django user.

The name of the account is the user's name (`USERNAME_FIELD` of the user model), unless PAM_TOTP_ACCOUNT_FIELD names
another field. Users who sign in by an e-mail address, for example, need such a field.
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth import get_user_model

from pam_totp.django import conf


def account_field() -> str:
    """Return the name of the field of the user model that contains the name of the account."""
    return str(conf.get("PAM_TOTP_ACCOUNT_FIELD") or get_user_model().USERNAME_FIELD)


def account_of(user: Any) -> str:
    """Return the name of the user's account, or an empty string if the user has no account."""
    return str(getattr(user, account_field()) or "")


def account_named(name: str) -> str:
    """Return the account of the user who signs in with `name`, the name of an account or of a Django user.

    These names differ only with PAM_TOTP_ACCOUNT_FIELD. An account's name takes precedence.
    """
    users = get_user_model()._default_manager
    if not conf.get("PAM_TOTP_ACCOUNT_FIELD") or users.filter(**{account_field(): name}).exists():
        return name
    try:
        return account_of(users.get_by_natural_key(name)) or name
    except get_user_model().DoesNotExist:
        return name


def find_user(account: str) -> Any:
    """Return the Django user of the account. Raise the model's DoesNotExist if no user has the account.

    The lookup may ignore case, so compare the result with `account_of`.
    """
    users = get_user_model()._default_manager
    if conf.get("PAM_TOTP_ACCOUNT_FIELD"):
        return users.get(**{account_field(): account})
    return users.get_by_natural_key(account)
