"""Programs for people who work on pam_totp. Nothing that is installed imports them."""
