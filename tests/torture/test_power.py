"""Tests of a power cut. The tests shut a file system down under load, without a flush of the journal.

Rules:
- An acknowledged use of a code, or an acknowledged enrolment, is never lost.
- The store contains the old or the new record after the file system is mounted again, and the next login succeeds.
The shutdown discards the data that the kernel holds in memory. The tests do not simulate the cache of a disk.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import struct
import subprocess
from pathlib import Path

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.store import StoreError
from pam_totp.store.file import FileStore
from tests.conftest import with_mounts
from tests.core.stores import code, log_in
from tests.support.site import ME, Site, fob, phone
from tests.torture.images import ON_DISK, make_and_mount
from tests.torture.pace import report, rounds
from tests.torture.private import in_mount_namespace, mount

_SHUTDOWN = 0x8004587D  # ioctl(2) EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN
_NO_LOG_FLUSH = 2
MAX_LOGINS = 40  # logins before a power cut


def shut_down(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    fcntl.ioctl(opened, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    os.close(opened)


def log_in_until_failure(folder: Path, first: int, acknowledge: int) -> None:
    """Log in with consecutive codes, and enrol a user at every fourth counter. Acknowledge each used counter."""
    store = FileStore(str(folder))
    for counter in range(first, first + 10_000):
        assert log_in(folder, code(counter), ME, store=store) == "code"
        if counter % 4 == 0:
            store.update(f"user{counter}", lambda record: (record.with_token(phone()), None), create=True)
        if counter % 7 == 0:
            store.update(ME, lambda record: (toggled(record), None))
        os.write(acknowledge, struct.pack("I", counter))


def toggled(record: UserRecord) -> UserRecord:
    """Return the record with the token 'phone' added or removed. Such a change writes both slots."""
    return record.without_token("phone") if record.token("phone") is not None else record.with_token(phone())


def power_cut(folder: Path, first: int, logins: int, *, killed: bool) -> int:
    """Log in from counter `first`, and cut the power after `logins` logins. Return the last acknowledged counter."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            log_in_until_failure(folder, first, writing)
        except StoreError:
            pass
        finally:
            os._exit(0)
    os.close(writing)
    last = first - 1
    with open(reading, "rb", buffering=0) as acknowledged:
        for _ in range(logins):
            (last,) = struct.unpack("I", acknowledged.read(4))
        if killed:
            os.kill(child, signal.SIGKILL)
        shut_down(folder)
        while more := acknowledged.read(4):
            (last,) = struct.unpack("I", more)
    os.waitpid(child, 0)
    return last


@with_mounts
@pytest.mark.parametrize("killed", [False, True], ids=["power", "kill and power"])
@pytest.mark.parametrize("system", ON_DISK)
def test_no_acknowledged_use_of_a_code_is_lost(site: Site, system: str, killed: bool) -> None:
    image, chance = site.folder / "image", random.Random(1)

    def work() -> None:
        make_and_mount(system, image, site.store)
        store = FileStore(str(site.store))
        store.update(ME, lambda record: (record.with_token(fob()), None), create=True)
        first = 0
        cuts = rounds(4, 100)
        for _ in range(cuts):
            last = power_cut(site.store, first, chance.randint(1, MAX_LOGINS), killed=killed)
            subprocess.run(["umount", str(site.store)], check=True)
            mount("-o", "loop", str(image), str(site.store))
            assert last + 1 <= site.counter() <= last + 2
            for counter in range(first, last + 1):
                assert counter % 4 or store.read(f"user{counter}").tokens == (phone(),)
            first = site.counter()
            assert log_in(site.store, code(first), ME) == "code"
            assert log_in(site.store, code(first), ME) == "replayed"
            first += 1
        report(f"{cuts} power cuts of {system}{' after a kill' if killed else ''}: {first} logins, none lost")

    in_mount_namespace(work)
