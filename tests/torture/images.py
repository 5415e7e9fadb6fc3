"""File systems that tests mount and fill in a private mount namespace: ext4 and xfs in images, and tmpfs."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.torture.private import mount

MIB = 1 << 20
SIZES = {"ext4": 24 * MIB, "xfs": 320 * MIB}  # bytes; mkfs.xfs needs at least 300 MiB
OPTIONS = {"ext4": ("-q", "-m", "0", "-N", "1024"), "xfs": ("-q", "-i", "maxpct=1")}  # few inodes: tests use them up


def _has_loop_device() -> bool:
    try:
        return subprocess.run(["losetup", "--find"], check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def needs(system: str) -> pytest.MarkDecorator:
    """Return the mark for tests that mount an image of `system`."""
    is_missing = shutil.which(f"mkfs.{system}") is None or not _has_loop_device()
    return pytest.mark.skipif(is_missing, reason=f"requires mkfs.{system} and a loop device")


ON_DISK = [pytest.param(system, marks=needs(system)) for system in SIZES]
SYSTEMS = ["tmpfs", *ON_DISK]


def make_and_mount(system: str, image: Path, folder: Path) -> None:
    """Create a file system of the kind `system`, and mount it on `folder` with mode 0700. tmpfs needs no `image`."""
    if system == "tmpfs":
        mount("-t", "tmpfs", "-o", "size=2m,nr_inodes=120,mode=0700", "private", str(folder))
        return
    with open(image, "wb") as file:
        file.truncate(SIZES[system])
    subprocess.run([f"mkfs.{system}", *OPTIONS[system], str(image)], check=True, capture_output=True)
    mount("-o", "loop", str(image), str(folder))
    shutil.rmtree(folder / "lost+found", ignore_errors=True)
    folder.chmod(0o700)


def fill(folder: Path) -> None:
    """Allocate all free blocks, including the blocks for new inodes and directory entries."""
    file = os.open(folder / "ballast", os.O_WRONLY | os.O_CREAT, 0o600)
    end = 0
    for size in (64 * MIB, 4 * MIB, MIB, 65_536, 4096):
        while _fits(lambda: os.posix_fallocate(file, end, size)):  # noqa: B023  called at once
            end += size
    os.close(file)
    number = 0
    while _fits(lambda: (folder / f"ballast{number}").write_bytes(b"x" * 4096)):  # noqa: B023
        number += 1
    os.sync()
    while not is_full(folder):  # xfs releases preallocated blocks after a sync
        os.sync()


def is_full(folder: Path) -> bool:
    """Return True if the file system has no free data blocks except its reserves."""
    with open(folder / "ballast", "ab", buffering=0) as ballast:
        return not _fits(lambda: ballast.write(b"x" * 4096))


def use_up_inodes(folder: Path) -> None:
    number = 0
    while _fits((folder / f"ballast{number}").touch):
        number += 1
    assert number > 0


def _fits(work: object) -> bool:
    assert callable(work)
    try:
        work()
    except OSError as e:
        assert e.errno == errno.ENOSPC, e
        return False
    return True


def free_space(folder: Path) -> None:
    for ballast in folder.glob("ballast*"):
        ballast.unlink()
