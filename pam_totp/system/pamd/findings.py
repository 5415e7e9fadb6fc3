"""Findings of `doctor`: each has a code for programs and a text for administrators. Pure.

Rules:
- Programs use only `severity` and `code`. `what` and `remedy` are for administrators, and their wording may change.
- A code keeps its meaning from release to release. pam-totp(1) lists every code.
- A finding has one line about the problem and one line about the remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """The severity of a finding."""

    ERROR = "error"  # users are locked out, or log in without a code
    WARNING = "warning"  # users may be locked out, or the second factor is weaker than expected
    NOTE = "note"  # a check was skipped or does not apply yet, or the site has exempted logins


ERROR, WARNING, NOTE = Severity
_MAX_NAMES = 8  # the largest number of names in a finding


class Code(StrEnum):
    """The codes of all findings, in the order of the checks."""

    # check "order": the stack of a service
    SERVICE_NOT_FOUND = "service-not-found"
    SERVICE_NOT_ENABLED = "service-not-enabled"
    STACK_INVALID = "stack-invalid"
    MODULE_IN_WRONG_PHASE = "module-in-wrong-phase"
    REFUSAL_ACCEPTED = "refusal-accepted"
    LOGIN_WITHOUT_CODE = "login-without-code"
    CODE_EXEMPTION = "code-exemption"
    LOGIN_WITHOUT_PASSWORD = "login-without-password"
    PASSWORD_EXEMPTION = "password-exemption"
    LOGIN_IMPOSSIBLE = "login-impossible"
    MODULE_TWICE = "module-twice"
    OTHER_CODE_MODULE = "other-code-module"
    CODE_AFTER_WRONG_PASSWORD = "code-after-wrong-password"
    PROGRAM_ASKS_ONCE = "program-asks-once"
    FORWARDED_PASSWORD_UNCHECKED = "forwarded-password-unchecked"
    PASSWORD_ASKED_TWICE = "password-asked-twice"
    FORWARD_PASS_ENDS_STACK = "forward-pass-ends-stack"
    # check "sshd"
    SSHD_UNAVAILABLE = "sshd-unavailable"
    SSHD_CONFIGURATION_INVALID = "sshd-configuration-invalid"
    SSHD_BYPASSES_PAM = "sshd-bypasses-pam"
    # check "users"
    USERS_NOT_CHECKED = "users-not-checked"
    ENROLMENT_UNKNOWN = "enrolment-unknown"
    USER_WITHOUT_TOKEN = "user-without-token"
    NO_USER_WITH_TOKEN = "no-user-with-token"
    USERS_WITHOUT_TOKEN = "users-without-token"
    USERS_WITHOUT_CODE = "users-without-code"
    HOME_FILE_UNUSABLE = "home-file-unusable"
    TOKENS_ELSEWHERE = "tokens-elsewhere"
    RECORDS_WITHOUT_ACCOUNT = "records-without-account"
    ENROLL_WITHOUT_EFFECT = "enroll-without-effect"
    NULLOK_WITHOUT_HOME = "nullok-without-home"
    SUDO_ASKS_OTHER_USER = "sudo-asks-other-user"
    ROOT_REFUSED_BY_SSHD = "root-refused-by-sshd"
    USER_WITHOUT_KEY = "user-without-key"
    USERS_WITHOUT_KEY = "users-without-key"
    USERS_WITHOUT_PASSWORD = "users-without-password"
    PASSWORD_AS_CODE = "password-as-code"
    # check "changes": the changes by `pam-totp enable`
    RECORD_OF_CHANGE_INVALID = "record-of-change-invalid"
    TRIAL_NOT_ROLLED_BACK = "trial-not-rolled-back"
    CHANGE_LOST = "change-lost"
    # check "module"
    MODULE_FOLDER_NOT_FOUND = "module-folder-not-found"
    MODULE_NOT_FOUND = "module-not-found"
    MODULE_ARCHITECTURE = "module-architecture"
    MODULE_UNTRUSTED = "module-untrusted"
    # check "helper"
    HELPER_UNTRUSTED = "helper-untrusted"
    PACKAGE_UNTRUSTED = "package-untrusted"
    HELPER_FAILS = "helper-fails"
    # check "socket"
    SOCKET_UNTRUSTED = "socket-untrusted"
    SERVICE_NOT_LISTENING = "service-not-listening"
    SERVICE_NOT_ANSWERING = "service-not-answering"
    # check "store"
    STORE_UNREACHABLE = "store-unreachable"
    STORE_MODE = "store-mode"
    STORE_OWNER = "store-owner"
    STORE_OWNED_BY_ROOT = "store-owned-by-root"
    STORE_CLOSED = "store-closed"
    STORE_FILE_OWNER = "store-file-owner"
    STORE_FILE_MODE = "store-file-mode"
    STORE_FILE_LINK = "store-file-link"
    STORE_FILE_IMMUTABLE = "store-file-immutable"
    STORE_FULL = "store-full"
    STORE_READ_ONLY = "store-read-only"
    STORE_NOT_CHECKED = "store-not-checked"
    RECORD_UNREADABLE = "record-unreadable"
    STORE_DEFECT = "store-defect"
    STORE_NOT_IN_PLACE = "store-not-in-place"
    STORE_RESTORED = "store-restored"
    # check "store": a database
    DATABASE_LIBRARY = "database-library"
    DATABASE_PASSWORD = "database-password"
    DATABASE_TABLES = "database-tables"
    DATABASE_OUTDATED = "database-outdated"
    DATABASE_RESTORED = "database-restored"
    DATABASE_EPOCH = "database-epoch"
    DATABASE_NOT_REPLICATED = "database-not-replicated"
    DATABASE_REFUSED = "database-refused"
    DATABASE_TORN_PAGES = "database-torn-pages"
    DATABASE_STANDBYS_HIDDEN = "database-standbys-hidden"
    DATABASE_NO_STANDBY = "database-no-standby"
    DATABASE_ONE_STANDBY = "database-one-standby"
    DATABASE_TIMEOUT = "database-timeout"
    DATABASE_POOLER = "database-pooler"
    DATABASE_CLOCK = "database-clock"
    DATABASE_SLOW = "database-slow"
    PATRONI_NOT_CHECKED = "patroni-not-checked"
    PATRONI_NOT_STRICT = "patroni-not-strict"
    # check "seal": the secrets of a store are encrypted
    SEAL_NOT_CHECKED = "seal-not-checked"
    SEAL_KEY_MISSING = "seal-key-missing"
    SEAL_LIBRARY = "seal-library"
    SEAL_NOT_EXPORTED = "seal-not-exported"
    SEAL_UNFINISHED = "seal-unfinished"
    SEAL_NOT_GIVEN = "seal-not-given"
    # check "settings"
    SITE_FILE_INVALID = "site-file-invalid"
    ARGUMENTS_INVALID = "arguments-invalid"
    HOOK_INVALID = "hook-invalid"
    DESK_INVALID = "desk-invalid"
    # check "clock"
    CLOCK_NOT_SYNCHRONISED = "clock-not-synchronised"
    # check "member": a host that asks authorities
    MEMBER_NOT_CHECKED = "member-not-checked"
    SERVICE_WITHOUT_NETWORK = "service-without-network"
    MEMBER_FILE = "member-file"
    MEMBER_CREDENTIALS = "member-credentials"
    MEMBER_CERTIFICATE = "member-certificate"
    MEMBER_REFUSED = "member-refused"
    AUTHORITY_UNREACHABLE = "authority-unreachable"
    AUTHORITY_SLOW = "authority-slow"
    MEMBER_CLOCK = "member-clock"
    MEMBER_LOCAL_USERS = "member-local-users"
    BREAK_GLASS_OFF = "break-glass-off"
    BREAK_GLASS_MISSING = "break-glass-missing"
    BREAK_GLASS_FEW = "break-glass-few"
    BREAK_GLASS_OLD = "break-glass-old"
    # check "radius": FreeRADIUS as a member
    RADIUS_NOT_CHECKED = "radius-not-checked"
    RADIUS_VERSION = "radius-version"
    RADIUS_CONFIGURATION = "radius-configuration"
    RADIUS_WITHOUT_CLIENTS = "radius-without-clients"
    RADIUS_CLIENT_UNSAFE = "radius-client-unsafe"
    RADIUS_CREDENTIALS = "radius-credentials"
    RADIUS_AUTHORITY = "radius-authority"
    # check "authority": a host that decides for members
    AUTHORITY_WITHOUT_DATABASE = "authority-without-database"
    AUTHORITY_WITHOUT_ADDRESSES = "authority-without-addresses"
    AUTHORITY_LIBRARY = "authority-library"
    AUTHORITY_FILE = "authority-file"
    AUTHORITY_CERTIFICATE = "authority-certificate"
    AUTHORITY_CA = "authority-ca"
    AUTHORITY_WITHOUT_CA_KEY = "authority-without-ca-key"
    AUTHORITY_NOT_RUNNING = "authority-not-running"
    AUTHORITY_NOT_RELOADED = "authority-not-reloaded"
    AUTHORITY_CLOCK = "authority-clock"
    MEMBERS_NOT_KNOWN = "members-not-known"
    MEMBERS_NOT_JOINED = "members-not-joined"
    MEMBERS_WITHOUT_USERS = "members-without-users"
    GROUP_NOT_FOUND = "group-not-found"
    GROUP_UNUSED = "group-unused"
    # check "portal"
    PORTAL_TABLE_INVALID = "portal-table-invalid"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding of the check `check`, with its two lines for administrators."""

    severity: Severity
    check: str
    code: Code
    what: str
    remedy: str


def names(users: Sequence[str]) -> str:
    """Return a text with at most _MAX_NAMES of the names in `users`, and the number of the others."""
    more = len(users) - _MAX_NAMES
    return ", ".join(users[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings of severity ERROR."""
    return [f for f in findings if f.severity == ERROR]
