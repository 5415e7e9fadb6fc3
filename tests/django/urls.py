"""The URLs of the example project, and those of django-two-factor-auth."""

from __future__ import annotations

from django.urls import include, path
from two_factor.urls import urlpatterns as two_factor

from examples.django_site.urls import urlpatterns as example

urlpatterns = [*example, path("two-factor/", include(two_factor))]
