"""Tests of a full or read-only disk during an enrolment, an import, or the creation of recovery codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import base32, serialize
from pam_totp.core.slots import new_file, slot_size
from tests.support.isolation import MAY_MOUNT
from tests.support.site import KEY, PIPE, TREE, fob

# This script runs in a private mount namespace. The script mounts a small disk, runs the commands and
# prints the results.
SCRIPT = r"""
import json, os, subprocess, sys
from pathlib import Path
disk, how, record, commands, back = Path(sys.argv[1]), *sys.argv[2:4], *map(json.loads, sys.argv[4:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=200,mode=0700", "disk", disk], check=True)
(disk / "alice.record").write_text(record)
(disk / "alice.record").chmod(0o600)
(disk / ".lock").touch(0o600)
if how == "full":
    with open(disk / "ballast", "wb") as ballast:
        try:
            while True:
                os.write(ballast.fileno(), b"x" * 512)
        except OSError:
            pass
elif how == "no inodes":
    for i in range(300):
        try:
            (disk / f"ballast{i}").touch()
        except OSError:
            break
else:
    subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
results = []
for words, stdin in commands:
    command = [*back, sys.executable, "-m", "pam_totp.cli", words[0], "--store", str(disk), *words[1:]]
    done = subprocess.run(command, input=stdin, text=True, capture_output=True)
    files = {p.name: p.read_text() for p in disk.iterdir() if p.name.endswith(".record")}
    results.append((done.returncode, done.stdout, done.stderr, files))
print(json.dumps(results))
"""
REMEDY = {
    "full": "nothing was changed (delete files on that disk",
    "no inodes": "nothing was changed (delete files on that disk",
    "read-only": "nothing was changed (remount that disk",
}


def namespaces_work() -> bool:
    return (
        subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False, capture_output=True).returncode
        == 0
    )


@pytest.mark.skipif(
    not MAY_MOUNT and (os.geteuid() == 0 or not namespaces_work()),
    reason="requires root with permission to mount, or an ordinary user with permission to create user namespaces",
)
@pytest.mark.parametrize("how", REMEDY)
def test_the_old_state_is_intact_and_the_message_names_the_remedy(tmp_path: Path, how: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    file = tmp_path / "users.oath"
    file.write_text("".join(f"HOTP {user} - {i:040x}\n" for i, user in enumerate(["alice", "bob", "carl"])))
    owner = UserRecord(user="alice", tokens=(fob(3),))
    record = new_file(serialize(owner), slot_size(owner)).decode()
    commands = [
        (["enroll", "bob", "--secret-stdin", "--yes"], base32(KEY) + "\n"),
        (["recovery", "alice", "--count", "99", *PIPE], ""),
        (["import", "users-oath", str(file)], ""),
    ]
    in_place = [
        (["enroll", "alice", "--secret-stdin", "--yes"], base32(b"k" * 20) + "\n"),
        (["recovery", "alice", "--count", "5", *PIPE], ""),
    ]
    failing = len(commands) if how != "read-only" else None
    commands += in_place
    enter, back = ["unshare", "--mount", "--propagation", "unchanged"], []
    if os.geteuid() != 0:  # mount as root of a new user namespace, then run the commands under the original ids
        enter = ["unshare", "--map-root-user", "--mount"]
        back = ["unshare", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}"]
    done = subprocess.run(
        [*enter, sys.executable, "-c", SCRIPT, disk, how, record, json.dumps(commands), json.dumps(back)],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = list(zip(commands, json.loads(done.stdout), strict=True))
    for (words, _), (status, out, shown, files) in results[:failing]:
        assert status == 3, (words, shown)
        assert out == "", "the command prints only codes and keys that are stored"
        err = re.sub(r"\Apam-totp: warning: \w+ has no account on this host\n", "", shown)
        assert err.startswith(f"pam-totp: {disk}: "), err
        assert REMEDY[how] in err
        assert err.count("\n") == 1
        assert files == {"alice.record": record}, words
    for (words, _), (status, _, shown, files) in results[failing:] if failing else []:
        assert status == 0, (words, shown)
        assert files != {"alice.record": record}, "a record that fits into the user's file needs no free space"
