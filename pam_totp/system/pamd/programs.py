"""Programs that do not show every prompt to the user, by the name of their PAM service. Pure.

Rules:
- A program is listed here only if its source or a test shows how the program answers prompts.
- sshd is not listed here, because its answers depend on the setting PasswordAuthentication.
"""

from __future__ import annotations

# Screen lockers, which run as the user: pam_totp ignores the arguments of their lines, except those about the prompt.
LOCKERS = frozenset(("i3lock", "swaylock"))
# Programs that ask the user only for a name and a password: they answer every prompt with the password.
ONE_ANSWER = frozenset(
    (
        *("vsftpd", "proftpd", "pure-ftpd"),
        *("dovecot", "imap", "pop", "smtp", "sieve"),  # the last four through saslauthd
        *("cups", "squid", "radiusd", "postgresql", "xrdp-sesman"),
        *LOCKERS,
    )
)
# Programs that answer the first prompt with the password of the sign-in page. The page shows later prompts.
FIRST_ANSWER = frozenset(("cockpit",))
# These programs only run jobs or start sessions: they use the phases account and session, and never ask for a password.
NEVER_ASK = frozenset(("cron", "crond", "atd", "systemd-user", "runuser", "runuser-l"))
