"""Configure and check the host: files in pam.d, sshd's configuration, and rehearsals of logins.

Rules:
- No code here reads a token's key as root. A child process with the rights of the store's owner lists the enrolled
  users.
- Before a file is changed, the users who might be locked out are listed.
- A roll-back needs no free disk space, no network, and no terminal.
"""
