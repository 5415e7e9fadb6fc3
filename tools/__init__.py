"""Programs for developers of pam_totp. Installed code does not import them."""
