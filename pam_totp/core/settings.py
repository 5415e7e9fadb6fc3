"""The settings of one login: defaults, then the site file, then the module's arguments.

Rules:
1. A setting that is unknown, malformed, out of bounds, given twice or contradictory is an error. An error denies.
2. An argument overrides `[service.NAME]` of the site file, which overrides `[policy]`, which overrides the default.
3. The store, the user, and the use of an earlier module's answer are set by module arguments only.
4. This module reads no file: text in, values out.
"""

from __future__ import annotations

from pam_totp.core.fields import Rule, Value, boolean, printable, require, whole_number
from pam_totp.core.lean import TYPE_CHECKING, lru_cache
from pam_totp.core.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, ClassVar

SITE_FILE = "/etc/pam_totp.toml"
DEFAULT_STORE = "/var/lib/pam_totp"
DEFAULT_PROMPT = "One-time code: "
FORWARD_PROMPT = "Password and one-time code: "  # with forward_pass: one answer holds both
NEXT_PROMPT = "Not accepted. Next code: "
MAX_GRACE_PERIOD = 86_400  # seconds: a day
FIRST_PASS = ("try_first_pass", "use_first_pass", "forward_pass")


class SettingsError(ValueError):
    """An argument or the site file is not valid. The text names the place and the reason."""


class Settings(Value):
    """The settings of one login. `origins` names the source of each setting that is not a default."""

    policy: Policy
    store: str
    secret: str | None
    prompt: str
    echo: bool
    second_prompt: bool
    nullok: bool
    first_pass: str | None
    grace_period: int
    user: str | None
    debug: bool
    origins: Mapping[str, str]

    def facts(self) -> dict[str, Any]:
        """Return all settings by name, the policy's first."""
        facts = {name: getattr(self.policy, name) for name in Policy.RULES}
        return facts | {name: getattr(self, name) for name in self._fields if name not in ("policy", "origins")}


class Site(Value):
    """The content of the site file: `[policy]`, `[service.NAME]`, `[clients]` (account = service)."""

    policy: Mapping[str, object]
    services: Mapping[str, Mapping[str, object]]
    clients: Mapping[str, str]

    NONE: ClassVar[Site]

    def __hash__(self) -> int:
        return hash(frozenset((*self.policy, *self.services, *self.clients)))


Site.NONE = Site(policy={}, services={}, clients={})


def _path(v: str) -> str | None:
    return None if v.startswith("/") and "\0" not in v else "must be an absolute path"


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


_NUMBERS: dict[str, Rule] = {**Policy.RULES, "grace_period": whole_number(0, MAX_GRACE_PERIOD)}
_VALUES: dict[str, Rule] = {  # arguments of the form name=value
    **_NUMBERS,
    "prompt": printable,
    "user": printable,
    "store": _path,
    "secret": _template,
    "socket": _path_or_none,  # the relay uses `socket`, `helper` and `nodelay`
    "helper": _path,
}
_SECOND_PROMPT = ("second_prompt", "no_second_prompt")
_FLAGS = ("echo", *_SECOND_PROMPT, "nullok", "nodelay", "debug", *FIRST_PASS)
# The settings that are allowed in the site file.
_SITE: dict[str, Rule] = {
    **_NUMBERS,
    "prompt": printable,
    "echo": boolean,
    "second_prompt": boolean,
    "nullok": boolean,
    "debug": boolean,
}


@lru_cache(maxsize=1)  # the file is read at every login, and seldom changes
def parse_site(text: str) -> Site:
    """Return the settings in `text`, the content of a site file (TOML). Raise SettingsError."""
    import tomllib  # only if a site file exists: the import takes 2 ms

    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # deep nesting raises RecursionError, a huge number a plain ValueError
        raise SettingsError(f"{SITE_FILE}: {e}") from None
    unknown = document.keys() - {"policy", "service", "clients"}
    if unknown:
        raise SettingsError(f"{SITE_FILE}: unknown table {sorted(unknown)[0]!r}")
    policy = _site_table(document.get("policy", {}), "policy")
    services = {
        name: _site_table(table, f"service.{name}")
        for name, table in _table(document.get("service", {}), "service").items()
    }
    clients = _table(document.get("clients", {}), "clients")
    for account, service in clients.items():
        if type(service) is not str or not service:
            raise SettingsError(f"{SITE_FILE}: clients.{account}: must be the name of a service")
    return Site(policy=policy, services=services, clients=clients)


def settings(service: str, arguments: Sequence[str], site: Site = Site.NONE) -> Settings:
    """Return the settings of a login to `service` with these module arguments. Raise SettingsError."""
    return _settings(service, tuple(arguments), site)


@lru_cache(maxsize=64)  # a host has a few services and many logins
def _settings(service: str, arguments: tuple[str, ...], site: Site) -> Settings:
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
    for alternatives in (FIRST_PASS, _SECOND_PROMPT):
        both = [m for m in alternatives if origins.get(m) == "argument"]
        if len(both) > 1:
            raise SettingsError(f"{both[0]} and {both[1]}: only one is allowed")
    if chosen.pop("no_second_prompt", False):
        chosen["second_prompt"] = False
        origins["second_prompt"] = origins.pop("no_second_prompt")
    first_pass = next((m for m in FIRST_PASS if m in chosen), None)
    if first_pass == "forward_pass" and chosen.get("lock_after"):
        reason = "a lock would let any person lock users out (add lock_after=0 to the line)"
        raise SettingsError(f"forward_pass and lock_after: only one is allowed: {reason}")
    get = chosen.get
    return Settings(
        policy=Policy(**{n: chosen[n] for n in Policy.RULES if n in chosen}),
        store=get("store", DEFAULT_STORE),
        secret=get("secret"),
        prompt=get("prompt", FORWARD_PROMPT if first_pass == "forward_pass" else DEFAULT_PROMPT),
        echo=get("echo", False),
        second_prompt=get("second_prompt", True) and first_pass in (None, "try_first_pass"),
        nullok=get("nullok", False),
        first_pass=first_pass,
        grace_period=get("grace_period", 0),
        user=get("user"),
        debug=get("debug", False),
        origins=origins,
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
    """Return the number in `text`; None unless it consists of 1 to 9 ASCII digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _table(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{SITE_FILE}: {place}: must be a table")
    return value


def _site_table(value: object, place: str) -> dict[str, object]:
    table = _table(value, place)
    for name, setting in table.items():
        if name not in _SITE:
            raise SettingsError(f"{SITE_FILE}: {place}: unknown setting {name!r}")
        require(_SITE[name], setting, f"{SITE_FILE}: {place}.{name}", SettingsError)
    return table
