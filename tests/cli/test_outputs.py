"""Tests of the files that a command creates: each is complete or absent, has mode 0600, and belongs to the caller."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from pam_totp.cli import files_out
from pam_totp.cli.command_line import CommandError
from tests.conftest import as_root
from tests.support.nth_call import killed
from tests.support.site import ME, OTHER_UID, PATIENCE, TREE, UNPRIVILEGED_UID, Site, fob

KEY = b"a key of many bytes " * 50


def no_unnamed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a file system without O_TMPFILE."""
    real = os.open

    def opened(name: str, flags: int, *arguments: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(name, flags, *arguments, **named)

    monkeypatch.setattr(os, "open", opened)


@pytest.mark.parametrize("call", ["open", "fchmod", "write", "fsync", "link"])
def test_a_killed_command_leaves_a_complete_file_or_none(tmp_path: Path, call: str) -> None:
    path, kills = tmp_path / "file", 0

    def write() -> None:
        with files_out.new_file(str(path)) as file:
            file.write(KEY)

    while killed(write, call, kills + 1):
        kills += 1
        assert os.listdir(tmp_path) in ([], ["file"])
        if path.exists():
            assert path.read_bytes() == KEY
            path.unlink()
    assert kills > 0
    assert path.read_bytes() == KEY
    assert path.stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("unnamed", [True, False])
def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unnamed: bool) -> None:
    if not unnamed:
        no_unnamed_files(monkeypatch)

    def full(file: int, data: bytes) -> int:
        if len(data) < len(KEY):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data[:100])

    real = os.write
    monkeypatch.setattr(os, "write", full)
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space left") as failed, files_out.new_file(str(path)) as file:
        file.write(KEY)
    assert failed.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_unnamed_files_gets_a_named_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_unnamed_files(monkeypatch)
    path = tmp_path / "file"
    with files_out.new_file(str(path)) as file:
        file.write(KEY)
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (KEY, 0o600)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), files_out.new_file(str(tmp_path / "other")) as file:
            file.write(KEY)
            raise error
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o777, 0])
def test_the_mode_does_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with files_out.new_file(str(tmp_path / "file")) as file:
            file.write(KEY)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o600


def test_a_file_that_appears_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(CommandError, match="already exists"), files_out.new_file(str(path)) as file:
        path.write_text("of another process")
        file.write(KEY)
    assert path.read_text() == "of another process"


def test_only_the_created_file_is_removed(tmp_path: Path) -> None:
    """The test redirects the path to another folder, or replaces the file, before the removal."""
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (other / "file").write_text("of another user")
    with pytest.raises(RuntimeError), files_out.new_file(str(folder / "file")) as file:
        file.write(KEY)
        folder.rename(tmp_path / "moved")
        folder.symlink_to(other)
        raise RuntimeError
    assert (other / "file").read_text() == "of another user"
    assert os.listdir(tmp_path / "moved") == []
    with pytest.raises(RuntimeError), files_out.new_file(str(tmp_path / "moved" / "file")) as file:
        file.write(KEY)
        (tmp_path / "moved" / "file").unlink()
        (tmp_path / "moved" / "file").write_text("of another user")
        raise RuntimeError
    assert (tmp_path / "moved" / "file").read_text() == "of another user"


@pytest.mark.parametrize("kind", ["open", "full", "of another user"])
def test_a_folder_that_replaced_the_new_folder_gets_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "of another user" and os.geteuid() != 0:
        pytest.skip("only root can change the owner of a folder")
    planted, place = tmp_path / "planted", tmp_path / "out"
    planted.mkdir(0o700)
    if kind == "open":
        planted.chmod(0o777)
    elif kind == "full":
        (planted / "alice").write_text("of another process")
    else:
        os.chown(planted, 4242, 4242)
    before = planted.stat().st_mode, sorted(os.listdir(planted))
    real = os.mkdir

    def mkdir(name: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        real(name, mode, dir_fd=dir_fd)
        place.rename(tmp_path / "moved")
        planted.rename(place)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(CommandError, match="another process"), files_out.new_folder(str(place)) as folder:
        folder.write([("bob", KEY), ("alice", KEY)])
    assert (place.stat().st_mode, sorted(os.listdir(place))) == before
    assert os.listdir(tmp_path / "moved") == []


def test_a_failed_export_deletes_only_its_own_files(tmp_path: Path) -> None:
    place = tmp_path / "out"

    def files() -> Iterator[tuple[str, bytes]]:
        yield "bob", KEY
        (place / "carl").write_text("of another process")
        yield "carl", KEY

    with pytest.raises(CommandError, match="already exists"), files_out.new_folder(str(place)) as folder:
        folder.write(files())
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("carl", "of another process")]
    with pytest.raises(RuntimeError), files_out.new_folder(str(tmp_path / "new")) as folder:
        folder.write([("bob", KEY), ("carl", KEY)])
        raise RuntimeError
    assert not (tmp_path / "new").exists()


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with files_out.new_file(str(tmp_path / "file")) as file:
        file.write(b"x")
    with pytest.raises(CommandError, match="already exists"), files_out.new_file(str(tmp_path / "file")):
        pass
    with pytest.raises(FileNotFoundError, match="nosuch"), files_out.new_file(str(tmp_path / "nosuch" / "file")):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_an_enrolment_deletes_the_picture(site: Site, tmp_path: Path, number: int) -> None:
    path = tmp_path / "code.png"
    command = ["-m", "pam_totp.cli", "enroll", ME, "--store", str(site.store), "--qr", f"png={path}"]
    talk = pexpect.spawn(sys.executable, command, cwd=str(TREE), timeout=PATIENCE)
    talk.expect("then type the code it shows: ")
    assert path.read_bytes().startswith(b"\x89PNG"), "the picture is complete while the command waits for the code"
    talk.kill(number)
    talk.expect(pexpect.EOF)
    talk.close()
    assert talk.exitstatus == 128 + number
    assert not path.exists()
    assert not site.path().exists()


@as_root
def test_root_writes_to_a_folder_closed_to_the_stores_owner(site: Site) -> None:
    """A failed command deletes its file in root's folder, although the command runs as the store's owner."""
    folder = site.folder / "closed"
    folder.mkdir(0o700)
    site.enrol(fob(7))
    for path in (site.store, site.path()):
        os.chown(path, 65534, 65534)
    done = site.command("export", ME, "--format", "json", "--output", folder / "record.json")
    assert done.returncode == 0, done.stderr
    status = (folder / "record.json").stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (0, 0, 0o600)
    picture = folder / "code.png"
    assert site.command("qr", ME, "--yes", "--qr", f"png={picture}").returncode == 0
    assert picture.stat().st_uid == 0
    picture.unlink()
    refused = site.command("enroll", ME, "--qr", f"png={picture}", stdin="000000\n" * 3)
    assert (refused.returncode, "3 answers were wrong" in refused.stderr) == (1, True)
    unknown = site.command("export", "zoe", "--format", "json", "--output", folder / "zoe.json")
    assert unknown.returncode == 1
    assert os.listdir(folder) == ["record.json"]
    assert site.path().stat().st_uid == 65534


@as_root
@pytest.mark.parametrize("words", [["list"], ["verify", ME, "755224"], ["export", "--all", "--format", "json"]])
def test_an_error_for_root_names_the_folder_closed_to_the_stores_owner(site: Site, words: list[str]) -> None:
    site.enrol()
    site.give_to(UNPRIVILEGED_UID)
    site.folder.chmod(0o700)
    output = ["--output", str(site.folder / "new")] if "export" in words else []
    done = site.command(*words, *output)
    owner = pwd.getpwuid(UNPRIVILEGED_UID).pw_name
    why = f"{owner}, the owner of the store, cannot enter {site.folder}"
    said = f"pam-totp: {site.store}: permission denied ({why}: move the store, or run 'chmod a+x {site.folder}')\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", said)


@as_root
@pytest.mark.parametrize("uid", [UNPRIVILEGED_UID, OTHER_UID])
def test_an_error_for_root_has_the_remedy_for_a_record_of_another_owner(site: Site, uid: int) -> None:
    site.enrol()
    site.give_to(uid)
    os.chown(site.path(), 0, 0)
    done = site.command("list", ME)
    assert done.returncode == 3
    assert "as root" not in done.stderr
    remedy = re.search(r"run '(chown -R -h (\S+) .*)'\)$", done.stderr)
    assert remedy is not None
    assert remedy[2] == (f"{uid}:{uid}" if uid == OTHER_UID else f"{pwd.getpwuid(uid).pw_name}:")
    subprocess.run(shlex.split(remedy[1]), check=True)
    assert site.command("list", ME).returncode == 0


@as_root
def test_an_error_for_root_without_a_permission_has_another_remedy(site: Site) -> None:
    """Root without capabilities has the same permissions as on a network file system with root_squash."""
    folder = site.folder / "closed"
    folder.mkdir(0o700)
    os.chown(folder, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    command = [sys.executable, "-m", "pam_totp.cli", "import", "csv", str(folder / "tokens.csv")]
    limited = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", "--securebits", "+noroot,+noroot_locked"]
    done = subprocess.run([*limited, *command], cwd=TREE, capture_output=True, text=True, check=False, timeout=PATIENCE)
    why = "root has no permission on some network file systems: use a folder on a local disk"
    assert (done.returncode, done.stderr) == (3, f"pam-totp: {folder}/tokens.csv: permission denied ({why})\n")


@as_root
def test_a_command_without_an_output_file_drops_root_permanently(site: Site) -> None:
    site.give_to(65534)
    script = f"""
import os
from argparse import Namespace
from pam_totp.cli.store_access import open_store
from pam_totp.pam.privileges import acting_as_root
from pam_totp.system.audit import Audit
for keep_root in (True, False):
    open_store(Namespace(store={str(site.store)!r}, audit=Audit()), keep_root=keep_root)
    inside = "-"
    with acting_as_root():
        inside = os.geteuid(), os.getegid()
    print(os.getresuid(), os.getresgid(), os.getgroups(), inside)
    with acting_as_root():
        pass
    if keep_root:
        os.seteuid(0)
        os.setegid(0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=TREE, text=True, capture_output=True, check=True)
    assert done.stdout.splitlines() == [
        "(0, 65534, 0) (0, 65534, 0) [] (0, 0)",
        "(65534, 65534, 65534) (65534, 65534, 65534) [] (65534, 65534)",
    ]
