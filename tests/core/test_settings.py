"""Tests of the settings: arguments, site file, precedence, and an error for every ambiguous setting."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pam_totp.core.policy import Policy
from pam_totp.core.settings import (
    FORWARD_PROMPT,
    SITE_FILE,
    AuthoritySettings,
    DatabaseSettings,
    MemberSettings,
    Settings,
    SettingsError,
    Site,
    parse_arguments,
    parse_site,
    settings,
)


def chosen(*arguments: str, site: str = "", service: str = "sshd") -> Settings:
    return settings(service, arguments, parse_site(site))


def refused(*arguments: str, site: str = "", service: str = "sshd") -> str:
    """Return the text of the SettingsError that `arguments` or the site file `site` cause."""
    with pytest.raises(SettingsError) as caught:
        chosen(*arguments, site=site, service=service)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_defaults() -> None:
    made = chosen()
    assert made.store == "/var/lib/pam_totp"
    assert made.prompt == "One-time code: "
    assert (made.secret, made.user, made.first_pass, made.grace_period) == (None, None, None, 0)
    assert (made.echo, made.second_prompt, made.nullok, made.debug) == (False, True, False, False)
    assert (made.policy.look_ahead, made.policy.window, made.policy.resync_window) == (10, 1, 1000)
    assert (made.policy.resync_steps, made.policy.lock_after) == (0, 0)
    assert made.origins == {}


def test_the_facts_have_every_setting_by_its_name() -> None:
    facts = chosen("window=3", "echo", "user=bob").facts()
    assert list(facts)[:5] == ["look_ahead", "window", "resync_window", "resync_steps", "lock_after"]
    assert (facts["window"], facts["echo"], facts["user"], facts["secret"]) == (3, True, "bob", None)
    assert set(facts) == {*Policy.RULES, *Settings._fields} - {"policy", "origins", "member"}


def test_a_changed_file_applies_at_once_also_when_it_is_changed_back() -> None:
    for window in (2, 3, 2):
        assert chosen(site=f"[policy]\nwindow = {window}\n").policy.window == window
        assert chosen("window=4", site=f"[policy]\nwindow = {window}\n").policy.window == 4
        assert chosen(site=f"[service.sshd]\nwindow = {window}\n").policy.window == window


# ---- arguments

POLICY = {"look_ahead": 100, "window": 10, "resync_window": 10_000, "resync_steps": 2_880, "lock_after": 1_000_000}
MEMBER = '[member]\nauthorities = ["otp1:8443", "[::1]:8443"]\n'
NUMBERS = POLICY | {"grace_period": 86_400}
FLAGS = [
    "echo",
    "second_prompt",
    "no_second_prompt",
    "nullok",
    "nodelay",
    "debug",
    "try_first_pass",
    "use_first_pass",
    "forward_pass",
]
WITH_VALUE = [*NUMBERS, "prompt", "user", "store", "secret", "socket", "helper"]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_is_accepted_within_its_bounds(name: str) -> None:
    for value in {0, 1, NUMBERS[name]}:
        made = chosen(f"{name}={value}")
        assert (made.grace_period if name == "grace_period" else getattr(made.policy, name)) == value
        assert made.origins == {name: "argument"}
    for value in (NUMBERS[name] + 1, 999_999_999):
        if value != NUMBERS[name]:
            assert refused(f"{name}={value}").startswith(f"{name}: ")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value", ["", "-1", "+1", " 1", "1 ", "1_0", "1.0", "1e1", "0x1", "١", "²", "one", "1\n", "9" * 10, "9" * 5000]
)
def test_a_number_is_ascii_digits(name: str, value: str) -> None:
    assert refused(f"{name}={value}") == f"{name}: must be a whole number from 0 to {NUMBERS[name]}"


def test_leading_zeros_do_not_make_a_number_octal() -> None:
    assert chosen("look_ahead=010").policy.look_ahead == 10


@pytest.mark.parametrize(
    ("argument", "field", "value"),
    [
        ("echo", "echo", True),
        ("nullok", "nullok", True),
        ("debug", "debug", True),
        ("no_second_prompt", "second_prompt", False),
        ("try_first_pass", "first_pass", "try_first_pass"),
        ("use_first_pass", "first_pass", "use_first_pass"),
        ("forward_pass", "first_pass", "forward_pass"),
        ("prompt=Code: ", "prompt", "Code: "),
        ("prompt=a=b", "prompt", "a=b"),
        ("prompt=Kód für heute", "prompt", "Kód für heute"),
        ("user=root", "user", "root"),
        ("store=/srv/totp", "store", "/srv/totp"),
        ("secret=${HOME}/.pam_totp", "secret", "${HOME}/.pam_totp"),
        ("secret=~/.pam_totp", "secret", "~/.pam_totp"),
    ],
)
def test_every_other_argument_sets_its_field_and_no_other(argument: str, field: str, value: object) -> None:
    made = chosen(argument)
    assert getattr(made, field) == value
    differing = {f for f in Settings._fields if getattr(made, f) != getattr(chosen(), f)}
    further = {"use_first_pass": {"second_prompt"}, "forward_pass": {"second_prompt", "prompt"}}
    assert differing == {field, "origins"} | further.get(argument, set())


@pytest.mark.parametrize(
    ("arguments", "site", "asks"),
    [
        ((), "", True),
        (("second_prompt",), "", True),
        (("no_second_prompt",), "", False),
        ((), "second_prompt = false", False),
        (("second_prompt",), "second_prompt = false", True),
        (("no_second_prompt",), "second_prompt = true", False),
        (("try_first_pass",), "", True),
        (("second_prompt", "use_first_pass"), "", False),
        (("second_prompt", "forward_pass"), "", False),
    ],
)
def test_the_second_prompt_is_on_except_where_it_is_off_or_useless(
    arguments: tuple[str, ...], site: str, asks: bool
) -> None:
    made = chosen(*arguments, site=f"[policy]\n{site}\n")
    assert made.second_prompt is asks
    assert "no_second_prompt" not in made.origins
    assert made.origins.get("second_prompt") == (
        "argument" if "second_prompt" in " ".join(arguments) else "/etc/pam_totp.toml [policy]" if site else None
    )


def test_contradictory_arguments_are_refused() -> None:
    assert refused("second_prompt", "no_second_prompt") == "second_prompt and no_second_prompt: only one is allowed"


@pytest.mark.parametrize("argument", ["nodelay", "socket=none", "socket=/run/x", "helper=/usr/lib/x.py"])
def test_the_arguments_of_the_relay_are_accepted_and_ignored(argument: str) -> None:
    made = chosen(argument)
    assert {f for f in Settings._fields if getattr(made, f) != getattr(chosen(), f)} == {"origins"}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("", "unknown argument ''"),
        ("=", "unknown argument ''"),
        ("=1", "unknown argument ''"),
        ("Echo", "unknown argument 'Echo'"),
        ("echo ", "unknown argument 'echo '"),
        (" echo", "unknown argument ' echo'"),
        ("lookahead=5", "unknown argument 'lookahead'"),
        ("look-ahead=5", "unknown argument 'look-ahead'"),
        ("origins=x", "unknown argument 'origins'"),
        ("policy=x", "unknown argument 'policy'"),
        ("first_pass=try_first_pass", "unknown argument 'first_pass'"),
        ("store=relative", "store: must be an absolute path"),
        ("store=", "store: must be an absolute path"),
        ("store=/a\0b", "store: must be an absolute path"),
        ("helper=relative", "helper: must be an absolute path"),
        ("socket=", "socket: "),
        ("socket=relative", "socket: "),
        ("socket=NONE", "socket: "),
        ("prompt=", "prompt: must be 1 to 255 printable characters"),
        ("prompt=a\nb", "prompt: must be 1 to 255 printable characters"),
        ("prompt=\x1b[2J", "prompt: must be 1 to 255 printable characters"),
        ("prompt=" + "x" * 256, "prompt: must be 1 to 255 printable characters"),
        ("user=", "user: must be 1 to 255 printable characters"),
        ("user=a\0b", "user: must be 1 to 255 printable characters"),
        (
            "secret=",
            "secret: must be a file's path that begins with /, ~/ or ${HOME}/; ${USER} is the only other variable",
        ),
    ],
)
def test_an_unknown_or_malformed_argument_is_refused_by_name(argument: str, said: str) -> None:
    assert refused(argument).startswith(said)


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_takes_no_value(name: str) -> None:
    for value in ("", "1", "yes", "no"):
        assert refused(f"{name}={value}") == f"{name}: takes no value"


@pytest.mark.parametrize("name", WITH_VALUE)
def test_a_setting_requires_a_value(name: str) -> None:
    assert refused(name) == f"{name}: needs a value"


@pytest.mark.parametrize("name", [*FLAGS, *WITH_VALUE])
def test_a_repeated_argument_is_refused(name: str) -> None:
    argument = name if name in FLAGS else f"{name}=/1" if name not in NUMBERS else f"{name}=1"
    chosen(argument)
    assert refused(argument, "debug" if name != "debug" else "echo", argument) == f"{name}: given twice"


def test_two_ways_to_use_the_first_password_contradict_each_other() -> None:
    assert refused("try_first_pass", "use_first_pass") == "try_first_pass and use_first_pass: only one is allowed"
    assert refused("forward_pass", "use_first_pass") == "use_first_pass and forward_pass: only one is allowed"
    assert "only one is allowed" in refused("forward_pass", "try_first_pass", "use_first_pass")


def test_the_site_file_sets_forward_pass_for_one_service_only() -> None:
    site = parse_site("[service.locker]\nforward_pass = true\n")
    chosen = settings("locker", [], site)
    assert (chosen.first_pass, chosen.prompt, chosen.second_prompt) == ("forward_pass", FORWARD_PROMPT, False)
    assert chosen.origins["forward_pass"] == f"{SITE_FILE} [service.locker]"
    assert settings("sshd", [], site).first_pass is None
    assert settings("locker", ["use_first_pass"], site).first_pass == "use_first_pass", "an argument wins"
    assert settings("locker", [], parse_site("[service.locker]\nforward_pass = false\n")).first_pass is None
    with pytest.raises(SettingsError, match=r"policy\.forward_pass: must be set for one service"):
        parse_site("[policy]\nforward_pass = true\n")
    with pytest.raises(SettingsError, match=r"add lock_after=0 to \[service\.locker\]"):
        settings("locker", [], parse_site("[policy]\nlock_after = 9\n[service.locker]\nforward_pass = true\n"))
    unlocked = "[policy]\nlock_after = 9\n[service.locker]\nforward_pass = true\nlock_after = 0\n"
    assert settings("locker", [], parse_site(unlocked)).first_pass == "forward_pass"


@pytest.mark.parametrize(
    "day", ["2026-02-29", "2026-13-01", "20261231", "2026-W01-1", "tomorrow", "", "2026-12-31T00:00", "0001-01-01"]
)
def test_nullok_until_must_be_a_date(day: str) -> None:
    assert refused(f"nullok_until={day}") == "nullok_until: must be a date from 1970-01-01 on, such as 2026-12-31"
    assert refused(site=f"[policy]\nnullok_until = '{day}'\n").startswith(f"{SITE_FILE}: policy.nullok_until: must be")


def test_nullok_until_lasts_to_the_end_of_its_day_in_utc() -> None:
    for made in (chosen("nullok_until=2026-12-31"), chosen(site="[policy]\nnullok_until = 2026-12-31\n")):
        midnight = 1_798_761_600  # 2027-01-01T00:00:00Z
        assert made.nullok
        assert (made.nullok_at(midnight - 1), made.nullok_at(midnight)) == (True, False)
        assert made.facts()["nullok_until"] == "2026-12-31"
    assert chosen("nullok").nullok_at(10**10)
    assert not chosen().nullok_at(0)


@given(st.dates(datetime.date(1970, 1, 1)))
def test_every_day_of_the_calendar_ends_where_the_library_says(day: datetime.date) -> None:
    end = int(datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()) + 86_400
    made = chosen(f"nullok_until={day.isoformat()}")
    assert (made.nullok_at(end - 1), made.nullok_at(end)) == (True, False)


def test_a_later_nullok_removes_limits_of_an_earlier_source() -> None:
    site = "[policy]\nnullok_until = 2026-12-31\nnullok_group = 'staff'\n"
    made = chosen("nullok", site=site)
    assert (made.nullok, made.nullok_until, made.nullok_group) == (True, None, None)
    made = chosen("nullok_group=other", site=site)
    assert (made.nullok, made.nullok_until, made.nullok_group) == (True, "2026-12-31", "other")
    assert not chosen(site=site + "[service.sshd]\nnullok = false\n").nullok
    assert chosen("nullok", "nullok_until=2026-12-31").nullok_until == "2026-12-31"


def test_forward_pass_and_a_lock_contradict_each_other() -> None:
    """Any person could lock every user out: forward_pass counts a wrong answer before PAM checks the password."""
    expected = "forward_pass and lock_after: only one is allowed"
    assert refused("forward_pass", "lock_after=10").startswith(expected)
    with pytest.raises(SettingsError, match=expected):
        settings("sshd", ["forward_pass"], parse_site("[policy]\nlock_after = 10\n"))
    assert settings("sshd", ["forward_pass", "lock_after=0"], parse_site("[policy]\nlock_after = 10\n")).first_pass


@example(["no_second_prompt"])
@given(st.lists(st.text(max_size=30) | st.sampled_from([*FLAGS, *[f"{n}=1" for n in WITH_VALUE]]), max_size=4))
def test_any_arguments_are_settings_or_a_settings_error(arguments: list[str]) -> None:
    try:
        made = settings("sshd", arguments)
    except SettingsError:
        return
    expected = {"second_prompt" if n == "no_second_prompt" else n for n in parse_arguments(arguments)}
    assert set(made.origins) == expected


# ---- the site file

SITE = """
[policy]
look_ahead = 20
window = 2
prompt = "Code: "
grace_period = 60

[service.sshd]
window = 3
nullok = true

[service."su-l"]
window = 0
echo = true

[clients]
www-data = "web"
"""


def test_arguments_override_service_settings_which_override_the_site() -> None:
    made = chosen("window=4", site=SITE)
    assert (made.policy.look_ahead, made.policy.window, made.nullok, made.echo) == (20, 4, True, False)
    assert (made.prompt, made.grace_period) == ("Code: ", 60)
    assert made.origins == {
        "look_ahead": "/etc/pam_totp.toml [policy]",
        "prompt": "/etc/pam_totp.toml [policy]",
        "grace_period": "/etc/pam_totp.toml [policy]",
        "nullok": "/etc/pam_totp.toml [service.sshd]",
        "window": "argument",
    }
    assert chosen(site=SITE).policy.window == 3
    assert chosen(site=SITE, service="sudo").policy.window == 2
    other = chosen(site=SITE, service="su-l")
    assert (other.policy.window, other.echo, other.nullok) == (0, True, False)
    assert chosen("window=0", site=SITE).policy.window == 0, "0 overrides the site file"


def test_clients_are_accounts_and_the_service_that_each_may_name() -> None:
    assert parse_site(SITE).clients == {"www-data": "web"}
    assert parse_site("").clients == {}


def test_no_file_an_empty_file_and_empty_tables_are_the_same() -> None:
    assert parse_site("") == parse_site("# nothing\n") == parse_site("[policy]\n[service]\n[clients]\n") == Site.NONE


@pytest.mark.parametrize("table", ["policy", "service.sshd"])
@pytest.mark.parametrize("name", [*NUMBERS, "prompt", "echo", "nullok", "debug"])
def test_a_site_setting_must_have_its_type_and_bounds(table: str, name: str) -> None:
    place = f"/etc/pam_totp.toml: {table}.{name}: "
    right: list[Any] = {"prompt": ['"x"']}.get(name, [0, NUMBERS[name]] if name in NUMBERS else ["true", "false"])
    wrong: list[Any] = ["1.0", "[]", "{}", "1979-05-27", "nan"]
    wrong += ['"1"', "true", -1, NUMBERS[name] + 1, 10**30] if name in NUMBERS else [0, 1]
    wrong += ['""', '"a\\nb"', f'"{"x" * 256}"'] if name == "prompt" else ['"true"']
    for value in right:
        chosen(site=f"[{table}]\n{name} = {value}\n")
    for value in wrong:
        assert refused(site=f"[{table}]\n{name} = {value}\n").startswith(place), value


def test_an_invalid_site_setting_is_refused_even_if_overridden() -> None:
    assert refused("look_ahead=5", site="[policy]\nlook_ahead = 101\n").startswith(
        "/etc/pam_totp.toml: policy.look_ahead"
    )
    assert refused(site="[service.sudo]\nwindow = 11\n").startswith("/etc/pam_totp.toml: service.sudo.window")


@pytest.mark.parametrize(
    "name",
    ["user", "store", "secret", "socket", "helper", "nodelay", "try_first_pass", "use_first_pass"],
)
@pytest.mark.parametrize("table", ["policy", "service.sshd"])
def test_the_site_cannot_set_store_caller_or_stack_arguments(table: str, name: str) -> None:
    for value in ("true", '"/x"', "1"):
        said = refused(site=f"[{table}]\n{name} = {value}\n")
        assert said == f"/etc/pam_totp.toml: {table}: unknown setting '{name}'"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[polcy]\n", "unknown table 'polcy'"),
        ("look_ahead = 5\n", "unknown table 'look_ahead'"),
        ("policy = 5\n", "policy: must be a table"),
        ("service = 5\n", "service: must be a table"),
        ("[service]\nsshd = 5\n", "service.sshd: must be a table"),
        ("[[policy]]\nwindow = 1\n", "policy: must be a table"),
        ("clients = 5\n", "clients: must be a table"),
        ("[clients]\nwww-data = 5\n", "clients.www-data: must be the name of a service"),
        ('[clients]\nwww-data = ""\n', "clients.www-data: must be the name of a service"),
        ('[clients]\nwww-data = ["web"]\n', "clients.www-data: must be the name of a service"),
        ("store = 5\n", "store: must be a table"),
        ("[store]\n", "store.url: required"),
        ("[store]\nurls = 5\n", "store: unknown setting 'urls'"),
        ("[store]\nurl = 5\n", "store.url: must be a URL that begins with postgresql://, without spaces"),
        ('[store]\nurl = "/var/lib/x"\n', "store.url: must be a URL that begins with postgresql://, without spaces"),
        ('[store]\nurl = "postgresql:///a b"\n', "store.url: must be a URL that begins with postgresql://, without"),
        ('[store]\nurl = "postgresql:///a"\npool = 0\n', "store.pool: must be a whole number from 1 to 64"),
        ('[store]\nurl = "postgresql:///a"\nwait = 0.4\n', "store.wait: must be 0.5 to 60 seconds"),
        ('[store]\nurl = "postgresql:///a"\nwait = true\n', "store.wait: must be 0.5 to 60 seconds"),
        ("member = 5\n", "member: must be a table"),
        ("[member]\n", "member.authorities: required"),
        ("[member]\nauthority = 5\n", "member: unknown setting 'authority'"),
        ("[member]\nauthorities = []\n", "member.authorities: must be HOST:PORT, or a list of 1 to 16 of them"),
        ('[member]\nauthorities = ["otp"]\n', "member.authorities: must be HOST:PORT, or a list of 1 to 16 of them"),
        ('[member]\nauthorities = ["otp:0"]\n', "member.authorities: must be HOST:PORT, or a list of 1 to 16 of them"),
        (
            '[member]\nauthorities = ["https://otp:1"]\n',
            "member.authorities: must be HOST:PORT, or a list of 1 to 16 of them",
        ),
        ("[member]\nauthorities = 1\n", "member.authorities: must be HOST:PORT, or a list of 1 to 16 of them"),
        (f"{MEMBER}key = 5\n", "member.key: must be an absolute path"),
        (f'{MEMBER}ca = "ca.pem"\n', "member.ca: must be an absolute path"),
        (f"{MEMBER}connect = 0\n", "member.connect: must be 0.1 to 8 seconds"),
        (f"{MEMBER}patience = true\n", "member.patience: must be 0.1 to 8 seconds"),
        (f"{MEMBER}answer = 9\n", "member.answer: must be 0.5 to 8 seconds"),
        (f"{MEMBER}forward_digits = 5\n", "member.forward_digits: must be a whole number from 6 to 8"),
        (f'{MEMBER}centre_down = "allow"\n', "member.centre_down: must be one of refuse, break-glass"),
        (f'{MEMBER}[store]\nurl = "postgresql:///a"\n', "member and store: only one of these tables is allowed"),
        (f"{MEMBER}[authority]\n", "member and authority: only one of these tables is allowed"),
        (f"{MEMBER}[policy]\nwindow = 1\n", "policy.window: not allowed on a member: the site file of the authority"),
        (f"{MEMBER}[service.sshd]\nlock_after = 9\n", "service.sshd.lock_after: not allowed on a member: the site"),
        ("[policy]\nwindow = 1\nwindow = 2\n", ""),
        ("[policy]\n[policy]\n", ""),
        ("[policy\n", ""),
        ("window 5\n", ""),
        ("\0", ""),
        ("[policy]\nwindow = " + "9" * 5000 + "\n", ""),
        ("[policy]\nwindow = " + "[" * 5000 + "\n", ""),
    ],
)
def test_an_error_in_the_site_file_names_the_table_or_setting(text: str, said: str) -> None:
    assert refused(site=text).startswith(f"/etc/pam_totp.toml: {said}")


def test_the_site_file_can_make_this_host_an_authority() -> None:
    assert parse_site("[authority]\n").authority == AuthoritySettings()
    assert parse_site("").authority is None
    text = '[authority]\nlisten = "[::]:8443"\naddresses = ["otp1:8443", "otp2:8443"]\nca_key = "/ca.key"\nidle = 60\n'
    made = parse_site(text).authority
    assert made is not None
    assert (made.listen, made.addresses) == (("[::]:8443",), ("otp1:8443", "otp2:8443"))
    assert (made.ca_key, made.idle, made.key) == ("/ca.key", 60, "/etc/pam_totp/authority/authority.key")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("listn = 1", "unknown setting 'listn'"),
        ("listen = []", "authority.listen: must be HOST:PORT"),
        ('listen = "8443"', "authority.listen: must be HOST:PORT"),
        ("listen = [1]", "authority.listen: must be HOST:PORT"),
        ("addresses = 1", "authority.addresses: must be HOST:PORT"),
        ('key = "key"', "authority.key: must be an absolute path"),
        ("key = 1", "authority.key: must be an absolute path"),
        ("idle = 1", "authority.idle: must be a whole number from 10"),
    ],
)
def test_a_wrong_setting_of_an_authority_is_named(line: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_site(f"[authority]\n{line}\n")


def test_the_site_file_can_name_a_database_as_the_default_store() -> None:
    site = parse_site('[store]\nurl = "postgresql:///otp"\nwait = 1.5\n')
    assert site.database == DatabaseSettings(url="postgresql:///otp", pool=4, wait=1.5)
    assert settings("sshd", (), site).store == "postgresql:///otp"
    assert settings("sshd", ("store=/x",), site).store == "/x"
    assert settings("sshd", ("store=postgresql:///y",), site).store == "postgresql:///y"
    assert settings("sshd", ()).store == "/var/lib/pam_totp"


def test_a_login_on_a_member_asks_the_authorities() -> None:
    site = parse_site(f"{MEMBER}patience = 2\n[policy]\nprompt = 'Code: '\ngrace_period = 60\n")
    assert site.member == MemberSettings(authorities=("otp1:8443", "[::1]:8443"), patience=2)
    assert not site.member.allows_break_glass, "a member denies logins while all authorities are unreachable"
    assert MemberSettings(authorities=("otp1:8443",), centre_down="break-glass").allows_break_glass
    made = settings("sshd", ("nullok",), site)
    assert (made.member, made.nullok, made.grace_period) == (site.member, True, 60)
    assert made.facts()["authorities"] == "otp1:8443 [::1]:8443"
    assert made.facts().keys().isdisjoint({"look_ahead", "store", "secret", "member"})
    for argument in ("store=/x", "secret=~/x"):
        local = settings("sshd", (argument, "window=2"), site)
        assert (local.member, local.policy.window) == (None, 2), "the store and the policy are those of this host"
        assert "authorities" not in local.facts()


@pytest.mark.parametrize("name", ["look_ahead", "window", "resync_window", "resync_steps", "lock_after"])
def test_a_line_on_a_member_cannot_set_the_policy(name: str) -> None:
    assert (
        refused(f"{name}=1", site=MEMBER) == f"{name}: not allowed on a member: the site file of the authority decides"
    )


@given(st.text(max_size=60) | st.text('[]policy.service"=\n 10truewindow', max_size=60))
def test_any_site_file_is_a_site_or_a_settings_error(text: str) -> None:
    try:
        site = parse_site(text)
    except SettingsError:
        return
    assert isinstance(site, Site)


@pytest.mark.parametrize("other", ["nullok", "nullok_until=2030-01-01", "nullok_group=staff"])
def test_tickets_and_nullok_are_a_contradiction(other: str) -> None:
    with pytest.raises(SettingsError, match=r"^nullok and enroll=ticket: only one is allowed"):
        settings("sshd", ["enroll=ticket", other])
    site = parse_site('[service.sshd]\nenroll = "ticket"\n')
    assert settings("sshd", [], site).enroll == "ticket"
    assert settings("sudo", [other], site).enroll == "off"
    with pytest.raises(SettingsError, match=r"^nullok and enroll"):
        settings("sshd", [other], site)
    assert settings("sshd", ["enroll=off", other], site).nullok


@pytest.mark.parametrize(
    ("arguments", "service", "takes"),
    [
        (["enroll=ticket"], "sshd", True),
        (["enroll=ticket", "try_first_pass"], "sshd", True),
        (["enroll=ticket", "use_first_pass"], "sshd", False),
        (["enroll=ticket", "forward_pass"], "sshd", False),
        (["enroll=ticket"], "polkit-1", False),
        (["enroll=off"], "sshd", False),
        ([], "sshd", False),
    ],
)
def test_a_ticket_counts_only_at_a_prompt_that_shows_text(arguments: list[str], service: str, takes: bool) -> None:
    assert settings(service, arguments).takes_tickets(service) is takes
