"""The objects that `doctor` checks: a machine, the services that run pam_totp.so, and the settings of each line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pam_totp.core.settings import DEFAULT_STORE, Settings, SettingsError, Site, parse_arguments, settings
from pam_totp.pam.login_session import read_site
from pam_totp.system import sshd
from pam_totp.system.enrolled import Enrolled, find_enrolled
from pam_totp.system.machine import Machine
from pam_totp.system.pamd.conditions import Account
from pam_totp.system.pamd.edit import FirstFactor
from pam_totp.system.pamd.stack import Handler, StackError
from pam_totp.system.people import account_of, local_names, login_check, people
from pam_totp.system.sshd_match import LOCAL, Place

ACCOUNT = "pam_totp"
SOCKET = "/run/pam_totp/socket"
_HELPER = re.compile(rb"(/[ -~]+/pam/helper\.py)\0")
_INTERPRETER = re.compile(rb"(/[ -~]*/python3[0-9.]*)\0")


class Fact(NamedTuple):
    """The result of a measurement: its name and value for programs, and a line for administrators."""

    name: str
    value: Any
    text: str


@dataclass(frozen=True, slots=True)
class Context:
    """A machine and the services to check.

    `user` is the user who rehearses a change, or None. `first` is the first factor after that change. Checks
    add `facts`.
    """

    machine: Machine
    services: Sequence[str]
    user: str | None = None
    first: FirstFactor = "password"
    facts: list[Fact] = field(default_factory=list, compare=False)
    _enrolled: dict[str, Enrolled] = field(default_factory=dict, compare=False, repr=False)
    _sshd: dict[tuple[str, Place], sshd.Settings] = field(default_factory=dict, compare=False, repr=False)
    _people: list[str] = field(default_factory=list, compare=False, repr=False)

    @property
    def people(self) -> Sequence[str]:
        """Return the names of the accounts of users, without the accounts of the system. Look the names up once."""
        if not self._people:
            self._people.extend(people())
        return self._people

    def accounts(self, service: str) -> Iterator[Account]:
        """Yield the accounts of `people` that can log in to a service, or all of them if this process is not root."""
        can_log_in = login_check(service) if os.geteuid() == 0 else lambda name: True
        local = local_names()
        for name in self.people:
            if can_log_in(name) and (account := account_of(name, local)) is not None:
                yield account

    def sshd(self, user: str, place: Place = LOCAL) -> sshd.Settings:
        """Return sshd's settings for `user` and the connection `place`. Raise SshdError.

        Ask sshd once for each pair of a user and a connection.
        """
        if (user, place) not in self._sshd:
            self._sshd[user, place] = sshd.settings(user, place)
        return self._sshd[user, place]

    def enrolled(self, store: str) -> Enrolled:
        """Return the users in `people` who are enrolled in `store`. Read each store once."""
        if store not in self._enrolled:
            self._enrolled[store] = find_enrolled(store, frozenset(self.people))
        return self._enrolled[store]

    def lines(self) -> Iterator[tuple[str, Handler]]:
        """Yield every pam_totp.so line with its service. Skip a stack that cannot be read."""
        for service in self.services:
            try:
                yield from ((service, h) for h in self.machine.stack(service) if h.rule.is_pam_totp)
            except StackError:
                continue

    def site(self) -> Site:
        """Return the site file's settings, or empty settings for an invalid file: another check reports the error."""
        try:
            return read_site(self.machine.path("/etc/pam_totp.toml"))
        except SettingsError:
            return Site.NONE

    def settings(self) -> Iterator[tuple[str, Settings]]:
        """Yield the settings of each line with its service. Skip an invalid line: another check reports the error."""
        for service, handler in self.lines():
            try:
                yield service, settings(service, handler.rule.arguments, self.site())
            except SettingsError:
                continue

    def stores(self) -> list[str]:
        """Return the stores (folders, URLs) of valid lines without `secret=`.

        Return the store of this host if no line is valid.
        """
        used = [None if s.secret is not None else s.store for _, s in self.settings()]
        if used:
            return sorted({store for store in used if store is not None})
        database = self.site().database
        return [DEFAULT_STORE if database is None else database.url]

    def modules(self) -> list[str]:
        """Return the module files that the lines name, or the installed module if there is no line."""
        folder = self.machine.module_folder() or "/usr/lib/security"
        targets = {h.rule.target for _, h in self.lines()} or {ACCOUNT + ".so"}
        return sorted(os.path.join(folder, t) for t in targets)

    def helpers(self) -> dict[str, str]:
        """Return the interpreter of each helper that a login may start, by the helper's path."""
        helpers: dict[str, str] = {}
        interpreter = "/usr/bin/python3"
        for module in self.modules():
            try:
                with open(module, "rb") as file:
                    binary = file.read()
            except OSError:
                continue
            for path in _INTERPRETER.findall(binary)[:1]:
                interpreter = os.fsdecode(path)
            for path in _HELPER.findall(binary)[:1]:
                helpers[os.fsdecode(path)] = interpreter
        return helpers | {str(h): interpreter for _, h in self._argument("helper")}

    def sockets(self) -> list[str]:
        """Return the paths of the sockets to which the relay connects."""
        named = {service: str(path) for service, path in self._argument("socket")}
        used = {named.get(service, SOCKET) for service, _ in self.lines()} or {SOCKET}
        return sorted(used - {"none"})

    def _argument(self, name: str) -> Iterator[tuple[str, object]]:
        for service, handler in self.lines():
            try:
                parsed = parse_arguments(handler.rule.arguments)
            except SettingsError:
                continue
            if name in parsed:
                yield service, parsed[name]
