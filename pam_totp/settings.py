"""Settings of one login: defaults, then /etc/pam_totp.toml, then the module's arguments. Pure: text in, values out.

The law: what is unknown, malformed, out of bounds, given twice or contradictory is an error, and an error denies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pam_totp.policy import Policy, PolicyError
from pam_totp.rules import MAX_TEXT
from pam_totp.values import Value

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


Site.NONE = Site(policy={}, services={}, clients={})


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise ValueError("not a whole number")
    return int(text)


def _path(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise ValueError("not an absolute path")
    return text


def _template(text: str) -> str:
    """A path in terms of `~`, `${HOME}` and `${USER}`; what they stand for is known when the user is."""
    home = next((home for home in ("~", "${HOME}") if text.startswith(f"{home}/")), "")
    plain = text.removeprefix(home).replace("${USER}", "user")
    if not plain.startswith("/") or plain.endswith("/") or "$" in plain or "~" in plain or not plain.isprintable():
        raise ValueError("not the path of a file, absolute or beginning with ~/ or ${HOME}/, with ${USER} at most")
    return text


def _words(text: str) -> str:
    if not text or len(text) > MAX_TEXT or not text.isprintable():
        raise ValueError(f"not 1 … {MAX_TEXT} printable characters")
    return text


_POLICY = tuple(Policy.RULES)
_VALUES: dict[str, Callable[[str], object]] = {  # name=value
    **dict.fromkeys(_POLICY, _number),
    "grace_period": _number,
    "prompt": _words,
    "user": _words,
    "store": _path,
    "secret": _template,
    "socket": _words,  # these two, and `nodelay`, are the relay's
    "helper": _path,
}
_FLAGS = ("echo", "nullok", "nodelay", "debug", *FIRST_PASS)
# What the site file may set: not who and where, and not what belongs to one line's place in its stack.
_SITE: dict[str, type] = {
    **dict.fromkeys(_POLICY, int),
    "grace_period": int,
    "prompt": str,
    "echo": bool,
    "nullok": bool,
    "debug": bool,
}


def parse_site(text: str) -> Site:
    """Read the site file's text (TOML). Raises SettingsError with the place."""
    import tomllib  # noqa: PLC0415  most hosts have no site file, and this import costs 2 ms

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
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
    try:
        policy = Policy(**{n: chosen[n] for n in _POLICY if n in chosen})
    except PolicyError as e:
        raise SettingsError(str(e)) from None
    modes = [m for m in FIRST_PASS if m in chosen]
    if len(modes) > 1:
        raise SettingsError(f"{modes[0]} and {modes[1]}: one or the other")
    grace = chosen.get("grace_period", 0)
    if not 0 <= grace <= MAX_GRACE_PERIOD:
        raise SettingsError(f"grace_period: not 0 … {MAX_GRACE_PERIOD}")
    get = chosen.get
    return Settings(
        policy=policy,
        store=get("store", DEFAULT_STORE),
        secret=get("secret"),
        prompt=get("prompt", FORWARD_PROMPT if modes == ["forward_pass"] else DEFAULT_PROMPT),
        echo=get("echo", False),
        nullok=get("nullok", False),
        first_pass=modes[0] if modes else None,
        grace_period=grace,
        user=get("user"),
        debug=get("debug", False),
        origins=origins,
    )


def parse_arguments(arguments: Sequence[str]) -> dict[str, object]:
    """The module's arguments by name. Raises SettingsError; bounds of numbers are the policy's to check."""
    found: dict[str, object] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in _VALUES and name not in _FLAGS:
            raise SettingsError(f"no argument is called {name!r}")
        if name in found:
            raise SettingsError(f"{name}: given twice")
        if bool(equals) != (name in _VALUES):
            raise SettingsError(f"{name}: {'takes no value' if equals else 'needs a value'}")
        try:
            found[name] = _VALUES[name](value) if equals else True
        except ValueError as e:
            raise SettingsError(f"{name}: {e}") from None
    return found


def _table(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{SITE_FILE}: {place}: not a table")
    return value


def _site_table(value: object, place: str) -> dict[str, object]:
    table = _table(value, place)
    for name, setting in table.items():
        if name not in _SITE:
            raise SettingsError(f"{SITE_FILE}: {place}: no setting is called {name!r}")
        if type(setting) is not _SITE[name]:
            raise SettingsError(f"{SITE_FILE}: {place}.{name}: not of type {_SITE[name].__name__}")
        if isinstance(setting, str):
            try:
                _words(setting)
            except ValueError as e:
                raise SettingsError(f"{SITE_FILE}: {place}.{name}: {e}") from None
    return table
