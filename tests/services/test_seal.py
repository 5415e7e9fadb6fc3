"""Tests of sealed stores on a machine: commands, logins with and without the service, lost and wrong keys, rotation."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import base32, serialize
from pam_totp.store import seal_key
from tests.services.namespace import COPY, SOCKET, STORE, Machine
from tests.services.terminal import Talk
from tests.support.site import KEY, codes, fob, until

OPEN = base32(KEY)
pytestmark = pytest.mark.skipif(
    not os.path.isdir("/usr/lib/python3/dist-packages/cryptography"), reason="needs python3-cryptography"
)


@pytest.fixture(autouse=True)
def sealed(machine: Machine) -> Iterator[None]:
    """Enrol alice as the only user of the machine, and seal the store."""
    machine.stack("su", machine.module_line())
    machine.enrol("alice")
    done = machine.pam_totp("seal", "init", "--yes")
    assert done.returncode == 0, done.stderr
    assert f"{STORE}: 1 record sealed now; key " in done.stdout
    assert "restart the running services of pam_totp, because systemd did not" in done.stdout
    yield
    machine.run("rm", "-rf", seal_key.FOLDER, "/etc/systemd/system")


def gets_in(machine: Machine, answer: str) -> bool:
    """Return True if su accepts `answer` for alice."""
    return machine.run("su", "alice", "-c", "true", user="bob", stdin=f"{answer}\n").returncode == 0


def content(machine: Machine, user: str = "alice") -> str:
    return machine.path(f"{STORE}/{user}.record").read_text()


def log(machine: Machine) -> str:
    return "\n".join(machine.log.lines())


def status(machine: Machine) -> dict[str, object]:
    document: dict[str, object] = json.loads(machine.pam_totp("seal", "status", "--json").stdout)
    return document


def keys(machine: Machine) -> list[str]:
    found = status(machine)["keys"]
    assert isinstance(found, list)
    return found


def test_a_helper_logs_users_in_with_the_key_of_root(machine: Machine) -> None:
    assert OPEN not in content(machine)
    key = machine.path(seal_key.FILE).stat()
    assert (key.st_uid, stat.S_IMODE(key.st_mode)) == (0, 0o400)
    assert gets_in(machine, codes(0))
    assert not gets_in(machine, codes(0))
    assert gets_in(machine, codes(1))
    assert OPEN not in content(machine)


def test_a_service_gets_the_key_as_a_credential_of_systemd(machine: Machine) -> None:
    drop_in = machine.path("/etc/systemd/system/pam_totp.service.d/10-pam_totp-seal.conf").read_text()
    assert "LoadCredential=seal:/etc/pam_totp/seal\n" in drop_in
    machine.stack("su", machine.module_line(way="socket"))
    machine.run("install", "-d", "-o", "pam_totp", "-m", "0700", "/run/credentials")
    machine.run("install", "-o", "pam_totp", "-m", "0400", seal_key.FILE, "/run/credentials/seal")
    machine.stop_serving()  # a service of another test
    python = ["env", f"PYTHONPATH={COPY}", "CREDENTIALS_DIRECTORY=/run/credentials", "/usr/bin/python3"]
    service = machine.start(*python, "-m", "pam_totp.cli", "serve", "--socket", SOCKET, user="pam_totp")
    try:
        until(machine.path(SOCKET).exists, "the service creates its socket")
        assert gets_in(machine, codes(0))
        assert not gets_in(machine, codes(0))
    finally:
        service.terminate()
        service.wait()


@pytest.mark.parametrize("problem", ["missing", "wrong", "readable by others"])
def test_without_the_right_key_every_login_is_denied_and_logged(machine: Machine, problem: str) -> None:
    machine.stack("su", machine.module_line("nullok"))
    if problem == "missing":
        machine.path(seal_key.FILE).unlink()
    elif problem == "wrong":
        lines = machine.path(seal_key.FILE).read_text().splitlines(keepends=True)
        lines[1] = f"key {'A' * 43}=\n"
        machine.write(seal_key.FILE, "".join(lines), 0o400)
    else:
        machine.path(seal_key.FILE).chmod(0o444)
    machine.log.clear()
    assert not gets_in(machine, codes(0))
    assert "sealed" in log(machine)
    assert "not enrolled" not in log(machine)
    assert "alice.record" in machine.pam_totp("list").stderr
    done = machine.pam_totp("enroll", "bob", "--type", "hotp", "--secret-stdin", stdin=f"{OPEN}\n{codes(0, 2)}\n")
    if problem != "wrong":
        assert done.returncode == 3, done.stdout
        assert not machine.path(f"{STORE}/bob.record").exists()


@pytest.mark.parametrize("way", ["spawn", "socket"])
def test_a_lost_key_does_not_show_which_users_are_enrolled(machine: Machine, way: str) -> None:
    machine.path(seal_key.FILE).unlink()
    machine.stop_serving()
    machine.stack("su", machine.module_line(way=way))
    if way == "socket":
        machine.serve()
    words = ("-c", "true")
    shown = {user: machine.run("su", user, *words, user="bob", stdin="000000\n").stderr for user in ("alice", "carol")}
    machine.stop_serving()
    assert shown["alice"] == shown["carol"]
    assert "cannot retrieve authentication info" in shown["alice"]


def test_the_exported_copy_brings_a_lost_key_back(machine: Machine) -> None:
    done = machine.pam_totp("seal", "export", "/root/copy", "--yes")
    assert done.returncode == 0, done.stderr
    copy = machine.path("/root/copy")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copy.read_bytes() == machine.path(seal_key.FILE).read_bytes()
    assert status(machine)["exported"] is True
    machine.path(seal_key.FILE).unlink()
    done = machine.pam_totp("seal", "init", "--yes")
    assert done.returncode == 3
    assert "pam-totp seal init --key FILE" in done.stderr
    done = machine.pam_totp("seal", "init", "--key", "/root/copy")
    copy.unlink()
    assert done.returncode == 0, done.stderr
    assert gets_in(machine, codes(0))


def test_a_rotation_replaces_the_key_of_every_record(machine: Machine) -> None:
    before = content(machine)
    machine.pam_totp("seal", "export", "/root/copy", "--yes")
    machine.path("/root/copy").unlink()
    (old,) = keys(machine)
    done = machine.pam_totp("seal", "rotate", "--yes")
    assert done.returncode == 0, done.stderr
    now = status(machine)
    (new,) = keys(machine)
    assert new != old
    assert now["exported"] is False
    assert now["stores"] == [{"store": STORE, "state": "sealed", "records": {new: 1}, "problem": None}]
    assert f"sealed:{old}" in before
    assert f"sealed:{old}" not in content(machine)
    assert gets_in(machine, codes(0))


def test_a_killed_rotation_is_completed_by_the_next_run(machine: Machine) -> None:
    machine.pam_totp("unlock", "alice")
    lines = machine.path(seal_key.FILE).read_text().splitlines(keepends=True)
    lines.insert(2, f"next {'A' * 43}=\n")  # killed after the first step
    machine.write(seal_key.FILE, "".join(lines), 0o400)
    assert gets_in(machine, codes(0))
    done = machine.pam_totp("seal", "rotate")
    assert done.returncode == 0, done.stderr
    assert len(keys(machine)) == 1
    assert gets_in(machine, codes(1))


def test_a_damaged_record_keeps_the_old_key(machine: Machine) -> None:
    machine.enrol("bob")  # by another program: not sealed
    done = machine.pam_totp("seal", "rotate", "--yes")
    assert done.returncode == 3
    assert "1 record cannot be sealed: bob.record: tokens[0].secret: must be sealed" in done.stderr
    assert len(keys(machine)) == 2
    assert gets_in(machine, codes(0))
    machine.path(f"{STORE}/bob.record").unlink()
    assert machine.pam_totp("seal", "rotate").returncode == 0
    assert len(keys(machine)) == 1


def test_commands_read_and_write_sealed_records(machine: Machine) -> None:
    done = machine.pam_totp("enroll", "bob", "--type", "hotp", "--secret-stdin", stdin=f"{OPEN}\n{codes(0, 2)}\n")
    assert done.returncode == 0, done.stderr
    assert OPEN not in content(machine, "bob")
    assert machine.pam_totp("verify", "bob", codes(2)).returncode == 0
    assert machine.pam_totp("list", "bob").returncode == 0
    exported = machine.pam_totp("export", "bob", "--format", "otpauth", "--output", "-")
    assert OPEN in exported.stdout, exported.stderr
    row = f"carol,token,hotp,{base32(b'7' * 20)}\n"
    machine.write("/root/rows.csv", f"user,name,type,secret\n{row}", 0o600)
    done = machine.pam_totp("import", "/root/rows.csv")
    machine.path("/root/rows.csv").unlink()
    assert done.returncode == 0, done.stderr + done.stdout
    assert base32(b"7" * 20) not in content(machine, "carol")


def test_only_root_uses_the_key(machine: Machine) -> None:
    done = machine.pam_totp("seal", "status", user="alice")
    assert done.returncode == 3
    assert "only root can use the key" in done.stderr


def test_doctor_asks_for_a_copy_before_the_key_is_lost(machine: Machine) -> None:
    def found() -> dict[str, str]:
        findings = json.loads(machine.pam_totp("doctor", "--json").stdout)["findings"]
        return {f["code"]: f["what"] for f in findings if f["code"].startswith("seal-")}

    assert found().keys() == {"seal-not-exported"}
    machine.pam_totp("seal", "export", "/root/copy", "--yes")
    machine.path("/root/copy").unlink()
    assert found() == {}
    assert "exported on 20" in machine.pam_totp("doctor").stdout
    key = machine.path(seal_key.FILE).read_text()
    lines = key.splitlines(keepends=True)
    lines[1] = f"key {'A' * 43}=\n"
    machine.write(seal_key.FILE, "".join(lines), 0o400)
    assert "seal-key-missing" in found()
    machine.path(seal_key.FILE).unlink()
    assert found().keys() == {"seal-key-missing"}


def test_doctor_advises_to_delete_no_record_whose_key_is_missing(machine: Machine) -> None:
    def unreadable() -> list[str]:
        findings = json.loads(machine.pam_totp("doctor", "--json").stdout)["findings"]
        return [f["remedy"] for f in findings if f["code"] == "record-unreadable"]

    assert unreadable() == []
    key = machine.path(seal_key.FILE).read_text()
    machine.write(seal_key.FILE, "".join(f"{line}\n" for line in key.splitlines()[:1]), 0o400)
    assert unreadable() == [], "damaged"
    machine.path(seal_key.FILE).unlink()
    assert unreadable() == []
    lines = key.splitlines(keepends=True)
    machine.write(seal_key.FILE, "".join([lines[0], f"key {'A' * 43}=\n", *lines[2:]]), 0o400)
    (remedy,) = unreadable()
    assert remedy.startswith("if a key is missing, see 'pam-totp seal status'")


@pytest.mark.skipif(not os.path.exists(seal_key.DECRYPT), reason="needs systemd-creds")
def test_a_key_encrypted_for_this_host_serves_helpers_and_commands(machine: Machine) -> None:
    machine.run("mkdir", "-p", "/var/lib/systemd")
    machine.write("/etc/machine-id", f"{'0123456789abcdef' * 2}\n")
    done = machine.pam_totp("seal", "init", "--with", "host")
    assert done.returncode == 0, done.stderr
    assert not machine.path(seal_key.FILE).exists()
    assert b"key " not in machine.path(seal_key.CREDENTIAL).read_bytes()
    drop_in = machine.path("/etc/systemd/system/pam_totp.service.d/10-pam_totp-seal.conf").read_text()
    assert "LoadCredentialEncrypted=seal:/etc/pam_totp/seal.cred\n" in drop_in
    assert gets_in(machine, codes(0))
    assert machine.pam_totp("verify", "alice", codes(1)).returncode == 0
    assert machine.pam_totp("seal", "rotate", "--yes").returncode == 0
    assert status(machine)["place"] == "host"
    assert gets_in(machine, codes(2))
    machine.run("rm", "-rf", "/var/lib/systemd", "/etc/machine-id")  # the key of the host, which the disk may lack
    machine.log.clear()
    assert not gets_in(machine, codes(3))
    assert re.search(r"systemd-creds cannot decrypt it on this host: [A-Z]", log(machine))


def test_a_restored_backup_of_a_sealed_store_is_rolled_forward(machine: Machine) -> None:
    machine.run("cp", "-a", STORE, f"{STORE}.new")
    assert gets_in(machine, codes(0))
    machine.write("/root/since.txt", log(machine))
    done = machine.pam_totp("restored", "--store", f"{STORE}.new", "--log", "/root/since.txt", "--yes")
    assert done.returncode == 0, done.stderr
    machine.run("rm", "-rf", f"{STORE}/alice.record")
    machine.run("cp", "-a", f"{STORE}.new/alice.record", STORE)
    machine.run("rm", "-rf", f"{STORE}.new")
    assert OPEN not in content(machine)
    assert not gets_in(machine, codes(0))
    assert not gets_in(machine, codes(3))
    assert gets_in(machine, codes(4, 2))


def test_an_open_secret_in_a_sealed_backup_is_not_sealed(machine: Machine) -> None:
    machine.run("cp", "-a", STORE, f"{STORE}.new")
    machine.put(f"{STORE}.new/bob.record", "pam_totp", UserRecord(user="bob", tokens=(fob(),)))
    planted = machine.path(f"{STORE}.new/bob.record").read_bytes()
    done = machine.pam_totp("restored", "--store", f"{STORE}.new", "--yes")
    left = machine.path(f"{STORE}.new/bob.record").read_bytes()
    machine.run("rm", "-rf", f"{STORE}.new")
    assert done.returncode != 0
    assert "must be sealed" in done.stdout + done.stderr
    assert left == planted


def test_another_store_of_the_host_stays_open(machine: Machine) -> None:
    machine.run("cp", "-a", STORE, "/srv/otp")
    machine.put("/srv/otp/alice.record", "pam_totp", UserRecord(user="alice", tokens=(fob(),)))
    machine.stack("su", machine.module_line("store=/srv/otp"))
    assert gets_in(machine, codes(0))
    assert OPEN in machine.path("/srv/otp/alice.record").read_text()
    machine.run("rm", "-rf", "/srv/otp")


def open_files(machine: Machine) -> list[str]:
    """Return the paths of the files that show the key of alice's token, relative to the store."""
    store = machine.path(STORE)
    files = (path for path in store.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(store)) for path in files if OPEN.encode() in path.read_bytes())


COMMAND = ("env", f"PYTHONPATH={COPY}", "PYTHONDONTWRITEBYTECODE=1", "/usr/bin/python3", "-m", "pam_totp.cli")


def test_two_changes_of_the_keys_at_once_lose_no_key(machine: Machine) -> None:
    first = machine.talk(*COMMAND, "seal", "rotate").asks("[y/N]")
    for words in (("rotate", "--yes"), ("init", "--yes"), ("export", "/root/copy", "--yes")):
        done = machine.pam_totp("seal", *words)
        assert done.returncode == 3
        assert "another command changes the keys of the seal" in done.stderr
    assert machine.pam_totp("seal", "status").returncode == 0
    assert first.says("y").ends()[0] == 0
    assert machine.pam_totp("seal", "status").returncode == 0
    assert gets_in(machine, codes(0))


@pytest.mark.parametrize("path", [f"/{STORE}", "/srv/link", "/srv/bound", f"/proc/self/root{STORE}"])
def test_a_sealed_store_is_sealed_by_every_path_to_it(machine: Machine, path: str) -> None:
    machine.run("ln", "-sfn", STORE, "/srv/link")
    machine.run("sh", "-c", f"mkdir -p /srv/bound && mount --bind {STORE} /srv/bound")
    try:
        words = ("enroll", "bob", "--type", "hotp", "--secret-stdin", "--store", path)
        done = machine.pam_totp(*words, stdin=f"{OPEN}\n{codes(0, 2)}\n")
        assert done.returncode == 0, done.stderr
        assert open_files(machine) == []
        machine.stack("su", machine.module_line(f"store={path}"))
        assert gets_in(machine, codes(0))
        assert machine.pam_totp("seal", "init", "--store", path, "--yes").returncode == 0
        stores = status(machine)["stores"]
        assert isinstance(stores, list)
        assert [store["store"] for store in stores] == [STORE]
        machine.path(seal_key.FILE).unlink()
        done = machine.pam_totp("enroll", "carol", *words[2:], stdin=f"{OPEN}\n{codes(0, 2)}\n")
        assert done.returncode == 3
        assert open_files(machine) == []
    finally:
        machine.run("umount", "/srv/bound")
        machine.run("rm", "-rf", "/srv/link", "/srv/bound")


def test_no_file_of_a_killed_process_keeps_an_open_secret(machine: Machine) -> None:
    machine.run("rm", "-rf", seal_key.FOLDER)
    for name in ("alice.record", ".alice.record", ".bob.record"):
        machine.put(f"{STORE}/{name}", "pam_totp", UserRecord(user="alice", tokens=(fob(),)))
    machine.write(f"{STORE}/.carol.json.tmp", serialize(UserRecord(user="carol", tokens=(fob(),))), 0o600)
    machine.own(f"{STORE}/.carol.json.tmp", "pam_totp")
    done = machine.pam_totp("seal", "init", "--yes")
    assert done.returncode == 0, done.stderr
    assert open_files(machine) == []
    assert gets_in(machine, codes(0))


@pytest.mark.parametrize("what", ["init", "rotate"])
def test_an_interrupted_import_is_rolled_back_before_its_key_goes(machine: Machine, what: str) -> None:
    if what == "init":
        machine.run("rm", "-rf", seal_key.FOLDER)
        machine.enrol("alice")
    record = UserRecord(user="alice", tokens=(fob(),))
    machine.path(f"{STORE}/.import").mkdir(mode=0o700)
    line = json.dumps(["alice.record", serialize(record).decode(), serialize(record).decode()])
    machine.write(f"{STORE}/.import/manifest", f"{line}\n", 0o600)
    for path in (".import", ".import/manifest"):
        machine.own(f"{STORE}/{path}", "pam_totp")
    done = machine.pam_totp("seal", what, "--yes")
    assert done.returncode == 3
    assert ".import: left by an interrupted import (run 'pam-totp doctor --repair' first)" in done.stderr
    machine.pam_totp("doctor", "--repair")
    assert machine.pam_totp("seal", what, "--yes").returncode == 0
    assert open_files(machine) == []
    assert len(keys(machine)) == 1


def test_a_new_key_waits_for_an_import_that_is_running(machine: Machine) -> None:
    machine.path(f"{STORE}/.import").mkdir(mode=0o700)
    machine.own(f"{STORE}/.import", "pam_totp")
    journal = os.open(machine.path(f"{STORE}/.import"), os.O_RDONLY)
    try:
        fcntl.flock(journal, fcntl.LOCK_EX)
        done = machine.pam_totp("seal", "rotate", "--yes")
        assert done.returncode == 3
        assert "an import is running (try again when it has finished)" in done.stderr
        assert len(keys(machine)) == 2
    finally:
        os.close(journal)
    machine.path(f"{STORE}/.import").rmdir()
    assert machine.pam_totp("seal", "rotate").returncode == 0
    assert len(keys(machine)) == 1


def test_everybody_can_read_the_note_under_any_umask(machine: Machine) -> None:
    machine.run("rm", "-rf", seal_key.FOLDER)
    machine.enrol("alice")
    words = " ".join((*COMMAND, "seal", "init", "--yes"))
    assert machine.run("sh", "-c", f"umask 077; {words}").returncode == 0
    assert machine.run("cat", seal_key.NOTE, user="bob").returncode == 0
    assert machine.run("cat", f"{seal_key.FOLDER}/seal.lock", user="bob").returncode != 0


def enrolling(machine: Machine, user: str) -> Talk:
    """Return the dialogue of a command that enrols a user, and has read the keyring."""
    talk = machine.talk(*COMMAND, "enroll", user, "--type", "hotp", "--secret-stdin")
    talk.asks("key").says(OPEN).asks("code")
    return talk


@pytest.mark.parametrize("what", ["init", "rotate"])
def test_a_command_that_began_before_a_new_key_writes_nothing(machine: Machine, what: str) -> None:
    if what == "init":
        machine.run("rm", "-rf", seal_key.FOLDER)
        machine.enrol("alice")
    talk = enrolling(machine, "bob")
    assert machine.pam_totp("seal", what, "--yes").returncode == 0
    status, shown = talk.says(codes(0, 2)).ends()
    assert status == 3, shown
    assert "the keys of the seal have changed (run the command again" in shown
    assert open_files(machine) == []
    assert not machine.path(f"{STORE}/bob.record").exists()
    assert enrolling(machine, "bob").says(codes(0, 2)).ends()[0] == 0
    assert machine.pam_totp("list").returncode == 0


def test_an_exported_copy_ends_no_command_that_has_begun(machine: Machine) -> None:
    talk = enrolling(machine, "bob")
    assert machine.pam_totp("seal", "export", "/root/copy", "--yes").returncode == 0
    machine.path("/root/copy").unlink()
    status, shown = talk.says(codes(0, 2)).ends()
    assert status == 0, shown


def test_an_older_copy_of_the_key_leaves_no_store_open(machine: Machine) -> None:
    machine.pam_totp("seal", "export", "/root/copy", "--yes")
    machine.run("install", "-d", "-o", "pam_totp", "-m", "0700", "/srv/otp")
    machine.put("/srv/otp/alice.record", "pam_totp", UserRecord(user="alice", tokens=(fob(),)))
    assert machine.pam_totp("seal", "init", "--store", "/srv/otp", "--yes").returncode == 0
    machine.path(seal_key.FILE).unlink()
    try:
        done = machine.pam_totp("seal", "init", "--key", "/root/copy", "--yes")
        assert done.returncode == 0, done.stderr
        machine.stack("su", machine.module_line("store=/srv/otp"))
        assert gets_in(machine, codes(0))
        words = ("enroll", "bob", "--type", "hotp", "--secret-stdin", "--store", "/srv/otp")
        assert machine.pam_totp(*words, stdin=f"{OPEN}\n{codes(0, 2)}\n").returncode == 0
        assert OPEN not in machine.path("/srv/otp/bob.record").read_text()
    finally:
        machine.run("rm", "-rf", "/srv/otp", "/root/copy")


def test_the_key_of_another_host_does_not_lock_an_open_folder(machine: Machine) -> None:
    machine.pam_totp("seal", "export", "/root/copy", "--yes")
    machine.run("rm", "-rf", seal_key.FOLDER)  # another host, with the same folder
    machine.enrol("alice")
    done = machine.pam_totp("seal", "init", "--key", "/root/copy", "--yes")
    machine.path("/root/copy").unlink()
    assert done.returncode == 0, done.stderr
    assert f"{STORE}: not sealed on this host, so it stays open" in done.stdout
    assert gets_in(machine, codes(0))


def test_a_sealed_store_without_any_key_on_its_host_gets_no_open_secret(machine: Machine) -> None:
    machine.pam_totp("seal", "export", "/root/copy", "--yes")
    machine.run("rm", "-rf", seal_key.FOLDER)  # the records have moved to another host, and the key has not
    for words in (("seal", "init", "--yes"), ("enroll", "bob", "--type", "hotp", "--secret-stdin")):
        done = machine.pam_totp(*words, stdin=f"{OPEN}\n{codes(0, 2)}\n")
        assert done.returncode == 3, done.stdout
        assert "sealed" in done.stderr
    assert not machine.path(seal_key.FILE).exists()
    assert open_files(machine) == []
    assert machine.pam_totp("seal", "init", "--key", "/root/copy", "--yes").returncode == 0
    machine.path("/root/copy").unlink()
    assert gets_in(machine, codes(0))


@pytest.mark.parametrize("names", [["new\nline"], [f"{n}{'x' * 240}" for n in range(20)]])
def test_no_store_makes_the_keyring_unreadable(machine: Machine, names: list[str]) -> None:
    machine.run("mkdir", "/srv/otp")
    try:
        for name in names:
            path = f"/srv/otp/{name}"
            machine.run("install", "-d", "-o", "pam_totp", "-m", "0700", path)
            done = machine.pam_totp("seal", "init", "--store", path, "--yes")
            if done.returncode != 0:
                break
        assert done.returncode == 3
        assert "cannot be in the keyring" in done.stderr
        assert machine.pam_totp("seal", "status").returncode == 0
        assert gets_in(machine, codes(0))
    finally:
        machine.run("rm", "-rf", "/srv/otp")
