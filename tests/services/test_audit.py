"""Tests of the lines about changes: each command logs its changes and the account of its caller."""

from __future__ import annotations

import json
import re

import pytest

from pam_totp.core.secretfile import base32
from tests.services.namespace import ACCOUNTS, STORE, Machine
from tests.services.test_log import fields
from tests.support.site import KEY, PIPE, TREE, codes, fob, phone

HOTP_KEY = base32(KEY)
OATH = f"HOTP alice - {KEY.hex()}\nHOTP bob - {KEY[::-1].hex()} 7\n"


def logged(machine: Machine) -> list[tuple[str, dict[str, str]]]:
    """Return the verb and the fields of each line, without `at` and `created`, and clear the log."""
    found = []
    for line in machine.log.module_lines():
        service, verb, said = fields(line)
        assert service == "pam-totp"
        assert re.fullmatch("[0-9]{10}", said.pop("at", "0123456789"))
        said.pop("created", None)
        found.append((verb, said))
    machine.log.clear()
    return found


def as_alice(machine: Machine, *words: str, stdin: str = "") -> None:
    """Run pam-totp with `words` as root with SUDO_UID, as sudo does for alice."""
    python = ["env", "PYTHONPATH=/run/tree", f"SUDO_UID={ACCOUNTS['alice']}", "/usr/bin/python3", "-m", "pam_totp.cli"]
    done = machine.run(*python, *words, stdin=stdin)
    assert (done.returncode, "not in the audit log" in done.stderr) == (0, False), done


COMMANDS = [
    (
        ("enroll", "bob", "--name", "new", "--secret-stdin", "--yes", "--qr", "none"),
        "changed what=enroll token=new next=0 type=totp",
    ),
    (
        ("enroll", "bob", "--name", "new", "--secret-stdin", "--later", "--serial", "S 1", "--qr", "none"),
        "changed what=enroll token=new next=0 type=totp serial='S 1' state=unconfirmed",
    ),
    (("qr", "bob", "fob", "--yes", *PIPE), "revealed what=qr token=fob next=5"),
    (
        ("replace", "bob", "fob", "--counter", "0", "--secret-stdin", "--yes"),
        "changed what=remove token=fob next=5|changed what=enroll token=fob next=0 type=hotp",
    ),
    (("rename", "bob", "fob", "blue"), "changed what=rename token=fob next=5 to=blue"),
    (("disable-token", "bob", "fob"), "changed what=disable-token token=fob next=5"),
    (("enable-token", "bob", "fob"), "changed what=enable-token token=fob next=5"),
    (("remove", "bob", "fob"), "changed what=remove token=fob next=5"),
    (
        ("remove", "bob", "--all", "--yes"),
        "changed what=remove token=fob next=5|changed what=remove token=phone next=0",
    ),
    (("recovery", "bob", "--yes", "--count", "3", *PIPE), "changed what=recovery codes=3"),
    (("resync", "bob", *codes(90, 2).split()), "changed what=resync token=fob next=92"),
    (("unlock", "bob"), "changed what=unlock failures=7"),
    (
        ("export", "bob", "--format", "otpauth", "--token", "fob", "--output", "/root/out"),
        "revealed what=export token=fob next=5 format=otpauth file=/root/out",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), COMMANDS, ids=[" ".join(words[:3]) for words, _ in COMMANDS])
def test_every_change_is_logged_with_its_account(machine: Machine, words: tuple[str, ...], expected: str) -> None:
    machine.path("/root/out").unlink(missing_ok=True)
    machine.enrol("bob", fob(5), phone(), failures=7, failures_at=1 << 40)
    new_key = base32(b"another key of 20 by")
    as_alice(machine, *words, stdin=f"{new_key}\n" if "--secret-stdin" in words else "")
    wanted = []
    for line in expected.split("|"):
        verb, _, rest = line.partition(" ")
        said = {k: v.strip("'") for k, v in re.findall(r"(\w+)=('[^']*'|\S+)", rest)}
        wanted.append((verb, {"user": "bob", **said, "by": "alice"}))
    lines = "\n".join(machine.log.lines())
    assert not [secret for secret in (HOTP_KEY, KEY.hex(), new_key, codes(90), codes(91)) if secret in lines]
    assert logged(machine) == wanted


def test_every_change_of_the_stock_is_logged_with_its_account(machine: Machine) -> None:
    """T-1 has the key that `codes` uses, so `codes` returns the codes of T-1."""
    machine.enrol("carol", fob(5))
    other = b"another key of 20 by".hex()
    as_alice(machine, "stock", "import", "csv", "-", "--batch", "box", "--yes", stdin=f"T-1,{KEY.hex()}\nT-2,{other}\n")
    as_alice(machine, "assign", "T-1", "bob", "--name", "fob")
    as_alice(machine, "assign", "T-1", "bob", "--confirm", stdin=f"{codes(0)}\n")
    as_alice(machine, "replace", "--stock", "T-1", "T-2", "--yes")
    as_alice(machine, "return", "T-2", "--yes")
    as_alice(machine, "assign", "T-2", "bob")
    as_alice(machine, "unassign", "T-2")
    as_alice(machine, "stock", "remove", "T-2", "--yes")
    token = {"type": "hotp", "serial": "T-1"}
    new = {"type": "hotp", "serial": "T-2"}
    bob = {"user": "bob", "by": "alice"}
    assert logged(machine) == [
        ("changed", {"what": "stock-import", "tokens": "2", "batch": "box", "format": "csv", "by": "alice"}),
        ("changed", bob | token | {"what": "assign", "token": "fob", "next": "0", "state": "unconfirmed"}),
        ("changed", bob | token | {"what": "confirm", "token": "fob", "next": "1"}),
        ("changed", bob | token | {"what": "return", "token": "fob", "next": "1"}),
        ("changed", bob | new | {"what": "assign", "token": "fob", "next": "0"}),
        ("changed", bob | new | {"what": "return", "token": "fob", "next": "0"}),
        ("changed", bob | new | {"what": "assign", "token": "token", "next": "0", "state": "unconfirmed"}),
        ("changed", bob | new | {"what": "unassign", "token": "token", "next": "0"}),
        ("changed", new | {"what": "stock-remove", "token": "token", "next": "0", "by": "alice"}),
    ]
    lines = "\n".join(machine.log.lines())
    assert not [secret for secret in (HOTP_KEY, KEY.hex(), other, codes(0)) if secret in lines]


def test_a_login_uses_the_same_fields_for_the_token(machine: Machine) -> None:
    machine.enrol("bob", fob(5, created=1234))
    as_alice(machine, "verify", "bob", codes(7))
    (line,) = machine.log.module_lines()
    assert line.endswith("accepted user=bob by=code token=fob created=1234 next=8 ahead=2 ruser=alice")


def test_root_without_sudo_is_logged_as_root(machine: Machine) -> None:
    machine.enrol("bob")
    assert machine.pam_totp("unlock", "bob").returncode == 0
    assert logged(machine) == [("changed", {"user": "bob", "what": "unlock", "failures": "0", "by": "root"})]


def test_an_ordinary_account_cannot_choose_the_logged_name(machine: Machine) -> None:
    machine.path("/home/alice/.pam_totp.json").unlink(missing_ok=True)
    environment = ["env", "PYTHONPATH=/run/tree", "SUDO_USER=root", "SUDO_UID=0", "USER=root", "LOGNAME=root"]
    words = ["enroll", "--type", "hotp", "--secret-stdin", "--yes"]
    done = machine.run(
        *environment, "/usr/bin/python3", "-m", "pam_totp.cli", *words, user="alice", stdin=f"{HOTP_KEY}\n"
    )
    assert done.returncode == 0, done.stderr
    ((verb, said),) = logged(machine)
    assert (verb, said["by"], said["store"]) == ("changed", "alice", "~/.pam_totp.json")


def test_a_change_in_another_store_names_that_store(machine: Machine) -> None:
    as_alice(machine, "enroll", "bob", "--yes", "--qr", "none", *PIPE, "--store", "/root/other")
    assert logged(machine)[0][1]["store"] == "/root/other"


def test_an_import_logs_every_token(machine: Machine) -> None:
    machine.write("/root/users.oath", OATH, 0o600)
    as_alice(machine, "import", "users-oath", "/root/users.oath", "--dry-run")
    assert logged(machine) == [], "a dry run changes nothing"
    as_alice(machine, "import", "users-oath", "/root/users.oath")
    common = {"what": "import", "token": "token", "type": "hotp", "format": "users-oath", "by": "alice"}
    assert logged(machine) == [
        ("changed", {"user": "alice", **common, "next": "0"}),
        ("changed", {"user": "bob", **common, "next": "7"}),
    ]
    as_alice(machine, "import", "users-oath", "/root/users.oath")
    assert logged(machine) == [], "both tokens are already imported"


def test_an_import_that_was_rolled_back_logs_no_change(machine: Machine) -> None:
    machine.enrol("bob")
    machine.write("/root/users.oath", OATH, 0o600)
    machine.path(f"{STORE}/bob.record").write_text("damaged")
    done = machine.pam_totp("import", "users-oath", "/root/users.oath")
    assert done.returncode != 0, done
    assert not machine.path(f"{STORE}/alice.record").exists()
    assert logged(machine) == []


def test_a_repair_is_logged(machine: Machine) -> None:
    machine.enrol("bob")
    machine.path(f"{STORE}/bob.record").chmod(0o640)
    machine.stack("su", machine.module_line())
    machine.pam_totp("doctor", "su", "--repair")
    repaired = {"what": "repair", "repaired": "bob.record: its mode must be 0600", "by": "root"}
    assert logged(machine) == [("changed", repaired)]


def test_a_backup_is_rolled_forward_from_the_log_of_the_machine(machine: Machine) -> None:
    """The input contains only lines that commands and real logins send to the log daemon."""
    machine.stack("su", machine.module_line())
    as_alice(
        machine, "enroll", "bob", "--type", "hotp", "--name", "old", "--secret-stdin", "--yes", stdin=f"{HOTP_KEY}\n"
    )
    as_alice(machine, "enroll", "bob", "--yes", "--qr", "none", *PIPE)
    as_alice(machine, "recovery", "bob", *PIPE)
    backup = machine.path(f"{STORE}/bob.record").read_bytes()
    as_alice(machine, "rename", "bob", "old", "blue one")
    for first in (3, 7):
        done = machine.run("su", "bob", "-c", "true", user="alice", stdin=f"{codes(first)}\n")
        assert done.returncode == 0, done
    as_alice(machine, "remove", "bob", "phone")
    lines = [re.sub(r"^<\d+>(.{15}) ", r"\1 host ", line) for line in machine.log.lines()]
    machine.write("/root/auth.log", "".join(f"{line}\n" for line in lines), 0o600)
    machine.path(f"{STORE}/bob.record").write_bytes(backup)
    machine.log.clear()
    as_alice(machine, "restored", "--log", "/root/auth.log", "--restored-at", "2100-01-01", "--yes")
    (token,) = machine.record("bob").tokens
    assert (token.name, token.next_factor, token.row_needed) == ("old", 8, False)
    assert machine.record("bob").recovery == ()
    assert logged(machine) == [
        ("changed", {"user": "bob", "what": "restored", "tokens": "2", "codes": "10", "by": "alice"})
    ]
    replay = machine.run("su", "bob", "-c", "true", user="alice", stdin=f"{codes(7)}\n")
    assert replay.returncode != 0
    machine.log.clear()


def restore_steps() -> list[str]:
    """Return the commands of docs/moving.md that restore a backup, without those of systemd."""
    text = (TREE / "docs/moving.md").read_text().partition("## Backup and restore\n")[2].partition("\n## ")[0]
    block = next(block for block in text.split("\n\n") if " restored " in block and block.startswith("    "))
    return [line.strip() for line in block.splitlines() if not line.strip().startswith(("systemctl", "journalctl"))]


def test_used_codes_are_refused_during_and_after_the_documented_restore(machine: Machine) -> None:
    machine.stack("su", machine.module_line("nullok"))
    machine.enrol("bob", fob(0))
    assert machine.run("tar", "-cpf", "/root/backup.tar", "-C", STORE, ".").returncode == 0

    def logs_in(first: int) -> bool:
        done = machine.run("su", "bob", "-c", "true", user="alice", stdin=f"{codes(first)}\n")
        return done.returncode == 0

    assert logs_in(0)
    old = [re.sub(r"^<\d+>.{15} ", "2020-01-01T00:00:00Z host ", line) for line in machine.log.lines()]
    machine.write("/root/since.txt", "".join(f"{line}\n" for line in old), 0o600)
    opened = []
    for step in restore_steps():
        name, *rest = step.split()
        words = (
            ["env", "PYTHONPATH=/run/tree", "/usr/bin/python3", "-m", "pam_totp.cli"] if name == "pam-totp" else [name]
        )
        done = machine.run("env", "-C", "/root", *words, *rest, stdin="y\n")
        assert done.returncode == 0 or "doctor" in step, done
        opened.append((step, logs_in(0)))
    assert not [step for step, is_open in opened if is_open]
    (token,) = machine.record("bob").tokens
    assert (token.next_factor, token.row_needed) == (1, False)
    assert logs_in(1)
    assert "store-restored" not in machine.pam_totp("doctor", "su", "--json").stdout


def moving_steps() -> list[list[str]]:
    """Return the commands of docs/moving.md for the old and for the new server, without those of systemd and scp."""
    text = (TREE / "docs/moving.md").read_text().partition("## Moving to another server\n")[2].partition("\n## ")[0]
    blocks = [block for block in text.split("\n\n") if block.startswith("    ")]
    return [[s.strip() for s in b.splitlines() if not s.strip().startswith(("systemctl", "scp"))] for b in blocks]


def test_the_documented_move_to_another_server_keeps_tokens_and_used_codes(machine: Machine) -> None:
    machine.stack("su", machine.module_line())
    machine.enrol("bob", fob(0))

    def logs_in(first: int) -> bool:
        return machine.run("su", "bob", "-c", "true", user="alice", stdin=f"{codes(first)}\n").returncode == 0

    def shell(text: str) -> None:
        command = "env PYTHONPATH=/run/tree /usr/bin/python3 -m pam_totp.cli"
        done = machine.run("env", "-C", "/root", "sh", "-c", text.replace("pam-totp ", f"{command} "))
        assert done.returncode == 0 or "doctor" in text, done

    assert logs_in(0)
    old, new = moving_steps()
    for step in old:
        shell(step)
    assert not logs_in(1), "the old server must refuse codes after these steps"
    machine.path(STORE).mkdir(mode=0o700)  # the new server: an empty store, and another uid of pam_totp
    machine.make_decoys()
    machine.run(
        "sh", "-c", f"rm -rf {STORE}.moved; cd /root; mkdir t; tar -xpf tokens.tar -C t; chown -R 59999:59999 t"
    )
    machine.run("sh", "-c", "cd /root; tar -cpf tokens.tar -C t .; rm -r t")
    for step in new:
        shell(step)
        assert logs_in(0) is False
    assert logs_in(1)
    done = machine.pam_totp("doctor", "su", "--json")
    assert [f["code"] for f in json.loads(done.stdout)["findings"] if f["check"] == "store"] == []
