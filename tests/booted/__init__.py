"""Tests on a booted machine, which runs systemd as process 1 and the unchanged units of pam_totp."""
