"""The settings of one login: defaults, then the site file, then the module's arguments.

Rules:
1. A setting that is unknown, malformed, out of bounds, given twice or contradictory is an error. An error denies the
   login.
2. An argument overrides `[service.NAME]` of the site file, which overrides `[policy]`, which overrides the default.
3. Only module arguments set the user and the use of an earlier module's answer. `[service.NAME]` may also set
   `forward_pass`, because the service ignores this argument of a program that does not run as root. `[store]` of the
   site file replaces the default store. `[member]` replaces the store by authorities, which have their own policy.
4. `nullok_until` and `nullok_group` are `nullok` with a limit. The limits of an earlier source do not apply if a later
   source sets `nullok` itself.
5. This module reads no file: its input is text, and its output is values.
"""

from __future__ import annotations

from pam_totp.core.address import host_and_port
from pam_totp.core.fields import Rule, Value, boolean, choice, printable, require, whole_number
from pam_totp.core.lean import TYPE_CHECKING, lru_cache
from pam_totp.core.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, ClassVar, TypeVar

    V = TypeVar("V", bound=Value)

SITE_FILE = "/etc/pam_totp.toml"
DEFAULT_STORE = "/var/lib/pam_totp"
CREDENTIALS = f"{DEFAULT_STORE}/.member"  # the folder with the key and the certificates of a member
MAX_MEMBER_WAIT = 8.0  # seconds: the relay waits 10 s for a decision
AUTHORITY_DECIDES = "not allowed on a member: the site file of the authority decides"
_PATH_RULE = "must be an absolute path"
DATABASE = "postgresql://"  # the beginning of the URL of a store in a database
_DATABASE_RULE = f"must be a URL that begins with {DATABASE}, without spaces"
DEFAULT_PROMPT = "One-time code: "
FORWARD_PROMPT = "Password and one-time code: "  # with forward_pass: one answer holds both
NEXT_PROMPT = "Not accepted. Next code: "
MAX_GRACE_PERIOD = 86_400  # seconds: a day
ENROLL = ("off", "ticket")  # the enrolments that a login allows
REDEEM_SERVICE = "pam-totp"  # the service name of `pam-totp enroll --ticket`, which accepts only tickets
NO_ENROLMENT = {"polkit-1"}  # PAM services without enrolment: an agent of polkit shows only one line of a prompt
FIRST_PASS = ("try_first_pass", "use_first_pass", "forward_pass")


class SettingsError(ValueError):
    """The error for an invalid argument or site file. The text names the place and the reason."""


class Settings(Value):
    """The settings of one login. `origins` names the source of each setting that is not a default."""

    policy: Policy
    store: str
    secret: str | None
    prompt: str
    echo: bool
    second_prompt: bool
    nullok: bool
    nullok_until: str | None
    nullok_group: str | None
    first_pass: str | None
    grace_period: int
    user: str | None
    debug: bool
    enroll: str
    origins: Mapping[str, str]
    member: MemberSettings | None = None  # None if the login uses a store of this host

    def nullok_at(self, now: int) -> bool:
        """Return True if `nullok` is in force at the time `now` (Unix seconds)."""
        return self.nullok and (self.nullok_until is None or now < _end_of(self.nullok_until))

    def takes_tickets(self, service: str) -> bool:
        """Return True if an enrolment ticket is valid at the prompt of this login.

        `use_first_pass` shows no prompt, and the prompt of `forward_pass` hides the verdict.
        """
        return self.enroll == "ticket" and self.first_pass in (None, "try_first_pass") and service not in NO_ENROLMENT

    def facts(self) -> dict[str, Any]:
        """Return all settings by name, the policy's first."""
        hidden = {"policy", "origins", "member"}
        if self.member is None:
            facts: dict[str, Any] = {name: getattr(self.policy, name) for name in Policy.RULES}
        else:
            facts = {"authorities": " ".join(self.member.authorities)}
            hidden |= {"store", "secret"}
        return facts | {name: getattr(self, name) for name in self._fields if name not in hidden}


class DatabaseSettings(Value):
    """`[store]` of the site file: the database with the records, and the limits of each process of this host.

    `pool` is the number of connections. `wait` is the time limit of one use of the database, in seconds. A database
    with a lower epoch than `epoch` is an outdated copy, and is not used.
    """

    url: str
    pool: int = 4
    wait: float = 3.0
    epoch: int = 0

    ERROR = SettingsError
    RULES: ClassVar[dict[str, Rule]] = {
        "url": lambda v: None if type(v) is str and is_database(v) and _location(v) is None else _DATABASE_RULE,
        "pool": whole_number(1, 64),
        "wait": lambda v: None if type(v) in (int, float) and 0.5 <= v <= 60 else "must be 0.5 to 60 seconds",
        "epoch": whole_number(0, (1 << 62) - 1),
    }


class MemberSettings(Value):
    """`[member]` of the site file: the authorities that decide on the logins of this host.

    Three limits are in seconds: `connect` for a connection, `patience` until another authority gets the question,
    `answer` for the whole question. The codes at an answer's end have `forward_digits` digits with `forward_pass`.
    """

    authorities: tuple[str, ...]
    certificate: str = f"{CREDENTIALS}/certificate.pem"
    key: str = f"{CREDENTIALS}/key.pem"
    ca: str = f"{CREDENTIALS}/ca.pem"
    connect: float = 1.0
    patience: float = 1.5
    answer: float = 5.0
    centre_down: str = "refuse"
    forward_digits: int = 6

    ERROR = SettingsError
    RULES: ClassVar[dict[str, Rule]] = {
        "authorities": lambda v: _addresses(v, 1),
        "certificate": lambda v: _path(v) if type(v) is str else _PATH_RULE,
        "key": lambda v: _path(v) if type(v) is str else _PATH_RULE,
        "ca": lambda v: _path(v) if type(v) is str else _PATH_RULE,
        "connect": lambda v: _seconds(v, 0.1, MAX_MEMBER_WAIT),
        "patience": lambda v: _seconds(v, 0.1, MAX_MEMBER_WAIT),
        "answer": lambda v: _seconds(v, 0.5, MAX_MEMBER_WAIT),
        "centre_down": choice("refuse", "break-glass"),
        "forward_digits": whole_number(6, 8),
    }

    @property
    def allows_break_glass(self) -> bool:
        """Return True if this host accepts its recovery codes while no authority decides."""
        return self.centre_down == "break-glass"


class AuthoritySettings(Value):
    """`[authority]` of the site file: a host that decides for the members of a fleet.

    `listen` has the addresses on which this host listens, `addresses` those to which members connect (HOST:PORT).
    Members can join or renew their certificates here only if the file `ca_key` exists. A connection may be idle for
    `idle` seconds.
    """

    listen: tuple[str, ...] = ("0.0.0.0:8443",)
    certificate: str = "/etc/pam_totp/authority/authority.pem"
    key: str = "/etc/pam_totp/authority/authority.key"
    ca: str = "/etc/pam_totp/authority/ca.pem"
    ca_key: str = "/etc/pam_totp/authority/ca.key"
    addresses: tuple[str, ...] = ()
    idle: int = 300

    ERROR = SettingsError
    RULES: ClassVar[dict[str, Rule]] = {
        "listen": lambda v: _addresses(v, 1),
        "certificate": lambda v: _path(v) if type(v) is str else _PATH_RULE,
        "key": lambda v: _path(v) if type(v) is str else _PATH_RULE,
        "ca": lambda v: _path(v) if type(v) is str else _PATH_RULE,
        "ca_key": lambda v: _path(v) if type(v) is str else _PATH_RULE,
        "addresses": lambda v: _addresses(v, 0),
        "idle": whole_number(10, 86_400),
    }


class Site(Value):
    """The content of the site file: a value for each of its tables, `[clients]` as account = service."""

    policy: Mapping[str, object]
    services: Mapping[str, Mapping[str, object]]
    clients: Mapping[str, str]
    database: DatabaseSettings | None = None
    member: MemberSettings | None = None
    authority: AuthoritySettings | None = None
    hooks: object = None  # `system.hook` checks this table, because no login needs it
    portal: object = None  # `system.portal_table` checks this table, because no login needs it
    desk: object = None  # `operations.desk` checks this table

    NONE: ClassVar[Site]

    def __hash__(self) -> int:
        return hash(frozenset((*self.policy, *self.services, *self.clients)))


Site.NONE = Site(policy={}, services={}, clients={})


_PATH_RULE = "must be an absolute path"
_MAX_ADDRESSES = 16


def _path(v: str) -> str | None:
    return None if v.startswith("/") and "\0" not in v else _PATH_RULE


def _seconds(v: Any, low: float, high: float) -> str | None:
    return None if type(v) in (int, float) and low <= v <= high else f"must be {low:g} to {high:g} seconds"


def _addresses(v: object, fewest: int) -> str | None:
    is_list = type(v) is tuple and fewest <= len(v) <= _MAX_ADDRESSES
    if isinstance(v, tuple) and is_list and all(type(x) is str and host_and_port(x) is not None for x in v):
        return None
    return f"must be HOST:PORT, or a list of {fewest} to {_MAX_ADDRESSES} of them"


def is_database(location: str) -> bool:
    """Return True if the location of a store is the URL of a database, and False if it is the path of a folder."""
    return location.startswith(DATABASE)


def _location(v: str) -> str | None:
    if is_database(v):
        return None if v.isprintable() and " " not in v else "must be a URL without spaces"
    return _path(v)


def _path_or_none(v: str) -> str | None:
    return None if v == "none" else _path(v)


def _template(v: str) -> str | None:
    """Require the path of a file, which may contain `~` or `${HOME}` and `${USER}`; see `store.home`."""
    home = next((home for home in ("~", "${HOME}") if v.startswith(f"{home}/")), "")
    plain = v.removeprefix(home).replace("${USER}", "user")
    good = plain.startswith("/") and not plain.endswith("/") and plain.isprintable() and not {"$", "~"} & set(plain)
    return (
        None if good else "must be a file's path that begins with /, ~/ or ${HOME}/; ${USER} is the only other variable"
    )


def _date(v: object) -> str | None:
    good = type(v) is str and [len(p) for p in v.split("-")] == [4, 2, 2] and v.isascii()
    numbers = [int(p) for p in v.split("-") if p.isdigit()] if good and type(v) is str else []
    good = len(numbers) == 3 and numbers[0] >= 1970 and 1 <= numbers[1] <= 12 and numbers[2] >= 1
    good = good and numbers[2] <= _DAYS[numbers[1] - 1] - (numbers[1] == 2 and not _is_leap(numbers[0]))
    return None if good else "must be a date from 1970-01-01 on, such as 2026-12-31"


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _end_of(date: str) -> int:
    """Return the end of a day in UTC (Unix seconds). Count a year from March, so that the leap day is the last day."""
    year, month, day = map(int, date.split("-"))
    years, months = (year, month - 3) if month > 2 else (year - 1, month + 9)
    days = day + (153 * months + 2) // 5 + 365 * years + years // 4 - years // 100 + years // 400 - _DAYS_TO_1970
    return (days + 1) * _DAY


_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days of the months of a leap year
_DAYS_TO_1970 = 719_469  # days: makes 1970-01-01 day 0
_DAY = 86_400  # seconds
_NUMBERS: dict[str, Rule] = {**Policy.RULES, "grace_period": whole_number(0, MAX_GRACE_PERIOD)}
_VALUES: dict[str, Rule] = {  # arguments of the form name=value
    **_NUMBERS,
    "prompt": printable,
    "user": printable,
    "nullok_until": _date,
    "nullok_group": printable,
    "enroll": choice(*ENROLL),
    "store": _location,
    "secret": _template,
    "socket": _path_or_none,  # the relay uses `socket`, `helper` and `nodelay`
    "helper": _path,
}
_LISTS = {"authorities", "listen", "addresses"}  # a single text means a list with this entry
_LIMITS = ("nullok_until", "nullok_group")
_SECOND_PROMPT = ("second_prompt", "no_second_prompt")
_FLAGS = ("echo", *_SECOND_PROMPT, "nullok", "nodelay", "debug", *FIRST_PASS)
# The settings that are allowed in [policy] and [service.NAME] of the site file.
_SITE: dict[str, Rule] = {
    **_NUMBERS,
    "prompt": printable,
    "echo": boolean,
    "second_prompt": boolean,
    "nullok": boolean,
    "nullok_until": _date,
    "nullok_group": printable,
    "enroll": choice(*ENROLL),
    "debug": boolean,
    "forward_pass": boolean,  # in [service.NAME] only
}


_TABLES = {"policy", "service", "clients", "store", "authority", "member", "hooks", "portal", "desk"}


@lru_cache(maxsize=1)  # every login reads the file, which seldom changes
def parse_site(text: str) -> Site:
    """Return the settings in `text`, the content of a site file (TOML). Raise SettingsError."""
    import tomllib  # only if a site file exists: the import takes 2 ms

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # deep nesting raises RecursionError, a huge number a plain ValueError
        raise SettingsError(f"{SITE_FILE}: {e}") from None
    unknown = document.keys() - _TABLES
    if unknown:
        raise SettingsError(f"{SITE_FILE}: unknown table {sorted(unknown)[0]!r}")
    policy = _site_table(document.get("policy", {}), "policy")
    if "forward_pass" in policy:
        raise SettingsError(f"{SITE_FILE}: policy.forward_pass: must be set for one service, in [service.NAME]")
    services = {
        name: _site_table(table, f"service.{name}")
        for name, table in _table(document.get("service", {}), "service").items()
    }
    clients = _table(document.get("clients", {}), "clients")
    for account, service in clients.items():
        if type(service) is not str or not service:
            raise SettingsError(f"{SITE_FILE}: clients.{account}: must be the name of a service")
    site = Site(
        policy=policy,
        services=services,
        clients=clients,
        database=table_as(document.get("store"), DatabaseSettings, "store", "url"),
        member=table_as(document.get("member"), MemberSettings, "member", "authorities"),
        authority=table_as(document.get("authority"), AuthoritySettings, "authority"),
        hooks=document.get("hooks"),
        portal=document.get("portal"),
        desk=document.get("desk"),
    )
    _check_tables(site)
    return site


def settings(service: str, arguments: Sequence[str], site: Site = Site.NONE) -> Settings:
    """Return the settings of a login to `service` with these module arguments. Raise SettingsError."""
    return _settings(service, tuple(arguments), site)


@lru_cache(maxsize=64)  # a host has a few services and many logins
def _settings(service: str, arguments: tuple[str, ...], site: Site) -> Settings:
    chosen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    from_arguments = parse_arguments(arguments)
    of_service = site.services.get(service, {})
    if set(FIRST_PASS) & from_arguments.keys():
        of_service = {name: value for name, value in of_service.items() if name != "forward_pass"}
    sources = (
        (f"{SITE_FILE} [policy]", site.policy),
        (f"{SITE_FILE} [service.{service}]", of_service),
        ("argument", from_arguments),
    )
    for origin, source in sources:
        if "nullok" in source:
            for limit in _LIMITS:
                chosen.pop(limit, None)
                origins.pop(limit, None)
        chosen |= source
        origins |= dict.fromkeys(source, origin)
    for alternatives in (FIRST_PASS, _SECOND_PROMPT):
        both = [m for m in alternatives if origins.get(m) == "argument"]
        if len(both) > 1:
            raise SettingsError(f"{both[0]} and {both[1]}: only one is allowed")
    if chosen.pop("no_second_prompt", False):
        chosen["second_prompt"] = False
        origins["second_prompt"] = origins.pop("no_second_prompt")
    first_pass = next((m for m in FIRST_PASS if chosen.get(m)), None)
    if first_pass == "forward_pass" and chosen.get("lock_after"):
        where = "to the line" if origins[first_pass] == "argument" else f"to [service.{service}] of {SITE_FILE}"
        reason = f"a lock would let any person lock users out (add lock_after=0 {where})"
        raise SettingsError(f"forward_pass and lock_after: only one is allowed: {reason}")
    get = chosen.get
    nullok, enroll = get("nullok", any(limit in chosen for limit in _LIMITS)), get("enroll", "off")
    if nullok and enroll != "off":
        reason = "with nullok, an unenrolled user logs in before the prompt for a ticket"
        raise SettingsError(f"nullok and enroll={enroll}: only one is allowed: {reason}")
    member = site.member if origins.keys().isdisjoint({"store", "secret"}) else None
    if member is not None and (name := next((n for n in Policy.RULES if n in chosen), None)) is not None:
        raise SettingsError(f"{name}: {AUTHORITY_DECIDES}")
    return Settings(
        policy=Policy(**{n: chosen[n] for n in Policy.RULES if n in chosen}),
        store=get("store", DEFAULT_STORE if site.database is None else site.database.url),
        secret=get("secret"),
        prompt=get("prompt", FORWARD_PROMPT if first_pass == "forward_pass" else DEFAULT_PROMPT),
        echo=get("echo", False),
        second_prompt=get("second_prompt", True) and first_pass in (None, "try_first_pass"),
        nullok=nullok,
        nullok_until=get("nullok_until"),
        nullok_group=get("nullok_group"),
        first_pass=first_pass,
        grace_period=get("grace_period", 0),
        user=get("user"),
        debug=get("debug", False),
        enroll=enroll,
        origins=origins,
        member=member,
    )


def parse_arguments(arguments: Sequence[str]) -> dict[str, object]:
    """Return the module's arguments by name. Raise SettingsError."""
    found: dict[str, object] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name not in _VALUES and name not in _FLAGS:
            raise SettingsError(f"unknown argument {name!r}")
        if name in found:
            raise SettingsError(f"{name}: given twice")
        if bool(equals) != (name in _VALUES):
            raise SettingsError(f"{name}: {'takes no value' if equals else 'needs a value'}")
        if equals:
            found[name] = _number(text) if name in _NUMBERS else text
            require(_VALUES[name], found[name], name, SettingsError)
        else:
            found[name] = True
    return found


def _number(text: str) -> int | None:
    """Return the number in `text`, which must be 1 to 9 ASCII digits, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _table(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{SITE_FILE}: {place}: must be a table")
    return value


def table_of(value: object, name: str, known: Iterable[str]) -> dict[str, Any]:
    """Return the table `name` of the site file. Raise SettingsError unless `value` is a table of `known` settings."""
    table = _table(value, name)
    if unknown := table.keys() - {*known}:
        raise SettingsError(f"{SITE_FILE}: {name}: unknown setting {sorted(unknown)[0]!r}")
    return table


def table_as(value: object, kind: type[V], name: str, required: str | None = None) -> V | None:
    """Return the table `name` of the site file as a value of `kind`; None if `value` is None. Raise SettingsError."""
    if value is None:
        return None
    table = table_of(value, name, kind._fields)
    if required is not None and required not in table:
        raise SettingsError(f"{SITE_FILE}: {name}.{required}: required")
    given: dict[str, Any] = {n: tuple(v) if type(v) is list else v for n, v in table.items()}
    for n in _LISTS & given.keys():
        given[n] = (given[n],) if type(given[n]) is str else given[n]
    try:
        return kind(**given)
    except SettingsError as e:
        raise SettingsError(f"{SITE_FILE}: {name}.{e}") from None


def _check_tables(site: Site) -> None:
    """Raise SettingsError if tables of the site file contradict each other."""
    if site.member is None:
        return
    other = "store" if site.database is not None else "authority"
    if site.database is not None or site.authority is not None:
        raise SettingsError(f"{SITE_FILE}: member and {other}: only one of these tables is allowed")
    tables = {"policy": site.policy, **{f"service.{name}": table for name, table in site.services.items()}}
    for place, table in tables.items():
        for name in table.keys() & Policy.RULES.keys():
            raise SettingsError(f"{SITE_FILE}: {place}.{name}: {AUTHORITY_DECIDES}")


def _site_table(value: object, place: str) -> dict[str, object]:
    table = _table(value, place)
    if hasattr(table.get("nullok_until"), "isoformat"):  # a date of TOML
        table["nullok_until"] = table["nullok_until"].isoformat()
    for name, setting in table.items():
        if name not in _SITE:
            raise SettingsError(f"{SITE_FILE}: {place}: unknown setting {name!r}")
        require(_SITE[name], setting, f"{SITE_FILE}: {place}.{name}", SettingsError)
    return table
