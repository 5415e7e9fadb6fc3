"""Checks of the database of a store: the durability of its changes, and causes of refused logins.

Rules:
- The account of the service reads the state (`system.database`). This module reports the state, and changes nothing.
- A change must be on a standby before an answer is accepted. Otherwise a used code is accepted again after the loss of
  the primary. The store refuses every answer while the standby is uncertain. These checks report the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from pam_totp.core.settings import SITE_FILE
from pam_totp.system import service_network
from pam_totp.system.database import (
    NONE,
    REPLICATION,
    SYNCHRONOUS,
    VERSION,
    State,
    has_password,
    missing_library,
    state_of,
)
from pam_totp.system.doctor.context import Context
from pam_totp.system.pamd.findings import ERROR, NOTE, WARNING, Code, Finding, Severity, errors

_MOST_APART = 1.0  # seconds between the clocks of this host and of the database
_LONGEST_TRIP = 0.05  # seconds: a login takes three round trips, and a round trip from the primary to its standby
_PATRONI = "/etc/patroni"  # the folder of Patroni's configuration
_CONFIGURATION = f"{_PATRONI}/config.yml"
_PATRONI_ANSWERS = 2.0  # seconds
_RESTORE = "stop all authorities, and run 'pam-totp authority restore --log FILE...'"
_CANCELS = {
    "statement_timeout": "cancels an answer that waits for the standby",
    "transaction_timeout": "cancels an answer that waits for the standby",
    "idle_in_transaction_session_timeout": "ends an import or a copy of the store",
}


def database(context: Context, url: str) -> Iterator[Finding]:
    """Check that the database at `url` can be reached, and that it keeps changes safely."""
    if (problem := missing_library()) is not None:
        what = f"every code is refused: {problem}"
        yield _finding(ERROR, Code.DATABASE_LIBRARY, what, "run 'apt-get install python3-psycopg'")
        return
    if has_password(url):
        what = "every code is refused: [store] url contains a password"
        remedy = "remove the password from the URL, set a new password in the database, and use a password file or a "
        remedy += "certificate"
        yield _finding(ERROR, Code.DATABASE_PASSWORD, what, remedy)
        return
    yield from _network(context, url)
    state, problem = state_of(url, context.site().database)
    if state is None:
        what = f"every code is refused: {problem}"
        yield _finding(ERROR, Code.STORE_UNREACHABLE, what, "check [store] of the site file, and the database")
        return
    tables = list(_tables(state))
    yield from tables
    yield from _copies(context, state)
    for check in (_durability, _standbys, _timeouts, _pooler, _times):
        yield from check(state)
    yield from _patroni(context, state)
    if errors(tables):
        return  # the records cannot be read
    for problem in context.enrolled(url).broken:
        remedy = "restore that record from a backup, or delete it and enrol the user again"
        yield _finding(ERROR, Code.RECORD_UNREADABLE, problem, remedy)


def _network(context: Context, url: str) -> Iterator[Finding]:
    """Check that the service of this host reaches the database, if a login uses it. Helpers use no database."""
    if any(line.store == url for _, line in context.settings()) and (obstacle := service_network.obstacle()):
        what = f"every login here is refused: the unit {service_network.UNIT} blocks the network ({obstacle})"
        yield _finding(ERROR, Code.SERVICE_WITHOUT_NETWORK, what, service_network.REMEDY)


def _finding(severity: Severity, code: Code, what: str, remedy: str) -> Finding:
    return Finding(severity, "store", code, what, remedy)


def _tables(state: State) -> Iterator[Finding]:
    version, replication = state["version"], state["replication"]
    if version is None:
        what = "every code is refused: the database has no tables of pam_totp"
        yield _finding(ERROR, Code.DATABASE_TABLES, what, "run 'pam-totp store init URL' as the owner of the database")
    elif version != VERSION or replication not in REPLICATION:
        what = f"every code is refused: the database has tables of version {version}, but this pam_totp needs {VERSION}"
        remedy = "install the same version of pam_totp on all hosts, and run 'pam-totp store init URL' there"
        yield _finding(ERROR, Code.DATABASE_TABLES, what, remedy)
    elif state["is_copied"]:
        what = "every code is refused here: the records were copied from this database to another store"
        remedy = "use that store (see [store] of the site file), or create a new database for a new fleet"
        yield _finding(ERROR, Code.DATABASE_TABLES, what, remedy)
    elif replication == NONE:
        what = "used codes may be accepted again after a loss of the server: the store requires no standby"
        remedy = "add a synchronous standby, and run 'pam-totp store init URL --replication synchronous'"
        yield _finding(NOTE, Code.DATABASE_NOT_REPLICATED, what, remedy)


def _copies(context: Context, state: State) -> Iterator[Finding]:
    """Report an outdated copy of the database, by its epoch, and a restored database that was not fenced."""
    settings = context.site().database
    least, epoch = 0 if settings is None else settings.epoch, state["epoch"]
    if state["version"] is None:
        return
    if epoch < least:
        what = f"every code is refused: the database is an outdated copy with the epoch {epoch} "
        what += f"([store] of the site file requires {least})"
        remedy = f"stop that server; after a restore from a backup, {_RESTORE}"
        yield _finding(ERROR, Code.DATABASE_OUTDATED, what, remedy)
    elif state["is_moved"]:
        what = "the database was restored from a dump, or moved, and was not fenced: used codes may be accepted again"
        remedy = f"{_RESTORE}; after an upgrade without logins, run 'pam-totp authority fence --epoch-only'"
        yield _finding(WARNING, Code.DATABASE_RESTORED, what, remedy)
    elif epoch > least:
        what = f"an older copy of the database could be used: the site file does not require the epoch {epoch}"
        yield _finding(NOTE, Code.DATABASE_EPOCH, what, f"set epoch = {epoch} in [store] of {SITE_FILE}")


def _durability(state: State) -> Iterator[Finding]:
    settings, reason = state["settings"], state["reason"]
    if reason is not None:
        yield _finding(ERROR, Code.DATABASE_REFUSED, f"every code is refused: {reason}", _remedy(state))
    if settings["full_page_writes"] == "off":
        what = "full_page_writes is off: a power failure can damage records of the database"
        remedy = "set full_page_writes = on in the settings of the server, and reload the server"
        yield _finding(WARNING, Code.DATABASE_TORN_PAGES, what, remedy)


def _remedy(state: State) -> str:
    """Return the remedy for the first setting that the store refuses."""
    settings = state["settings"]
    if settings["fsync"] != "on":
        return "set fsync = on in the settings of the server, and reload the server"
    if settings["client_min_messages"] == "error":
        return f"remove client_min_messages from the settings of the server and of the role {state['role']}"
    if settings["synchronous_standby_names"] == "":
        return "set synchronous_standby_names (with Patroni: synchronous_mode and synchronous_mode_strict)"
    return f"set synchronous_commit = on for the server, the database and the role {state['role']}"


def _standbys(state: State) -> Iterator[Finding]:
    """Check the standbys. Logins continue with one of two standbys; a single standby is a single point of failure."""
    standbys = state["standbys"]
    if state["replication"] != SYNCHRONOUS or state["reason"] is not None:
        return
    if None in standbys:
        what = f"the state of the standbys is unknown: the role {state['role']} lacks permission to read it"
        remedy = f"run 'GRANT pg_read_all_stats TO {state['role']}' as a superuser of the database"
        yield _finding(NOTE, Code.DATABASE_STANDBYS_HIDDEN, what, remedy)
    elif not {"sync", "quorum"} & set(standbys):
        what = "every code is refused until a synchronous standby connects"
        remedy = "start a standby that synchronous_standby_names lists (see pg_stat_replication on the primary)"
        yield _finding(ERROR, Code.DATABASE_NO_STANDBY, what, remedy)
    elif len(standbys) == 1:
        what = "the database has one standby; every code is refused while this standby is not connected"
        yield _finding(WARNING, Code.DATABASE_ONE_STANDBY, what, "add a second standby, at another site or zone")


def _timeouts(state: State) -> Iterator[Finding]:
    for name, effect in _CANCELS.items():
        value = state["settings"][name]
        if value not in (None, "0"):
            what = f"{name} is {value}: this setting {effect}"
            remedy = f"run 'ALTER ROLE {state['role']} SET {name} = 0' in the database"
            yield _finding(WARNING, Code.DATABASE_TIMEOUT, what, remedy)


def _pooler(state: State) -> Iterator[Finding]:
    pooler = state["pooler"]
    if pooler is not None:
        what = f"{pooler} is between this host and the database: its query_timeout cancels the wait for the standby"
        remedy = "name the servers of the database in [store] url, or set query_timeout = 0 in the pooler"
        yield _finding(WARNING, Code.DATABASE_POOLER, what, remedy)


def _times(state: State) -> Iterator[Finding]:
    ahead, trip = state["ahead"], state["round_trip"]
    if abs(ahead) > _MOST_APART:
        where = "ahead of" if ahead > 0 else "behind"
        what = f"the clock of the database, which decides about TOTP codes, is {abs(ahead):.1f} s {where} this host's"
        yield _finding(
            WARNING, Code.DATABASE_CLOCK, what, "synchronise the clocks of all hosts and servers, with chrony"
        )
    if trip > _LONGEST_TRIP:
        what = f"a round trip to the database takes {1000 * trip:.0f} ms; a login takes three round trips"
        yield _finding(WARNING, Code.DATABASE_SLOW, what, "use a host that is near the primary of the database")


def _patroni(context: Context, state: State) -> Iterator[Finding]:
    """Check the settings of Patroni, if Patroni manages the database."""
    if not state["is_patroni"] or state["replication"] != SYNCHRONOUS:
        return
    settings = _patroni_settings(Path(context.machine.path(_PATRONI)))
    if settings is None:
        what = "the settings of Patroni were not checked: no Patroni on this host answered"
        remedy = f"run 'patronictl -c {_CONFIGURATION} show-config' on a server of the database: synchronous_mode and "
        remedy += "synchronous_mode_strict must be true"
        yield _finding(NOTE, Code.PATRONI_NOT_CHECKED, what, remedy)
        return
    for name in ("synchronous_mode", "synchronous_mode_strict"):
        if settings.get(name) is not True:
            what = f"{name} of Patroni must be true: every code is refused when the last standby is lost"
            yield _finding(
                ERROR,
                Code.PATRONI_NOT_STRICT,
                what,
                f"run 'patronictl -c /etc/patroni/config.yml edit-config --set {name}=true'",
            )


def _patroni_settings(folder: Path) -> Mapping[str, object] | None:
    """Return the settings of the cluster, from the REST interface that Patroni's configuration names, or None."""
    import urllib.request  # imported here: few hosts have Patroni, and the import takes 20 ms

    for path in sorted(folder.glob("*.yml")):
        with suppress(OSError, ValueError):
            section = re.search(r"^restapi:[^\n]*\n((?:[ \t#][^\n]*\n|\n)*)", path.read_text("utf-8"), re.M)
            address = section and re.search(r"^\s+connect_address:\s*['\"]?([\w.:\[\]-]+)", section[1], re.M)
            if address:
                with urllib.request.urlopen(f"http://{address[1]}/config", timeout=_PATRONI_ANSWERS) as answer:
                    settings = json.load(answer)
                    if isinstance(settings, dict):
                        return settings
    return None
