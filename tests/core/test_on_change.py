"""Tests of the runner that reports changes to the site's program: limits, summaries, failures, the sending process."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pam_totp.core.settings import SettingsError, parse_site
from pam_totp.operations import audit_log, on_change
from pam_totp.system import hook
from pam_totp.system.hook import BURST, MAX_WAIT, QUIET, Changes, change_of, defect, program
from tests.conftest import as_root
from tests.support.site import PATIENCE, until


def change(what: str = "import", **fields: Any) -> hook.Change:
    given = {"service": "pam-totp", "now": 1000, "fields": {"what": what, "user": "alice", "by": "bob"} | fields}
    return change_of(json.dumps(given).encode())


# ---- changes


def test_a_change_has_the_fields_of_its_log_line() -> None:
    told = change("enable", user=None, at=7, service="sshd", state="trial")
    assert told.pop("host") == os.uname().nodename
    assert told == {
        **{"what": "enable", "user": None, "token": None, "by": "bob", "at": 7, "service": "pam-totp", "changes": 1},
        "details": {"service": "sshd", "state": "trial"},
    }
    assert (change()["at"], change(omitted=5)["changes"], change(omitted=5)["details"]) == (1000, 5, {})


def test_the_first_changes_are_told_each_and_the_others_in_a_summary() -> None:
    changes = Changes(0.0)
    for number in range(BURST + 2):
        changes.add(change(user=str(number)), 0.0)
    changes.add(change("import", user=None, omitted=100), 0.5)
    changes.add(change("remove", by="carol"), 0.5)
    changes.add_uncounted(3, 0.5)
    assert [changes.next()["user"] for _ in range(BURST)] == [str(number) for number in range(BURST)]
    assert changes.wait(0.5) == QUIET
    assert changes.wait(0.5 + QUIET) == 0
    summary = changes.next()
    assert (summary["what"], summary["user"], summary["by"], summary["changes"]) == ("summary", None, None, 106)
    assert summary["details"] == {"import": 102, "remove": 1, "other": 3}
    assert changes.wait(1.0) is None
    changes.add(change(), 1.5)
    assert changes.wait(1.5) == QUIET, "the permitted burst is exhausted"
    assert changes.next()["by"] == "bob"


def test_an_endless_flood_gets_a_summary_each_minute() -> None:
    changes = Changes(0.0)
    now = 0.0
    while changes.wait(now) is None or changes._single:
        changes.add(change(), now)
        while changes._single:
            changes.next()
    began = now
    while (wait := changes.wait(now)) != 0:
        assert wait is not None
        now += QUIET / 2
        changes.add(change(), now)
    assert now - began == MAX_WAIT


def test_the_allowance_returns_with_time() -> None:
    changes = Changes(0.0)
    for _ in range(BURST):
        changes.add(change(), 0.0)
        changes.next()
    changes.add(change("later"), 60.0)
    assert changes.next()["what"] == "later"


# ---- settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("[hooks]\n", None),
        ('[hooks]\non_change = "/usr/local/sbin/told"\n', "/usr/local/sbin/told"),
    ],
)
def test_the_program_is_named_by_the_site_file(text: str, expected: str | None) -> None:
    assert program(parse_site(text)) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hooks = 1\n", "must be a table"),
        ("[hooks]\non_chang = 1\n", "unknown setting 'on_chang'"),
        ('[hooks]\non_change = "told"\n', "must be an absolute path"),
        ("[hooks]\non_change = 1\n", "must be an absolute path"),
    ],
)
def test_an_invalid_table_is_an_error_but_denies_no_login(text: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        program(parse_site(text))


# ---- programs


@as_root
def test_a_program_must_be_an_executable_file_that_only_root_can_change(tmp_path: Path) -> None:
    path = tmp_path / "told"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    assert defect(str(path)) is None
    path.chmod(0o644)
    assert "executable" in str(defect(str(path)))
    path.chmod(0o775)
    assert "other than root" in str(defect(str(path)))
    path.chmod(0o755)
    os.chown(path, 1, 1)
    assert "belongs to uid 1" in str(defect(str(path)))
    assert "regular file" in str(defect("/usr"))


class Told:
    """A runner in a thread of this process, with a program that is a shell script."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.script = folder, folder / "told"
        self.lines: list[str] = []
        monkeypatch.setattr(audit_log, "to_syslog", lambda _, line: self.lines.append(line))
        monkeypatch.setattr(hook, "distrust", lambda path: None)
        self.site_file = folder / "site.toml"
        self.site_file.write_text(f'[hooks]\non_change = "{self.script}"\n')
        self.site_file.chmod(0o644)
        self.does("cat >>told.json")
        self.near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.memory = os.memfd_create("changes")
        runner = hook.Runner(far, self.memory, str(self.site_file))
        self.thread = threading.Thread(target=self._run, args=(runner, far))
        self.thread.start()

    @staticmethod
    def _run(runner: hook.Runner, far: socket.socket) -> None:
        with far:
            runner.run()

    def does(self, command: str) -> None:
        self.script.write_text(f"#!/bin/sh\ncd {self.folder}\n{command}\n")
        self.script.chmod(0o755)

    def send(self, **fields: Any) -> None:
        message = {"service": "pam-totp", "now": 1000, "fields": {"what": "remove"} | fields}
        self.near.send(json.dumps(message).encode())

    def ends(self) -> None:
        self.near.close()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def users(self) -> list[str | None]:
        return [json.loads(line)["user"] for line in (self.folder / "told.json").read_text().splitlines()]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    made = Told(tmp_path, monkeypatch)
    yield made
    made.ends()
    os.close(made.memory)


def test_the_runner_tells_all_changes_in_their_order_before_it_ends(told: Told) -> None:
    for user in ("alice", "bob", "carol"):
        told.send(user=user)
    told.ends()
    assert told.users() == ["alice", "bob", "carol"]
    assert told.lines == []


def test_changes_that_the_socket_could_not_take_are_in_a_summary(told: Told) -> None:
    told.send(user="alice")
    os.pwrite(told.memory, (7).to_bytes(8, "big"), 0)
    told.ends()
    alice, summary = map(json.loads, (told.folder / "told.json").read_text().splitlines())
    assert (alice["user"], summary["what"], summary["changes"]) == ("alice", "summary", 7)


def test_a_program_that_fails_is_logged_and_the_next_change_is_told(told: Told) -> None:
    told.does("cat >>told.json; exit 3")
    told.send(user="alice")
    until(lambda: told.lines, "the failure is logged")
    told.does("cat >>told.json")
    told.send(user="bob")
    told.ends()
    assert told.users() == ["alice", "bob"]
    assert told.lines == [
        f"pam_totp(on_change:auth): error problem={audit_log.escaped(f'{told.script}: exit status 3')}"
    ]


def test_a_program_that_does_not_end_is_killed(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "TIME_LIMIT", 0.05)
    told.does("sleep 600 & echo $! >child; wait")
    told.send(user="alice")
    told.ends()
    (line,) = told.lines
    assert "killed after 0.05 s" in line


def test_a_program_that_is_missing_is_logged(told: Told) -> None:
    told.script.unlink()
    told.send(user="alice")
    told.ends()
    assert "must be a regular file" in told.lines[0]


def test_a_program_that_reads_nothing_is_no_error(told: Told) -> None:
    told.does("exit 0")
    told.send(user="alice")
    told.ends()
    assert told.lines == []


# ---- the sending process


@pytest.fixture
def sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], on_change.Runner]]:
    """Yield a function that creates a sender. The process of the sender writes each received change into `got`."""
    site_file = tmp_path / "site.toml"
    site_file.write_text('[hooks]\non_change = "/told"\n')
    runner = "import socket, sys, os\nwhile (m := socket.socket(fileno=os.dup(0)).recv(9999)):\n"
    runner += f"    with open({str(tmp_path / 'got')!r}, 'ab') as f: f.write(m + b'\\n')\n    if b'stop' in m: break\n"
    monkeypatch.setattr(on_change, "_START", runner)
    made: list[on_change.Runner] = []

    def make() -> on_change.Runner:
        made.append(on_change.Runner(str(site_file)))
        return made[-1]

    yield make
    for one in made:
        if one._channel is not None:
            one._channel.close()
            os.close(one._memory)
            os.waitpid(one._process, 0)


def got(folder: Path) -> list[str]:
    path = folder / "got"
    complete = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""  # the last line can be incomplete
    return [json.loads(line)["fields"]["what"] for line in complete.splitlines()]


def test_one_runner_gets_all_changes_and_another_follows_if_it_ends(
    sender: Callable[[], on_change.Runner], tmp_path: Path
) -> None:
    sending = sender()
    sending.tell("demo", {"what": "one"})
    first = sending._process
    sending.tell("demo", {"what": "stop", "user": None})
    assert sending._process == first
    until(lambda: got(tmp_path) == ["one", "stop"], "the runner receives both changes")
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    sending.tell("demo", {"what": "two"})
    until(lambda: got(tmp_path) == ["one", "stop", "two"], "the next runner receives the change")


@pytest.mark.parametrize(("module", "name"), [(os, "memfd_create"), (socket, "socketpair"), (os, "posix_spawn")])
def test_a_runner_that_cannot_start_closes_no_other_descriptor(
    sender: Callable[[], on_change.Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    sending = sender()
    sending.tell("demo", {"what": "stop"})
    until(lambda: got(tmp_path) == ["stop"], "the runner receives the change")
    os.waitid(os.P_PID, sending._process, os.WEXITED | os.WNOWAIT)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        with pytest.raises(OSError, match="Too many open files"):
            sending.tell("demo", {"what": "one"})
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]  # these files occupy the free descriptor numbers
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    sending.tell("demo", {"what": "two"})
    until(lambda: got(tmp_path) == ["stop", "two"], "the next runner receives the change")
    for file in others:
        os.close(file)
    assert os.waitpid(child, 0)[0] == child, "only the runner is reaped"


def test_a_full_channel_does_not_delay_a_change(sender: Callable[[], on_change.Runner], tmp_path: Path) -> None:
    sending = sender()
    sending.tell("demo", {"what": "one"})
    os.kill(sending._process, 19)  # SIGSTOP
    for _ in range(3000):
        sending.tell("demo", {"what": "more", "padding": 200 * "x"})
    assert 0 < sending._unsent < 3000
    assert int.from_bytes(os.pread(sending._memory, 8, 0), "big") == sending._unsent
    os.kill(sending._process, 18)  # SIGCONT
    until(lambda: len(got(tmp_path)) == 3001 - sending._unsent, "the others arrive")


def test_no_runner_starts_without_a_program(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("[policy]\n")
    for path in (tmp_path / "site.toml", tmp_path / "missing"):
        sending = on_change.Runner(str(path))
        sending.tell("demo", {"what": "one"})
        assert sending._channel is None


def test_every_line_about_a_change_and_no_other_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, object]] = []
    monkeypatch.setattr(on_change, "tell", lambda service, fields: found.append((service, fields)))
    for verb in audit_log._PRIORITIES:
        audit_log.write(lambda *_: None, "demo", verb, user="alice")
    assert found == [("demo", {"user": "alice"})]


def test_a_runner_that_cannot_start_is_logged_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(service: str, fields: object) -> None:
        raise OSError("no process")

    lines: list[str] = []
    monkeypatch.setattr(on_change, "tell", fails)
    monkeypatch.setattr(audit_log, "to_syslog", lambda _, line: lines.append(line))
    audit_log.write(lambda *_: None, "demo", "changed", user="alice")
    (line,) = lines
    assert "on_change:auth): error" in line
    assert "no process" in line


def test_a_runner_that_cannot_drop_the_rights_of_root_starts_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise PermissionError(1, "Operation not permitted")

    lines: list[str] = []
    monkeypatch.setattr(hook, "_drop_rights", fails)
    monkeypatch.setattr(hook, "Runner", None)
    for name in ("umask", "chdir", "closerange"):
        monkeypatch.setattr(os, name, lambda *_: None)
    monkeypatch.setattr(audit_log, "to_syslog", lambda _, line: lines.append(line))
    hook.main()
    (line,) = lines
    assert "the program receives no more changes" in line
    assert "Operation not permitted" in line
