"""pam_totp: one-time codes as a second factor for SSH, sudo and every other program that uses PAM."""

__version__ = "0.1.0"
