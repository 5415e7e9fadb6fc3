"""Settings of one login: defaults, then /etc/pam_totp.toml, then the module's arguments. Pure: text in, values out.

The law: what is unknown, malformed, out of bounds, given twice or contradictory is an error, and an error denies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

from pam_totp.core.fields import Rule, Value, boolean, printable, require, whole_number
from pam_totp.core.policy import Policy

SITE_FILE = "/etc/pam_totp.toml"
DEFAULT_STORE = "/var/lib/pam_totp"
DEFAULT_PROMPT = "One-time code: "
FORWARD_PROMPT = "Password and one-time code: "  # where one answer holds both
MAX_GRACE_PERIOD = 86_400  # seconds: a day
FIRST_PASS = ("try_first_pass", "use_first_pass", "forward_pass")


class SettingsError(ValueError):
    """A bad argument or site file; the text says which and why."""


class Settings(Value):
    """What one login goes by. `origins` says for each setting that is not a default where it came from."""

    policy: Policy
    store: str
    secret: str | None
    prompt: str
    echo: bool
    nullok: bool
    first_pass: str | None
    grace_period: int
    user: str | None
    debug: bool
    origins: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """Every setting by its name, those of the policy first."""
        facts = {name: getattr(self.policy, name) for name in Policy.RULES}
        return facts | {name: getattr(self, name) for name in self._fields if name not in ("policy", "origins")}


class Site(Value):
    """/etc/pam_totp.toml: `[policy]`, `[service.NAME]`, `[clients]` (account = service)."""

    policy: Mapping[str, object]
    services: Mapping[str, Mapping[str, object]]
    clients: Mapping[str, str]

    NONE: ClassVar[Site]

    def __hash__(self) -> int:
        return hash(frozenset((*self.policy, *self.services, *self.clients)))


Site.NONE = Site(policy={}, services={}, clients={})


def _path(v: str) -> str | None:
    return None if v.startswith("/") and "\0" not in v else "not an absolute path"


def _path_or_none(v: str) -> str | None:
    return None if v == "none" else _path(v)


def _template(v: str) -> str | None:
    """A path in terms of `~`, `${HOME}` and `${USER}`; what they stand for is known when the user is."""
    home = next((home for home in ("~", "${HOME}") if v.startswith(f"{home}/")), "")
    plain = v.removeprefix(home).replace("${USER}", "user")
    good = plain.startswith("/") and not plain.endswith("/") and plain.isprintable() and not {"$", "~"} & set(plain)
    return None if good else "not the path of a file, absolute or beginning with ~/ or ${HOME}/, with ${USER} at most"


_NUMBERS: dict[str, Rule] = {**Policy.RULES, "grace_period": whole_number(0, MAX_GRACE_PERIOD)}
_VALUES: dict[str, Rule] = {  # name=value
    **_NUMBERS,
    "prompt": printable,
    "user": printable,
    "store": _path,
    "secret": _template,
    "socket": _path_or_none,  # these two, and `nodelay`, are the relay's
    "helper": _path,
}
_FLAGS = ("echo", "nullok", "nodelay", "debug", *FIRST_PASS)
# What the site file may set: not who and where, and not what belongs to one line's place in its stack.
_SITE: dict[str, Rule] = {
    **_NUMBERS,
    "prompt": printable,
    "echo": boolean,
    "nullok": boolean,
    "debug": boolean,
}


@lru_cache(maxsize=1)  # the file is read at every login, and seldom says anything new
def parse_site(text: str) -> Site:
    """Read the site file's text (TOML). Raises SettingsError with the place."""
    import tomllib  # most hosts have no site file, and this import costs 2 ms

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # numbers of thousands of digits, and nesting, have errors of their own
        raise SettingsError(f"{SITE_FILE}: {e}") from None
    unknown = document.keys() - {"policy", "service", "clients"}
    if unknown:
        raise SettingsError(f"{SITE_FILE}: no table is called {sorted(unknown)[0]!r}")
    policy = _site_table(document.get("policy", {}), "policy")
    services = {
        name: _site_table(table, f"service.{name}")
        for name, table in _table(document.get("service", {}), "service").items()
    }
    clients = _table(document.get("clients", {}), "clients")
    for account, service in clients.items():
        if type(service) is not str or not service:
            raise SettingsError(f"{SITE_FILE}: clients.{account}: not the name of a service")
    return Site(policy=policy, services=services, clients=clients)


def settings(service: str, arguments: Sequence[str], site: Site = Site.NONE) -> Settings:
    """What is in force for a login to `service` with these module arguments. Raises SettingsError."""
    return _in_force(service, tuple(arguments), site)


@lru_cache(maxsize=64)  # a host has a few services, and logs in to them over and over
def _in_force(service: str, arguments: tuple[str, ...], site: Site) -> Settings:
    chosen: dict[str, Any] = {}
    origins: dict[str, str] = {}
    sources = (
        (f"{SITE_FILE} [policy]", site.policy),
        (f"{SITE_FILE} [service.{service}]", site.services.get(service, {})),
        ("argument", parse_arguments(arguments)),
    )
    for origin, source in sources:
        chosen |= source
        origins |= dict.fromkeys(source, origin)
    modes = [m for m in FIRST_PASS if m in chosen]
    if len(modes) > 1:
        raise SettingsError(f"{modes[0]} and {modes[1]}: one or the other")
    get = chosen.get
    return Settings(
        policy=Policy(**{n: chosen[n] for n in Policy.RULES if n in chosen}),
        store=get("store", DEFAULT_STORE),
        secret=get("secret"),
        prompt=get("prompt", FORWARD_PROMPT if modes == ["forward_pass"] else DEFAULT_PROMPT),
        echo=get("echo", False),
        nullok=get("nullok", False),
        first_pass=modes[0] if modes else None,
        grace_period=get("grace_period", 0),
        user=get("user"),
        debug=get("debug", False),
        origins=origins,
    )


def parse_arguments(arguments: Sequence[str]) -> dict[str, object]:
    """The module's arguments by name. Raises SettingsError."""
    found: dict[str, object] = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name not in _VALUES and name not in _FLAGS:
            raise SettingsError(f"no argument is called {name!r}")
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
    """None for what is no number, or too long for one that means something here."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _table(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{SITE_FILE}: {place}: not a table")
    return value


def _site_table(value: object, place: str) -> dict[str, object]:
    table = _table(value, place)
    for name, setting in table.items():
        if name not in _SITE:
            raise SettingsError(f"{SITE_FILE}: {place}: no setting is called {name!r}")
        require(_SITE[name], setting, f"{SITE_FILE}: {place}.{name}", SettingsError)
    return table
