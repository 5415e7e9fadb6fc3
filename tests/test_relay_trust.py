"""Tests of trust: the relay uses a socket, helper or interpreter only if no other account can change the path."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import as_root
from tests.support.pamconf import Result
from tests.support.relay_kit import AS_ROOT, INTERPRETER, RELAY, ROOT, Log, Setup, build, play
from tests.support.site import OTHER_UID, UNPRIVILEGED_UID

pytestmark = [pytest.mark.bare, pytest.mark.usefixtures("log")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a subfolder for trusted and untrusted files, so that the folder of the stacks stays trusted."""
    path = tmp_path / "folder"
    path.mkdir(0o755)
    return path


@pytest.fixture
def helper(setup: Setup, folder: Path) -> Path:
    return setup.helper("channel.send(b'r0')", folder / "helper.py")


def result(setup: Setup, helper: object, relay: Path = RELAY) -> Result:
    return setup.login("socket=none", f"helper={helper}", "nodelay", relay=relay).result


# ---- helper


def test_a_helper_of_the_same_account_is_started(setup: Setup, log: Log, helper: Path) -> None:
    assert result(setup, helper) == Result.SUCCESS
    assert log() == []


@as_root
@pytest.mark.parametrize("of", ["helper.py", "."])
def test_a_helper_of_another_account_is_refused(setup: Setup, log: Log, folder: Path, helper: Path, of: str) -> None:
    os.chown(folder / of, OTHER_UID, -1)
    assert result(setup, helper) == Result.SERVICE_ERR
    assert log() == [f"refusing {helper}: {folder / of} must belong to a trusted user"]


@pytest.mark.parametrize("of", ["helper.py", "."])
def test_a_world_writable_file_or_folder_is_refused(
    setup: Setup, log: Log, folder: Path, helper: Path, of: str
) -> None:
    (folder / of).chmod(0o777)
    assert result(setup, helper) == Result.SERVICE_ERR
    assert log() == [f"refusing {helper}: {folder / of} must not be writable by other users"]


@pytest.mark.parametrize("of", ["helper.py", "."])
def test_a_group_writable_path_is_refused_only_for_root(setup: Setup, folder: Path, helper: Path, of: str) -> None:
    (folder / of).chmod(0o775)
    assert result(setup, helper) == (Result.SERVICE_ERR if AS_ROOT else Result.SUCCESS)


@pytest.mark.parametrize("mode", [0o1777, 0o1775])
def test_a_sticky_folder_may_be_world_writable(setup: Setup, folder: Path, helper: Path, mode: int) -> None:
    folder.chmod(mode)
    assert result(setup, helper) == Result.SUCCESS


@as_root
def test_a_sticky_folder_of_another_account_is_refused(setup: Setup, folder: Path, helper: Path) -> None:
    folder.chmod(0o1777)
    os.chown(folder, OTHER_UID, -1)
    assert result(setup, helper) == Result.SERVICE_ERR


def test_a_sticky_bit_does_not_make_a_file_trusted(setup: Setup, helper: Path) -> None:
    helper.chmod(0o1777)
    assert result(setup, helper) == Result.SERVICE_ERR


@pytest.mark.parametrize("target", ["folder/helper.py", "./folder/../folder/.//helper.py", "{folder}/helper.py"])
def test_links_are_followed_as_the_kernel_does(setup: Setup, folder: Path, helper: Path, target: str) -> None:
    link = setup.folder / "link.py"
    link.symlink_to(target.format(folder=folder))
    assert result(setup, link) == Result.SUCCESS


def test_a_path_may_contain_dot_dot(setup: Setup, folder: Path, helper: Path) -> None:
    (setup.folder / "there").symlink_to("folder")
    assert result(setup, f"{setup.folder}//there/./../folder/../there///helper.py") == Result.SUCCESS


def test_dot_dot_after_a_link_is_the_parent_of_its_target(setup: Setup, helper: Path, folder: Path) -> None:
    (folder / "inner").mkdir()
    (setup.folder / "there").symlink_to("folder/inner")
    assert result(setup, f"{setup.folder}/there/../helper.py") == Result.SUCCESS
    assert result(setup, f"{setup.folder}/there/../folder/helper.py") == Result.SERVICE_ERR


@as_root
@pytest.mark.parametrize("name", ["link.py", "link"])
def test_a_link_of_another_account_is_refused(setup: Setup, log: Log, folder: Path, helper: Path, name: str) -> None:
    link = setup.folder / name
    link.symlink_to(helper if name == "link.py" else folder)
    os.chown(link, OTHER_UID, -1, follow_symlinks=False)
    path = link if name == "link.py" else link / "helper.py"
    assert result(setup, path) == Result.SERVICE_ERR
    assert log() == [f"refusing {path}: {link} must belong to a trusted user"]


@pytest.mark.parametrize("target", ["helper.py", "../folder/helper.py", "{open}/../folder/helper.py"])
def test_a_link_in_a_world_writable_folder_is_refused(
    setup: Setup, log: Log, folder: Path, helper: Path, target: str
) -> None:
    opened = setup.folder / "open"
    opened.mkdir()
    opened.chmod(0o777)
    (opened / "helper.py").symlink_to(target.format(open=opened))
    (setup.folder / "start.py").symlink_to("open/helper.py")
    assert result(setup, setup.folder / "start.py") == Result.SERVICE_ERR
    assert log() == [f"refusing {setup.folder}/start.py: {opened} must not be writable by other users"]


def test_a_link_through_a_world_writable_folder_is_refused(setup: Setup, log: Log, folder: Path, helper: Path) -> None:
    opened = setup.folder / "open"
    opened.mkdir()
    opened.chmod(0o777)
    link = setup.folder / "link.py"
    link.symlink_to("open/../folder/helper.py")
    assert result(setup, link) == Result.SERVICE_ERR
    assert log() == [f"refusing {link}: {setup.folder}/open must not be writable by other users"]


@pytest.mark.parametrize(("links", "expected"), [(40, Result.SUCCESS), (41, Result.SERVICE_ERR)])
def test_forty_links_are_followed(setup: Setup, helper: Path, links: int, expected: Result) -> None:
    target = helper
    for i in range(links):
        link = setup.folder / f"link{i}"
        link.symlink_to(target)
        target = link
    assert result(setup, target) == expected


def test_links_in_a_circle_are_refused(setup: Setup, log: Log) -> None:
    (setup.folder / "a").symlink_to("b")
    (setup.folder / "b").symlink_to("a")
    assert result(setup, setup.folder / "a") == Result.SERVICE_ERR
    assert "must have at most 40 links" in log()[0]


def test_a_path_may_be_long(setup: Setup, folder: Path, helper: Path) -> None:
    assert result(setup, f"{folder}{'/' * 300}helper.py") == Result.SUCCESS


def test_a_link_that_makes_the_path_too_long_is_refused(setup: Setup, log: Log, folder: Path, helper: Path) -> None:
    link = folder / "link.py"
    link.symlink_to("./" * 2043 + "helper.py")  # 4095 bytes: the maximum length of a link's target
    assert result(setup, link) == Result.SERVICE_ERR
    assert log()[0].endswith("must have at most 40 links and 4095 bytes")


def test_a_missing_helper_is_refused(setup: Setup, log: Log, folder: Path) -> None:
    assert result(setup, folder / "other.py") == Result.SERVICE_ERR
    assert log() == [f"refusing {folder}/other.py: {folder}/other.py not found"]


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to a folder", "link to the root folder", "link to itself"])
def test_a_helper_that_is_not_a_file_is_refused(setup: Setup, folder: Path, kind: str) -> None:
    path = folder / "x"
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "link to a folder":
            path.symlink_to(".")
        case "link to the root folder":
            path.symlink_to("/")
        case "link to itself":
            path.symlink_to("x")
    assert result(setup, path) == Result.SERVICE_ERR


@as_root
def test_the_builder_is_trusted_if_one_is_compiled_in(setup: Setup, folder: Path, helper: Path) -> None:
    os.chown(folder, OTHER_UID, -1)
    os.chown(helper, OTHER_UID, -1)
    assert result(setup, helper) == Result.SERVICE_ERR
    assert result(setup, helper, relay=build(BUILDER=OTHER_UID)) == Result.SUCCESS
    assert result(setup, helper, relay=build(BUILDER=OTHER_UID + 1)) == Result.SERVICE_ERR


@as_root
def test_the_service_account_is_not_trusted_with_a_helper(setup: Setup, helper: Path) -> None:
    os.chown(helper, UNPRIVILEGED_UID, -1)
    assert result(setup, helper, relay=build(ACCOUNT="nobody")) == Result.SERVICE_ERR


def test_the_compiled_in_helper_is_used_unless_an_argument_names_another(setup: Setup, helper: Path) -> None:
    compiled = build(HELPER=str(helper))
    assert setup.login("socket=none", relay=compiled).result == Result.SUCCESS
    assert result(setup, "/nonexistent/helper.py", relay=compiled) == Result.SERVICE_ERR


@as_root
def test_a_foreign_module_beside_the_package_is_not_imported(setup: Setup, folder: Path) -> None:
    """Other accounts can add files to a sticky folder. The helper must import only the package from that folder."""
    shutil.copytree(ROOT / "pam_totp", folder / "pam_totp")
    folder.chmod(0o1777)
    sprung = folder / "sprung"
    for name in ("socket", "json", "hmac", "selectors", "tomllib", "syslog"):
        trap = folder / f"{name}.py"
        trap.write_text(f"open({str(sprung)!r}, 'w')\n")
        os.chown(trap, OTHER_UID, OTHER_UID)
    assert result(setup, folder / "pam_totp" / "pam" / "helper.py") != Result.SERVICE_ERR
    assert not sprung.exists()


# ---- interpreter


@pytest.fixture
def interpreter(folder: Path) -> Path:
    """Write an interpreter for the tests: a script that starts Python. Return its path."""
    path = folder / "interpreter"
    path.write_text(f'#!/bin/sh\nexec {INTERPRETER} "$@"\n')
    path.chmod(0o755)
    return path


def test_an_interpreter_may_be_a_link(setup: Setup, helper: Path, interpreter: Path) -> None:
    link = setup.folder / "python"
    link.symlink_to(interpreter)
    assert result(setup, helper, relay=build(INTERPRETER=str(link))) == Result.SUCCESS


@pytest.mark.parametrize("mode", [0o644, 0o757])
def test_an_interpreter_that_is_writable_or_not_executable_is_refused(
    setup: Setup, log: Log, helper: Path, interpreter: Path, mode: int
) -> None:
    interpreter.chmod(mode)
    assert result(setup, helper, relay=build(INTERPRETER=str(interpreter))) == Result.SERVICE_ERR
    assert log()[0].startswith(f"refusing {interpreter}: {interpreter} ")


@as_root
def test_an_interpreter_of_another_account_is_refused(setup: Setup, helper: Path, interpreter: Path) -> None:
    os.chown(interpreter, OTHER_UID, -1)
    assert result(setup, helper, relay=build(INTERPRETER=str(interpreter))) == Result.SERVICE_ERR


def test_a_missing_interpreter_is_refused(setup: Setup, helper: Path, folder: Path) -> None:
    assert result(setup, helper, relay=build(INTERPRETER=str(folder / "none"))) == Result.SERVICE_ERR


def test_an_interpreter_that_does_not_start_is_unavailable(
    setup: Setup, log: Log, helper: Path, interpreter: Path
) -> None:
    interpreter.write_text("#!/nonexistent/sh\n")
    assert result(setup, helper, relay=build(INTERPRETER=str(interpreter))) == Result.AUTHINFO_UNAVAIL
    assert log() == [f"denied: cannot start {interpreter}: No such file or directory"]


# ---- socket: the relay starts a helper if the socket is untrusted


@pytest.fixture
def asked(setup: Setup, helper: Path, folder: Path) -> Iterator[Callable[..., str]]:
    """Yield a function that logs in, and returns the source of the decision: "service" or "helper"."""
    with setup.service(play(b"r7"), folder / "socket"):

        def attempt(path: Path = folder / "socket", relay: Path = RELAY) -> str:
            done = setup.login(f"socket={path}", f"helper={helper}", "nodelay", relay=relay)
            return {Result.SUCCESS: "helper", Result.AUTH_ERR: "service"}[done.result]

        yield attempt


@pytest.mark.parametrize("mode", [0o600, 0o666])
def test_a_service_is_used_if_all_accounts_may_connect_to_it(
    asked: Callable[..., str], log: Log, folder: Path, mode: int
) -> None:
    (folder / "socket").chmod(mode)
    assert asked() == "service"
    assert log() == []


@as_root
@pytest.mark.parametrize("of", ["socket", "."])
def test_a_socket_of_an_untrusted_account_is_not_used(setup: Setup, folder: Path, log: Log, of: str) -> None:
    helper = setup.helper("channel.send(b'r0')")
    with setup.service(play(b"r7"), folder / "socket") as service:
        os.chown(folder / of, OTHER_UID, -1)
        assert setup.login(service.argument, f"helper={helper}").result == Result.SUCCESS
        assert service.logins == 0
    assert log() == [f"refusing {service.path}: {folder / of} must belong to a trusted user"]


def test_a_socket_in_a_world_writable_folder_is_not_used(setup: Setup, folder: Path, log: Log) -> None:
    helper = setup.helper("channel.send(b'r0')")
    folder.chmod(0o777)
    with setup.service(play(b"r7"), folder / "socket") as service:
        assert setup.login(service.argument, f"helper={helper}").result == Result.SUCCESS
        assert service.logins == 0
    assert log() == [f"refusing {service.path}: {folder} must not be writable by other users"]


def test_a_socket_may_be_behind_a_link(setup: Setup, asked: Callable[..., str], folder: Path) -> None:
    (setup.folder / "run").symlink_to("folder")
    assert asked(setup.folder / "run" / "socket") == "service"


@pytest.mark.parametrize("path", ["none", "none/socket", "helper.py/socket"])
def test_without_a_socket_a_helper_is_used_and_nothing_is_logged(
    asked: Callable[..., str], log: Log, folder: Path, path: str
) -> None:
    assert asked(folder / path) == "helper"
    assert log() == []


def test_with_a_stale_socket_a_helper_is_started(asked: Callable[..., str], log: Log, folder: Path) -> None:
    path = folder / "stale"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert asked(path) == "helper"
    assert log() == []


def test_with_a_socket_of_another_type_a_helper_is_started(asked: Callable[..., str], folder: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / "stream"))
        listener.listen()
        assert asked(folder / "stream") == "helper"


def test_with_a_regular_file_as_socket_a_helper_is_started(
    asked: Callable[..., str], log: Log, folder: Path, helper: Path
) -> None:
    assert asked(helper) == "helper"
    assert log() == [f"refusing {helper}: {helper} has the wrong file type, or is not executable"]


# A service of another account: root binds the socket, then a process of that account listens on it.
LISTEN = """
import os, socket, sys
path, uid, owner = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(path)
os.chown(path, owner, -1)
os.setresuid(uid, uid, uid)
listener.listen()
print("ready", flush=True)
channel, _ = listener.accept()
channel.recv(8192)
channel.send(b"r7")
channel.recv(1)
"""


@contextmanager
def listening(path: Path, peer: int, owner: int) -> Iterator[None]:
    command: list[str | Path] = [sys.executable, "-c", LISTEN, path, str(peer), str(owner)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield
        finally:
            process.kill()


@as_root
@pytest.mark.parametrize(
    ("peer", "owner"), [(0, 0), (UNPRIVILEGED_UID, UNPRIVILEGED_UID), (UNPRIVILEGED_UID, 0), (0, UNPRIVILEGED_UID)]
)
def test_a_socket_of_the_service_account_is_used(
    asked: Callable[..., str], log: Log, folder: Path, peer: int, owner: int
) -> None:
    with listening(folder / "other", peer, owner):
        assert asked(folder / "other", build(ACCOUNT="nobody")) == "service"
    assert log() == []


@as_root
@pytest.mark.parametrize("account", ["no-such-account", "root", "daemon"])
def test_a_socket_of_another_account_is_not_used(
    asked: Callable[..., str], log: Log, folder: Path, account: str
) -> None:
    with listening(folder / "other", UNPRIVILEGED_UID, UNPRIVILEGED_UID):
        assert asked(folder / "other", build(ACCOUNT=account)) == "helper"
    assert log() == [f"refusing {folder}/other: {folder}/other must belong to a trusted user"]


@as_root
def test_a_trusted_socket_with_an_untrusted_listener_is_not_used(
    asked: Callable[..., str], log: Log, folder: Path
) -> None:
    with listening(folder / "other", OTHER_UID, 0):
        assert asked(folder / "other") == "helper"
    assert log() == [f"refusing {folder}/other: the listener runs as an untrusted user"]
