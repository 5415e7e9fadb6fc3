"""Public: an admin site that asks for the password, then for a code of this host.

    admin.site.__class__ = HostAdminSite

Rules:
- The page for the code has no choice of devices, because a user has one device of pam_totp.
- The address of both pages is that of `login`. The state of the session selects the page.
- Other types of devices cannot be used at these pages. A user who gave a code of such a device elsewhere may use
  the site.
"""

from __future__ import annotations

from typing import Any

from django.contrib.admin import AdminSite
from django.contrib.auth import REDIRECT_FIELD_NAME
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views.decorators.cache import never_cache

from pam_totp.django.views import CodeView

try:
    from django.contrib.auth.decorators import login_not_required
except ImportError:  # Django 4.2 and 5.0 have no LoginRequiredMiddleware

    def login_not_required(view_func: Any) -> Any:
        return view_func


class HostAdminSite(AdminSite):  # type: ignore[misc]
    """An admin site for staff users who gave the password and a code."""

    code_template = "pam_totp/admin_code.html"

    def has_permission(self, request: Any) -> bool:
        return bool(super().has_permission(request) and request.user.is_verified())

    @method_decorator(never_cache)  # type: ignore[untyped-decorator]
    @login_not_required  # type: ignore[untyped-decorator]
    def login(self, request: Any, extra_context: dict[str, Any] | None = None) -> Any:
        """Show the page for the password or, to a staff user who gave the password, the page for the code."""
        if not super().has_permission(request) or request.user.is_verified():
            return super().login(request, extra_context)
        request.current_app = self.name
        context = {**self.each_context(request), "title": "Your code", "subtitle": None, **(extra_context or {})}
        if REDIRECT_FIELD_NAME not in request.GET and REDIRECT_FIELD_NAME not in request.POST:
            context[REDIRECT_FIELD_NAME] = reverse("admin:index", current_app=self.name)
        return CodeView.as_view(template_name=self.code_template, extra_context=context)(request)
