"""PAM modules, and the causes of their results in the phase auth. Pure.

Rules:
- The attacker of a second factor knows the user's password, and lacks the user's other factors.
- A module that is missing from these tables is free: the attacker may get any result from it.
- The table of results lists modules that return the same results at every login. A test compares the table with
  libpam.
"""

from __future__ import annotations

from enum import StrEnum

from pam_totp.system.pamd.stack import MODULE, Rule


class Kind(StrEnum):
    """The cause of a module's result."""

    OURS = "ours"  # pam_totp.so
    PASSWORD = "password"  # the user's password, which the attacker knows
    FACTOR = "factor"  # another factor: a fingerprint, a hardware key, a code of another module
    CONDITION = "condition"  # the user, the group, the network or the time, which the attacker cannot choose
    PROGRAM = "program"  # a program or script: its result is unpredictable
    FREE = "free"  # every other cause


def _names(words: str) -> frozenset[str]:
    return frozenset(f"pam_{word}.so" for word in words.split())


PASSWORD_MODULES = _names(
    "unix sss ldap krb5 winbind userdb pwdfile systemd_home radius tacplus mysql pgsql extrausers tcb kanidm himmelblau"
)
# Modules that ask for a code too. `enable` offers to replace their lines.
CODE_MODULES = _names("google_authenticator oath")
# A module that accepts only root: root becomes another user without a prompt. Distributions use this module in su.
ROOT_MODULE = "pam_rootok.so"
_FACTORS = CODE_MODULES | _names(
    "fprintd u2f yubico duo securid ssh_agent_auth ssh pkcs11 p11 poldi usb howdy facial otpw opie skey barada"
)
_CONDITIONS = _names(
    "access succeed_if listfile wheel localuser usertype nologin securetty shells sepermit rhosts timestamp geoip "
    "selinux_permit"  # the name of pam_sepermit in gdm's file on Fedora
) | {ROOT_MODULE}
_PROGRAMS = _names("exec script python perl lua")
_KINDS = {
    MODULE: Kind.OURS,
    **dict.fromkeys(PASSWORD_MODULES, Kind.PASSWORD),
    **dict.fromkeys(_FACTORS, Kind.FACTOR),
    **dict.fromkeys(_CONDITIONS, Kind.CONDITION),
    **dict.fromkeys(_PROGRAMS, Kind.PROGRAM),
}

_IGNORED = "env faildelay group issue keyinit mail warn"
# These modules have no function for the phase auth, so libpam returns module_unknown.
_MISSING = "limits loginuid mkhomedir motd namespace pwhistory setquota systemd time tty_audit umask xauth"
CONSTANT_RESULTS = {
    "pam_deny.so": ("auth_err",),
    "pam_permit.so": ("success",),
    "pam_echo.so": ("success", "ignore"),  # ignore under PAM_SILENT, as in sudo
    **dict.fromkeys(_names(_IGNORED), ("ignore",)),
    **dict.fromkeys(_names(_MISSING), ("module_unknown",)),
}


def kind(rule: Rule) -> Kind:
    """Return the cause of the results of the module that `rule` names."""
    return _KINDS.get(rule.module, Kind.FREE)
