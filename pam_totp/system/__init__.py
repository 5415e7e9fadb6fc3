"""The host around the module: files in pam.d, sshd, rehearsals of logins, and checks.

Rules:
- Root never reads a key here. A child process with the rights of the store's owner lists the enrolled users.
- Users who might be locked out are named before a file is changed.
- A roll-back needs no free disk space, no network, and no terminal.
"""
