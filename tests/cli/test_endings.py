"""Tests of commands that fail or are interrupted: the message states whether the store was changed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import IO

import pexpect
import pytest

from pam_totp.cli import COMMANDS, main, parser
from pam_totp.core.secretfile import serialize
from pam_totp.system import upkeep
from pam_totp.system.doctor import checks
from pam_totp.system.doctor.context import Context
from tests.support.site import ME, PATIENCE, PIPE, TREE, UNPRIVILEGED_UID, Site, codes, fob, until

INTERRUPTED = 128 + signal.SIGINT


def run(site: Site, *words: str, stdout: int | IO[str]) -> tuple[int, str]:
    """Run the command `words` with `stdout` as standard output. Return its exit status and standard error."""
    name, *rest = words
    command = [sys.executable, "-m", "pam_totp.cli", name, "--store", str(site.store), *rest]
    done = subprocess.run(
        command,
        cwd=TREE,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return done.returncode, done.stderr


def at_prompt(site: Site, *words: str) -> pexpect.spawn[bytes]:
    name, *rest = words
    command = ["-m", "pam_totp.cli", name, "--store", str(site.store), *rest]
    return pexpect.spawn(sys.executable, command, cwd=str(TREE), timeout=PATIENCE)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lst"], "unknown command 'lst': did you mean 'list'? (see 'pam-totp --help')"),
        (["zzz"], "unknown command 'zzz' (see 'pam-totp --help')"),
        (["zzz", "--json"], "unknown command 'zzz' (see 'pam-totp --help')"),
        (["list", ME, "more"], "unrecognized arguments: more (see 'pam-totp list --help')"),
        (["verify", ME, "--colour"], "unrecognized arguments: --colour (see 'pam-totp verify --help')"),
    ],
)
def test_unknown_words_are_reported_in_one_short_line(words: list[str], says: str) -> None:
    command = [sys.executable, "-m", "pam_totp.cli", *words]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (2, f"pam-totp: {says}\n")


def test_every_command_has_valid_examples_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    whole = parser()
    (commands,) = (action.choices for action in whole._actions if isinstance(action.choices, dict))
    assert list(commands) == list(COMMANDS), "the commands must be those of COMMANDS, in the same order"
    for name in commands:
        with pytest.raises(SystemExit) as ended:
            whole.parse_args([name, "--help"])
        shown = capsys.readouterr().out.partition("\nexamples:\n")[2].splitlines()
        assert (ended.value.code, len(shown) > 0) == (0, True)
        for line in shown:
            assert len(line) <= 80
            program, *words = shlex.split(line.partition(" < ")[0].removeprefix("  sudo "))
            assert program == "pam-totp"
            assert whole.parse_args(words).parser is commands[name]


def test_the_help_of_enroll_shows_its_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["enroll", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--digits {6,7,8} digits of a code (6)" in shown
    assert re.search(r"--algorithm \{[\w,]+\} [^-]*\(SHA1\)", shown)


def test_an_interrupt_after_a_change_says_how_to_check_it(site: Site) -> None:
    site.enrol(failures=3, failures_at=0)
    script = f"""
import sys
from pam_totp import cli
from pam_totp.operations import audit_log
def interrupted(*_, **__):
    raise KeyboardInterrupt
audit_log.write = interrupted
sys.exit(cli.main(["unlock", {ME!r}, "--store", {str(site.store)!r}]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, site.record().failures) == (INTERRUPTED, 0)
    assert done.stderr == "pam-totp: interrupted, perhaps after the change was made (see 'pam-totp list')\n"


def test_an_interrupt_at_a_prompt_changes_nothing(site: Site) -> None:
    site.enrol()
    before = site.path().read_bytes()
    for words in (("verify", ME), ("remove", ME)):
        talk = at_prompt(site, *words)
        talk.expect(rb"code: |\[y/N\] ")
        talk.sendintr()
        talk.expect(pexpect.EOF)
        assert talk.before.endswith(b"\r\npam-totp: interrupted; nothing was changed\r\n"), (
            "the message is on a separate line"
        )
        talk.close()
        assert talk.exitstatus == INTERRUPTED
    assert site.path().read_bytes() == before


def test_lines_typed_before_the_prompts_are_the_answers(site: Site) -> None:
    """The wait for a key must not overlook a line that the terminal or Python already has."""
    site.enrol()
    talk = at_prompt(site, "remove", ME)
    talk.delaybeforesend = None
    talk.send("maybe\ry\r")
    talk.expect(rb"\[y/N\] ")
    talk.expect(pexpect.EOF)
    assert b"cancelled; nothing was changed" in talk.before
    talk = at_prompt(site, "remove", ME)
    talk.delaybeforesend = None
    talk.send("y\r")
    talk.expect(pexpect.EOF)
    talk.close()
    assert (talk.exitstatus, site.path().exists()) == (0, False)


@pytest.mark.parametrize("words", [("verify",), ("remove",)])
def test_an_end_of_input_at_a_prompt_is_no_answer(site: Site, words: tuple[str, ...]) -> None:
    """`verify` prompts with the echo off, `remove` with the echo on."""
    site.enrol()
    before = site.path().read_bytes()
    talk = at_prompt(site, *words, ME)
    talk.expect(rb"code: |\[y/N\] ")
    talk.sendeof()
    talk.expect(pexpect.EOF)
    assert talk.before.endswith(b"\r\npam-totp: missing answer; nothing was changed\r\n")
    talk.close()
    assert talk.exitstatus == 1
    assert site.path().read_bytes() == before


@pytest.mark.parametrize(
    ("key", "said", "status"),
    [
        (b"\x04", "demo would refuse {}: conv_err", 1),
        (b"\x03", "interrupted: the login was not completed", INTERRUPTED),
    ],
)
def test_no_answer_in_a_rehearsal_is_reported_on_a_separate_line(
    site: Site, key: bytes, said: str, status: int
) -> None:
    site.enrol()
    site.configure()
    words = ["-m", "pam_totp.cli", "rehearse", "demo", ME, "--stack", str(site.confdir / "demo")]
    talk = pexpect.spawn(sys.executable, words, cwd=str(TREE), timeout=PATIENCE)
    talk.expect("One-time code: ")
    until(lambda: not talk.getecho(), "the command waits for the answer")
    talk.send(key)
    talk.expect(pexpect.EOF)
    assert talk.before.endswith(f"\r\npam-totp: {said.format(ME)}\r\n".encode())
    talk.close()
    assert talk.exitstatus == status


@pytest.mark.parametrize("what", ["key", "URI"])
def test_a_key_missing_on_standard_input_is_named(site: Site, what: str) -> None:
    said = f"pam-totp: missing {what} on standard input; nothing was changed\n"
    option = "--secret-stdin" if what == "key" else "--uri-stdin"
    done = site.command("enroll", ME, option, stdin="")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert not site.path().exists()


def test_import_without_a_file_suggests_standard_input(site: Site) -> None:
    done = site.command("import", "csv", stdin="")
    assert (done.returncode, done.stderr) == (2, "pam-totp: FILE must be one file, or - for standard input\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["import", "csv", "/nonexist"], "/nonexist: no such file or directory (check the name)"),
        (["import", "csv", "/etc"], "/etc: is a directory (name a file in that folder)"),
        (
            ["import", "google-authenticator", "--homes", "/none"],
            "/none: no such file or directory (check the name)",
        ),
    ],
)
def test_an_unreadable_file_is_reported_with_a_remedy(site: Site, words: list[str], said: str) -> None:
    done = site.command(*words)
    assert (done.returncode, done.stderr) == (3, f"pam-totp: {said}\n")


def test_rehearse_warns_of_a_missing_account_before_the_prompt(site: Site) -> None:
    site.configure()
    words = ["-m", "pam_totp.cli", "rehearse", "demo", "alcie", "--stack", str(site.confdir / "demo")]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=TREE,
        input="000000\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    first, *others = done.stderr.splitlines()
    assert first == "pam-totp: warning: alcie has no account on this host"
    assert (done.returncode, others[-1]) == (1, "pam-totp: demo would refuse alcie: auth_err")


def test_an_interrupt_while_a_port_is_read_changes_nothing(site: Site) -> None:
    site.enrol()
    before = site.path().read_bytes()
    master, slave = os.openpty()
    talk = at_prompt(site, "resync", ME, "--port", os.ttyname(slave))
    talk.expect("press the button")
    talk.sendintr()
    talk.expect(pexpect.EOF)
    assert b"pam-totp: interrupted; nothing was changed\r\n" in talk.before
    talk.close()
    os.close(master)
    os.close(slave)
    assert talk.exitstatus == INTERRUPTED
    assert site.path().read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_a_hidden_prompt_restores_the_terminal(site: Site, number: signal.Signals) -> None:
    site.enrol()
    talk = at_prompt(site, "verify", ME)
    talk.expect("code: ")
    terminal = os.dup(talk.child_fd)
    until(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO, "the echo is off")
    stat = Path(f"/proc/{talk.pid}/stat")
    until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "the command waits for the answer")
    talk.kill(number)
    talk.expect(pexpect.EOF)
    until(lambda: termios.tcgetattr(terminal)[3] & termios.ECHO, "the echo is on again")
    os.close(terminal)
    talk.close()
    assert talk.exitstatus == 128 + number


def test_a_token_is_not_enrolled_if_its_key_cannot_be_printed(site: Site) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert run(site, "enroll", ME, "--yes", *PIPE, stdout=write) == (128 + signal.SIGPIPE, "")
    finally:
        os.close(write)
    assert not site.path().exists()


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_unprinted_recovery_codes_are_not_reported_as_unchanged(site: Site, more: tuple[str, ...]) -> None:
    site.enrol()
    with open("/dev/full", "w") as full:
        status, said = run(site, "recovery", ME, *more, *PIPE, stdout=full)
    assert status == 3
    assert said.endswith("pam-totp: no space left on device (delete files on that disk, then run the command again)\n")
    assert "nothing was changed" not in said
    assert len(site.record().recovery) == 10


def test_list_continues_after_an_invalid_file(site: Site) -> None:
    site.enrol()
    site.enrol(user="zoe")
    site.path("bob").write_bytes(b"{")
    site.path("bob").chmod(0o600)
    done = site.command("list")
    assert (done.returncode, done.stderr) == (3, "pam-totp: bob.record: must be JSON (error at line 1)\n")
    assert ME in done.stdout
    assert "zoe" in done.stdout


def test_list_skips_a_record_removed_in_the_meantime(site: Site) -> None:
    """Simulate the removal of a record after the store has listed the name of its file.

    The store lists the file %41lice.record as user Alice, and then reads Alice.record, which does not exist.
    """
    site.enrol()
    site.path("%41lice").write_bytes(serialize(site.record()))
    done = site.command("list")
    assert (done.returncode, done.stderr) == (0, "")


def test_list_shows_a_time_beyond_the_calendar_as_a_number(site: Site) -> None:
    site.enrol(fob(last_used=1 << 61))
    done = site.command("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"at {1 << 61}" in done.stdout


def test_the_service_accepts_a_relative_path_of_the_store(site: Site) -> None:
    site.store.rename(site.folder / "moved")
    here = os.path.relpath(site.folder / "moved", TREE)
    site.store = Path(here)  # TREE is the working directory of the service
    site.start()
    site.store = site.folder / "moved"
    site.enrol()
    (site.confdir / "demo").write_text(f"auth required {TREE}/build/pam_totp.so socket={site.socket} nodelay\n")
    assert site.gets_in(codes(0))


def test_a_new_store_has_mode_0700_under_every_umask(site: Site) -> None:
    shutil.rmtree(site.store)
    before = os.umask(0o777)
    try:
        done = site.command("enroll", ME, "--yes", "--qr", "none", *PIPE)
    finally:
        os.umask(before)
    assert (done.returncode, done.stderr) == (0, "")
    assert (site.store.stat().st_mode & 0o7777, len(site.record().tokens)) == (0o700, 1)


@pytest.mark.parametrize(("uid", "hint"), [(UNPRIVILEGED_UID, " (run the command as root)"), (0, "")])
def test_a_repair_without_root_names_root_as_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], uid: int, hint: str
) -> None:
    error = "/var/lib/pam_totp: Permission denied"
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(upkeep, "repair", lambda folder: ([], [error]))
    monkeypatch.setattr(Context, "stores", lambda self: ["/"])
    monkeypatch.setattr(checks, "examine", lambda context: [])
    assert main(["doctor", "--repair"]) == 3
    assert capsys.readouterr().err.endswith(f"pam-totp: /: not repaired: {error}{hint}\n")
