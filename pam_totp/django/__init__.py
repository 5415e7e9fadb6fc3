"""Django applications that share the second factor of the host (extra `django`).

    INSTALLED_APPS += ["django_otp", "pam_totp.django"]
    MIDDLEWARE += ["django_otp.middleware.OTPMiddleware"]
    AUTHENTICATION_BACKENDS = ["pam_totp.django.backends.PamBackend"]

The device asks the service on this host, so that a code is used up wherever it was used: at ssh, sudo, or here.
"""
