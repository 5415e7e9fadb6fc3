"""The pages for the password and the code, and two pages that require both: a private page and the admin site."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django_otp.decorators import otp_required

from pam_totp.django.sites import HostAdminSite
from pam_totp.django.views import CodeView

admin.site.__class__ = HostAdminSite


@otp_required
def private(request: HttpRequest) -> HttpResponse:
    return render(request, "private.html")


urlpatterns = [
    path("login/", LoginView.as_view(template_name="login.html"), name="login"),
    path("code/", CodeView.as_view(), name="code"),
    path("logout/", LogoutView.as_view(next_page="login"), name="logout"),
    path("admin/", admin.site.urls),
    path("", private, name="private"),
]
