"""Tests of `import --homes` with a file in a home folder whose FUSE server does not reply."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import with_mounts
from tests.support.site import TREE

# The script mounts the file, serves it up to the request with the given opcode, and reads the homes with short time
# limits. The server runs in a separate process. The server exits with the script, and the kernel then aborts the
# blocked request.
SCRIPT = """
import ctypes, os, signal, struct, sys
from pathlib import Path
from pam_totp.cli import files_in

INIT, GETATTR, OPEN, FLUSH = 26, 3, 14, 25
homes, silent = Path(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
for folder in ("eve", "zoe"):
    file = homes / folder / ".google_authenticator"
    file.parent.mkdir(parents=True)
    file.write_text("content")
    os.chown(file, 4242, 4242)
    os.chown(file.parent, 4242, 4242)
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=100644,user_id=4242,group_id=4242"
if libc.mount(b"eve", bytes(homes / "eve/.google_authenticator"), b"fuse", 6, options.encode()) != 0:
    sys.exit(f"mount: {os.strerror(ctypes.get_errno())}")
server = os.fork()
if server == 0:
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    attributes = struct.pack("<6Q10I", 1, 5, 8, 0, 0, 0, 0, 0, 0, 0o100644, 1, 4243, 4242, 0, 4096, 0)
    replies = {
        INIT: struct.pack("<4I2H2I2H", 7, 31, 65536, 0, 12, 10, 65536, 1, 0, 0) + bytes(28),
        GETATTR: struct.pack("<Q2I", 60, 0, 0) + attributes,
        OPEN: struct.pack("<Q2I", 0, 0, 0),
    }
    while True:
        _, opcode, unique, *_ = struct.unpack_from("<2I2Q4I", os.read(fuse, 1 << 17))
        if opcode != silent and opcode in replies:
            os.write(fuse, struct.pack("<IiQ", 16 + len(replies[opcode]), 0, unique) + replies[opcode])
os.close(fuse)
files_in.HOME_TIMEOUT, files_in.KILL_TIMEOUT = 0.5, 0.2
try:
    for found in files_in.read_homes(str(homes), ".google_authenticator", 1000):
        print(found.path, found.problem)
finally:
    os.kill(server, signal.SIGKILL)
"""


@with_mounts
@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="requires FUSE")
@pytest.mark.parametrize(
    ("silent", "problem"),
    [("14", "the file could not be read within 0 s"), ("25", "must belong to the owner of the home folder")],
    ids=["open", "close"],
)
def test_a_home_that_holds_its_reader_does_not_hold_the_import(tmp_path: Path, silent: str, problem: str) -> None:
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", SCRIPT, tmp_path, silent],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    eve, zoe = (str(tmp_path / name / ".google_authenticator") for name in ("eve", "zoe"))
    assert done.stdout.splitlines() == [f"{eve} {problem}", f"{zoe} no account matches this home folder and its owner"]
