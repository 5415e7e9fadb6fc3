"""Public: the page that asks a user for a code after the password.

path("code/", CodeView.as_view(), name="code")      # with OTP_LOGIN_URL = "code"
"""

from __future__ import annotations

from typing import Any

from django.contrib.auth.views import LoginView, redirect_to_login
from django.http import HttpResponseRedirect
from django_otp import login as otp_login

from pam_totp.django import conf
from pam_totp.django.forms import CodeForm


class CodeView(LoginView):  # type: ignore[misc]
    """The page that asks for a code, codes in a row or a recovery code, and then redirects to the page in `next`.

    The field requests the keyboard of digits on a phone, or the keyboard of letters if the query has `recovery`.
    """

    authentication_form = CodeForm
    template_name = "pam_totp/code.html"

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        if not request.user.is_authenticated:
            return redirect_to_login(request.get_full_path())
        return super().dispatch(request, *args, **kwargs)

    def get_context_data(self, **kwargs: Any) -> dict[str, Any]:
        portal = {"pam_totp_portal_url": conf.get("PAM_TOTP_PORTAL_URL")}
        return {**super().get_context_data(**kwargs), **portal, "recovery": "recovery" in self.request.GET}

    def form_valid(self, form: CodeForm) -> HttpResponseRedirect:
        otp_login(self.request, form.device)
        self.request.session.cycle_key()  # a copy of the cookie from before the code gives no access
        return HttpResponseRedirect(self.get_success_url())
