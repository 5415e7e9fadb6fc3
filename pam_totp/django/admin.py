"""The admin site's pages for devices."""

from __future__ import annotations

from django.contrib import admin

from pam_totp.django.accounts import account_field
from pam_totp.django.models import HostDevice


@admin.register(HostDevice)
class HostDeviceAdmin(admin.ModelAdmin):  # type: ignore[misc]
    """The list of devices, with search by the name of the account."""

    fields = ("user",)  # each other field has a single permitted value
    list_display = ("user",)
    search_fields = (f"user__{account_field()}",)
    raw_id_fields = ("user",)
