"""Programs that do not show every prompt to the user, by the name of their PAM service. Pure.

Rules:
- A program is listed here only if its source or a test shows how it answers prompts.
- sshd is missing here: its settings decide (PasswordAuthentication).
"""

from __future__ import annotations

# Screen lockers, which run as the user: of the module's line, only the arguments about the prompt apply.
LOCKERS = frozenset(("i3lock", "swaylock"))
# One field for the user name and one for the password: every prompt gets the password as its answer.
ONE_ANSWER = frozenset(
    (
        *("vsftpd", "proftpd", "pure-ftpd"),
        *("dovecot", "imap", "pop", "smtp", "sieve"),  # the last four through saslauthd
        *("cups", "squid", "radiusd", "postgresql", "xrdp-sesman"),
        *LOCKERS,
    )
)
# The first prompt gets the password of the sign-in page. The page shows later prompts.
FIRST_ANSWER = frozenset(("cockpit",))
# These programs only run jobs or start sessions: they use the phases account and session, and never ask for a password.
NEVER_ASK = frozenset(("cron", "crond", "atd", "systemd-user", "runuser", "runuser-l"))
