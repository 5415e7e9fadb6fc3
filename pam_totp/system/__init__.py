"""The host around the module: files in pam.d, sshd, a rehearsal of logins, and checks of all of it.

Rules:
- Nothing in this package reads a key.
- A user who might be locked out is named before anything changes.
- A change can be rolled back without free disk space, without a network, and without the terminal it was started from.
"""
