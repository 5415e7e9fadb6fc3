"""Tests of invalid secret files, and of user names that contain a path out of the store."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import as_root
from tests.support.pamconf import Result
from tests.support.site import ME, UNPRIVILEGED_UID, Site, codes


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _symlinked(path: Path) -> None:
    target = path.with_suffix(".real")
    path.rename(target)
    path.symlink_to(target)


def _hidden_in_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o600)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


SPOILED: dict[str, Callable[[Path], object]] = {
    "truncated": _truncated,
    "empty": lambda path: path.write_bytes(b""),
    "oversized": lambda path: path.write_bytes(path.read_bytes() + b" " * 65536),
    "binary": lambda path: path.write_bytes(b"\xff" * 500),
    "another encoding": lambda path: path.write_text(path.read_text().replace("\n ", "\n  ")),
    "counter below zero": lambda path: path.write_text(path.read_text().replace('"counter": 0', '"counter": -1')),
    "counter as text": lambda path: path.write_text(path.read_text().replace('"counter": 0', '"counter": "0"')),
    "another user's": lambda path: path.write_text(path.read_text().replace(f'"{ME}"', '"mallory"')),
    "world-writable": lambda path: path.chmod(0o666),
    "group-readable": lambda path: path.chmod(0o640),
    "symlinked": _symlinked,
    "a folder": _hidden_in_a_folder,
    "a pipe": _pipe,
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_damaged_secret_file_is_refused_logged_and_unchanged(site: Site, way: str, spoiled: str) -> None:
    site.enrol()
    path = site.path()
    SPOILED[spoiled](path)
    before = path.read_bytes() if path.is_file() else None
    status = path.lstat()
    assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL
    assert (path.read_bytes() if path.is_file() else None) == before
    after = path.lstat()
    assert (after.st_ino, after.st_mode, after.st_uid, after.st_mtime_ns) == (
        status.st_ino,
        status.st_mode,
        status.st_uid,
        status.st_mtime_ns,
    )
    if way == "socket":
        assert site.log.has("error", f"user={ME}", f"{ME}.record")
        assert not site.log.has("GEZDGNBV"), "the log contains no secret"


@as_root
def test_a_file_or_folder_of_another_owner_is_refused(site: Site, way: str) -> None:
    site.enrol()
    os.chown(site.path(), UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL
    os.chown(site.path(), 0, 0)
    os.chown(site.store, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL


def test_a_folder_that_others_can_enter_is_refused(site: Site, way: str) -> None:
    site.enrol()
    site.store.chmod(0o750)
    assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL


def test_a_missing_store_folder_is_unavailable_not_unenrolled(site: Site, obeyed_way: str) -> None:
    site.configure("lenient", "nullok", way=obeyed_way)
    shutil.rmtree(site.store)
    assert site.login(codes(0), service="lenient").result is Result.AUTHINFO_UNAVAIL


@as_root
def test_the_helper_of_root_becomes_the_owner_of_the_folder(site: Site) -> None:
    site.configure()
    site.give_to(UNPRIVILEGED_UID)
    site.enrol()
    assert site.gets_in(codes(0))
    assert {(p.stat().st_uid, p.stat().st_gid) for p in site.store.iterdir()} == {(UNPRIVILEGED_UID, UNPRIVILEGED_UID)}


@as_root
@pytest.mark.parametrize(
    "name",
    ["../outside", "a/b", "/etc/shadow", "..", ".", ".hidden", "a b", "ünï", "%2e%2e", "a\nb", b"\xff\xfe", "x" * 300],
)
def test_no_user_name_leaves_the_store(site: Site, way: str, name: str | bytes) -> None:
    user = os.fsdecode(name)
    site.enrol(user="outside")
    shutil.move(site.path("outside"), site.folder / "outside.record")  # the path of "../outside"
    before = sorted(p for p in site.folder.rglob("*") if site.store not in p.parents)
    assert site.login(codes(0), user=user).result in (Result.AUTH_ERR, Result.AUTHINFO_UNAVAIL)
    assert sorted(p for p in site.folder.rglob("*") if site.store not in p.parents) == before
    assert site.files() == set()
