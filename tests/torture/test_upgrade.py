"""Tests of an upgrade from version 1: every user stays enrolled and must enter a code, even on a full disk."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from pam_totp.store.file import FileStore
from tests.conftest import with_mounts
from tests.core.stores import code, enrol_1, log_in
from tests.core.test_store_crash import RIGHT, Program, Traced, can_trace
from tests.support.pamconf import Result
from tests.support.site import ME, Site, codes
from tests.torture.images import SYSTEMS, fill, free_space, make_and_mount
from tests.torture.private import in_mount_namespace


def enrol_in_version_1(site: Site) -> None:
    path = enrol_1(site.store, ME)
    if os.geteuid() == 0:
        os.chown(path, site.store.stat().st_uid, site.store.stat().st_gid)


def test_a_user_of_version_1_is_asked_for_a_code_under_nullok(site: Site, way: str) -> None:
    site.configure("demo", "nullok", way=way)
    enrol_in_version_1(site)
    assert site.login("000000").result is Result.AUTH_ERR
    assert site.files() == {f"{ME}.record", f"{ME}.json"}
    assert (site.store / f"{ME}.json").read_bytes() == b""
    assert site.login(codes(0)).result is Result.SUCCESS
    assert site.login(codes(0)).result is Result.AUTH_ERR


@with_mounts
@pytest.mark.parametrize("system", SYSTEMS)
def test_on_a_full_disk_an_upgrade_still_requires_a_code_of_every_user(site: Site, way: str, system: str) -> None:
    site.stop()

    def work() -> None:
        make_and_mount(system, site.folder / "image", site.store)
        enrol_in_version_1(site)
        fill(site.store)
        if way == "socket":
            site.start()
        site.configure("demo", "nullok", way=way)
        try:
            for answer in (codes(0), "000000"):
                assert site.login(answer).result is Result.AUTHINFO_UNAVAIL
            others = {name for name in site.files() if not name.startswith("ballast")}
            assert others - {f"{ME}.lock"} == {f"{ME}.json"}
            free_space(site.store)
            assert site.login(codes(0)).result is Result.SUCCESS
            assert site.login(codes(0)).result is Result.AUTH_ERR
            assert site.files() == {f"{ME}.record", f"{ME}.json"}
        finally:
            site.stop()

    in_mount_namespace(work)


@with_mounts
@pytest.mark.skipif(not can_trace(), reason="requires strace, and permission to trace child processes")
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_kill_at_any_call_of_a_conversion_on_a_full_disk_loses_no_user(tmp_path: Path, system: str) -> None:
    folder = tmp_path / "store"
    folder.mkdir()

    def work() -> None:
        make_and_mount(system, tmp_path / "image", folder)
        path, store = enrol_1(folder), FileStore(str(folder))
        before = path.read_bytes()
        store.prepare()
        fill(folder)
        with closing(Program()) as program:  # in this namespace
            traced = Traced(folder, program)
            printed, _ = traced.run(RIGHT)
            assert printed.startswith("unavailable: ")
            assert "No space left on device" in printed
            calls = traced.calls()
            assert "openat" in {call.name for call in calls}
            for call in calls:
                assert traced.fault(RIGHT, call, "signal=KILL") == ("", -9), call
                assert store.read("alice").enrolled, call
                assert path.read_bytes() == before, call
        free_space(folder)
        assert log_in(folder, code(0)) == "code"
        assert log_in(folder, code(0)) == "replayed"

    in_mount_namespace(work)
