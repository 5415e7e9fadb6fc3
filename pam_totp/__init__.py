"""pam_totp: one-time codes as a second factor for SSH, sudo and whatever else asks PAM."""

__version__ = "0.1.0"
