"""Configuration and checks of the host: PAM service files, sshd's settings, and rehearsals of logins.

Rules:
- This package never reads a token's key as root. A child process with the rights of the store's owner lists the
  enrolled users.
- `enable` reports the users that a change would lock out before it changes a file, as far as this host knows the
  enrolled users.
- A roll-back works without free disk space, network or terminal.
"""
