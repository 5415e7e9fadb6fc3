"""The pages for the password and the code, and two pages that require both: a private page and the admin site."""

from django.contrib import admin
from django.contrib.auth.decorators import login_required
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import path
from django.views.decorators.debug import sensitive_post_parameters
from django_otp import devices_for_user
from django_otp import login as otp_login
from django_otp.admin import OTPAdminSite
from django_otp.decorators import otp_required

admin.site.__class__ = OTPAdminSite


@sensitive_post_parameters("code")
@login_required
def code(request: HttpRequest) -> HttpResponse:
    """Ask for a code, codes in a row, or a recovery code, and show the private page after a right answer."""
    if request.method == "POST":
        device = next(iter(devices_for_user(request.user)), None)
        if device is not None and device.verify_token(request.POST.get("code", "")):
            otp_login(request, device)
            request.session.cycle_key()
            return redirect("private")
    return render(request, "code.html", {"refused": request.method == "POST"})


@otp_required(login_url="code")
def private(request: HttpRequest) -> HttpResponse:
    return render(request, "private.html")


urlpatterns = [
    path("login/", LoginView.as_view(template_name="login.html"), name="login"),
    path("code/", code, name="code"),
    path("logout/", LogoutView.as_view(next_page="login"), name="logout"),
    path("admin/", admin.site.urls),
    path("", private, name="private"),
]
