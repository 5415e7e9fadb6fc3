"""Public: the second factor of this host for Django applications (extra `django`).

    INSTALLED_APPS += ["django_otp", "pam_totp.django"]
    MIDDLEWARE += ["django_otp.middleware.OTPMiddleware"]
    AUTHENTICATION_BACKENDS = ["pam_totp.django.backends.PamBackend"]

The django-otp device asks the service on this host. A code that was used at ssh or sudo is therefore refused in
Django. A code that was used in Django is refused at ssh and sudo.
"""
