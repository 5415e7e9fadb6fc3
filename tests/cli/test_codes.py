"""Tests of enroll, list, verify, resync, unlock and remove, as an administrator runs them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pam_totp.cli.serial_port import code_in
from pam_totp.core.oath import hotp
from pam_totp.core.record import TotpToken
from pam_totp.core.secretfile import base32
from tests.support.site import KEY, ME, PIPE, TREE, Site, codes, fob, phone, until


def test_verify_uses_the_code_up(site: Site) -> None:
    site.enrol()
    first = site.command("verify", ME, codes(0))
    assert (first.returncode, first.stdout) == (0, "accepted: code of fob\n")
    again = site.command("verify", ME, codes(0))
    assert (again.returncode, again.stdout) == (
        1,
        "refused: replayed: this code or a later code was used before (try the next code)\n",
    )
    wrong = site.command("verify", ME, stdin="000000\n")
    assert (wrong.returncode, wrong.stdout) == (1, "refused: wrong\n")
    assert site.record().failures == 1
    assert site.command_json("verify", ME, *codes(1, 2).split())["reason"] == "row"


def test_verify_describes_valid_answers_after_an_invalid_answer(site: Site) -> None:
    site.enrol(fob(), phone(digits=8))
    done = site.command("verify", ME, "123")
    answers = "a code of 6 or 8 digits, two or three codes in a row, or a recovery code"
    assert (done.returncode, done.stdout) == (1, f"refused: malformed: must be {answers}\n")


def test_verify_prints_the_required_number_of_codes_in_a_row(site: Site) -> None:
    for failures, number in ((5, "two"), (20, "three")):
        site.enrol(fob(), failures=failures, failures_at=1 << 40)
        done = site.command("verify", ME, codes(0))
        text = f"too many failures: {number} codes in a row are required"
        assert (done.returncode, done.stdout) == (1, f"refused: codes-in-a-row-needed: {text}\n")


def test_verify_names_the_restored_backup_that_requires_codes_in_a_row(site: Site) -> None:
    site.enrol(fob(5, row_needed=True))
    done = site.command("verify", ME, codes(5))
    said = "refused: codes-in-a-row-needed: restored backup: two codes in a row are required\n"
    assert (done.returncode, done.stdout) == (1, said)
    assert site.command("verify", ME, codes(5, 2)).returncode == 0
    assert site.command("verify", ME, codes(7)).returncode == 0


def test_verify_names_the_remedy_if_no_token_is_enabled(site: Site) -> None:
    site.enrol(fob(enabled=False))
    done = site.command("verify", ME, "123456")
    assert (done.returncode, "see 'pam-totp enable-token'" in done.stdout) == (1, True), done.stdout


NO_ACCOUNT = "no account has that name (see 'pam-totp list')"


def test_the_error_for_a_user_without_tokens_names_the_remedy(site: Site) -> None:
    for command in (["verify", "carol", "123456"], ["resync", "carol", "123456", "123456"], ["unlock", "carol"]):
        done = site.command(*command)
        assert (done.returncode, done.stderr) == (1, f"pam-totp: unknown user carol: {NO_ACCOUNT}\n")
        done = site.command(command[0], ME, *command[2:])
        assert (done.returncode, done.stderr) == (1, f"pam-totp: {ME} has no tokens (see 'pam-totp enroll {ME}')\n")


def test_resync_finds_a_token_50_000_ahead(site: Site, way: str) -> None:
    site.enrol()
    assert not site.gets_in(codes(50_000, 2))
    done = site.command("resync", ME, *codes(50_001, 2).split())
    assert (done.returncode, done.stdout) == (0, f"{ME}'s fob is resynchronised (counter 50003)\n")
    assert not site.gets_in(codes(50_002)), "the codes for `resync` count as used"
    assert site.gets_in(codes(50_003))


def test_resync_searches_only_forward_and_within_its_limit(site: Site) -> None:
    site.enrol(fob(1000))
    before = site.path().read_bytes()
    for answer, reach in ((codes(1200, 2), "199"), (codes(998, 2), "100000"), (codes(999, 2), "100000")):
        done = site.command("resync", ME, *answer.split(), "--search", reach)
        assert done.returncode == 1
        assert "the codes must be in a row" in done.stderr
        assert site.path().read_bytes() == before
    assert site.command("resync", ME, *codes(1200, 2).split(), "--search", "200").returncode == 0


@pytest.mark.parametrize(("lock_after", "kept"), [(0, 5), (3, 2)])
def test_resync_lowers_the_count_as_a_login_does(site: Site, lock_after: int, kept: int) -> None:
    site.enrol(failures=9, failures_at=int(time.time()))
    site.config.write_text(f"[policy]\nlock_after = {lock_after}\n")
    answer = codes(50_000, 2).split()
    assert site.command("resync", ME, *answer, "--config", str(site.config)).returncode == 0
    assert site.record().failures == kept


def test_unlock_clears_the_count_that_a_login_keeps(site: Site) -> None:
    site.enrol(failures=9, failures_at=1 << 40)
    assert site.command("verify", ME, *codes(0, 2).split()).returncode == 0
    assert site.command_json("list", ME)[0]["failures"] == 5
    assert site.command("unlock", ME).returncode == 0
    assert (site.record().failures, site.record().failures_at) == (0, None)
    assert site.command("verify", ME, codes(2)).returncode == 0, "a single code is accepted again"


def test_resync_sets_the_drift_of_a_time_token(site: Site) -> None:
    token = phone(period=86_400)
    site.enrol(token)
    today = int(time.time()) // token.period
    answer = codes(today - 31, 2, key=token.secret)
    done = site.command_json("resync", ME, *answer.split())
    assert done == {"user": ME, "token": "phone", "type": "totp", "last_step": today - 30, "drift": -30}
    after = site.record().tokens[0]
    assert isinstance(after, TotpToken)
    assert (after.drift, after.last_step) == (-30, today - 30)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resync", ME, "fob"], "'fob' is a token, not a code (select it by --token fob)"),
        (["resync", ME, "755224", "fob"], "'fob' is a token, not a code (select it by --token fob)"),
        (["verify", ME, "fob", "755224"], "'fob' is a token, not a code (give the code alone, as at a login)"),
        (
            ["resync", ME, "fbo"],
            "the answer must be two or three codes in a row from one token, of 6 to 8 digits each "
            "(give --token NAME, or omit the codes)",
        ),
    ],
)
def test_a_token_s_name_in_the_place_of_a_code_is_named(site: Site, words: list[str], said: str) -> None:
    site.enrol()
    before = site.path().read_bytes()
    done = site.command(*words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"pam-totp: {said}\n")
    assert site.path().read_bytes() == before


def test_a_code_that_is_also_a_token_s_name_is_a_code(site: Site) -> None:
    site.enrol(fob(name="755224"))
    assert site.command("resync", ME, "755224", "287082").returncode == 0


@pytest.mark.parametrize(
    "words", [["resync", ME, "123456"], ["resync", ME, "12", "34"], ["resync", ME, "123456", "123456", "--search", "0"]]
)
def test_wrong_usage_changes_nothing(site: Site, words: list[str]) -> None:
    site.enrol()
    before = site.path().read_bytes()
    assert site.command(*words).returncode == 2
    assert site.path().read_bytes() == before


def test_resync_reads_the_codes_from_a_port(site: Site) -> None:
    site.enrol()
    master, slave = pty.openpty()
    os.set_blocking(master, True)
    port = os.ttyname(slave)
    command = [sys.executable, "-m", "pam_totp.cli", "resync", ME, "--store", str(site.store), "--port", port]
    with subprocess.Popen(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "press the button" in process.stderr.readline()
        noise = b"+DISP OFF\r\nbattery=2970\r\n"
        first, second = codes(70_000, 2).split()
        os.write(master, noise + f"+OTP {first}\r\n{first}\r\n+DI".encode())
        os.write(master, f"SP OFF\r\ncode: {second}\r\n".encode())
        out, err = process.communicate(timeout=60)
    os.close(master)
    os.close(slave)
    assert (process.returncode, out) == (0, f"{ME}'s fob is resynchronised (counter 70002)\n"), err


def test_a_missing_port_is_named_in_one_line(site: Site) -> None:
    site.enrol()
    done = site.command("resync", ME, "--port", "/dev/ttyNOT-THERE")
    assert done.returncode == 3
    assert "/dev/ttyNOT-THERE" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("+OTP 755224", "755224"),
        ("755224", "755224"),
        ("your code is 12345678.", "12345678"),
        ("+DISP 755224", None),
        ("battery=755224", None),
        ("755224 287082", None),
        ("7552", None),
        ("755224287", None),
        ("", None),
    ],
)
def test_only_a_line_with_exactly_one_code_is_read(line: str, code: str | None) -> None:
    assert code_in(line) == code


def test_a_long_search_shows_a_bar_on_a_terminal(site: Site) -> None:
    site.enrol()
    before = site.path().read_bytes()
    master, slave = pty.openpty()
    words = ["resync", ME, "--store", str(site.store), "--search", "10000000", "000000", "000000"]
    with subprocess.Popen([sys.executable, "-m", "pam_totp.cli", *words], cwd=TREE, stderr=slave) as process:
        os.close(slave)
        shown = ""
        while "\rsearching fob [###" not in shown:
            shown += os.read(master, 4096).decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT
    os.close(master)
    assert site.path().read_bytes() == before


def test_enrolment_asks_for_a_code_and_uses_it_up(site: Site, way: str) -> None:
    stdin = base32(KEY) + "\n" + "000000\n" + codes(3) + "\n"
    done = site.command(
        "enroll", ME, "--type", "hotp", "--counter", "0", "--name", "fob", "--secret-stdin", stdin=stdin
    )
    assert (done.returncode, done.stdout) == (0, f"{ME} now has the hotp token fob\n"), done.stderr
    assert base32(KEY) not in done.stdout + done.stderr
    assert not site.gets_in(codes(3))
    assert site.gets_in(codes(4))


def test_enrolment_without_a_right_code_changes_nothing(site: Site) -> None:
    wrong = base32(KEY) + "\n" + "000000\n" * 3
    done = site.command("enroll", ME, "--type", "hotp", "--secret-stdin", stdin=wrong)
    assert done.returncode == 1
    assert not site.path().exists()
    assert site.command("enroll", ME, "--type", "hotp", "--secret-stdin", stdin=base32(KEY) + "\n").returncode == 1
    assert not site.path().exists(), "enrolment requires an answer"


def test_an_invalid_key_is_refused_without_showing_it(site: Site) -> None:
    for key in ("NOT BASE 32!", "GEZDGNBVGY3TQOJQ", "hex:00ff", "", "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ1"):
        done = site.command("enroll", ME, "--secret-stdin", "--yes", stdin=key + "\n")
        assert done.returncode == 2, key
        assert not key or key not in done.stderr
    assert not site.path().exists()


def test_enrolment_uses_all_settings_of_a_uri(site: Site) -> None:
    uri = f"otpauth://hotp/x?secret={base32(KEY)}&digits=8&algorithm=SHA256&counter=5"
    assert site.command("enroll", ME, "--uri-stdin", "--yes", stdin=uri + "\n").returncode == 0
    assert site.command("verify", ME, hotp(KEY, 5, 8, "SHA256")).returncode == 0


def test_list_shows_tokens_and_no_key(site: Site) -> None:
    site.enrol(fob(3), phone(serial="AB-1"))
    site.enrol(user="zoe")
    shown = site.command("list").stdout
    assert [line.split()[:3] for line in shown.splitlines()] == [
        ["USER", "TOKEN", "TYPE"],
        [ME, "fob", "hotp"],
        [ME, "phone", "totp"],
        ["zoe", "fob", "hotp"],
    ]
    data = site.command_json("list", ME)
    assert [t["name"] for t in data[0]["tokens"]] == ["fob", "phone"]
    for text in (shown, str(data)):
        assert base32(KEY) not in text
        assert base32(KEY[::-1]) not in text


def test_remove_asks_before_it_removes_the_last_token(site: Site) -> None:
    site.enrol(fob(), phone())
    assert site.command("remove", ME).returncode == 2, "`remove` requires a name if the user has several tokens"
    assert site.command("remove", ME, "phone").returncode == 0
    assert site.command("remove", ME, "fob", stdin="n\n").returncode == 1
    assert [t.name for t in site.record().tokens] == ["fob"]
    assert site.command("remove", ME, "fob", stdin="y\n").returncode == 0
    assert not site.path().exists()


def test_every_command_has_help_and_an_unknown_word_is_wrong_usage(site: Site) -> None:
    top = subprocess.run(
        [sys.executable, "-m", "pam_totp.cli", "--help"], cwd=TREE, text=True, capture_output=True, check=True
    )
    for command in ("enroll", "list", "verify", "resync", "unlock", "remove", "serve"):
        assert command in top.stdout
        done = site.command(command, "--help")
        assert (done.returncode, done.stdout[:6]) == (0, "usage:")
    assert "Show the QR code" in site.command("qr", "--help").stdout
    for wrong, where in (("frobnicate", ""), ("list", " list"), ("verify", " verify")):
        done = site.command(wrong, *(["--json=no"] if where == " list" else []))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.endswith(f" (see 'pam-totp{where} --help')\n")


def test_an_unavailable_store_is_reported_in_one_line(site: Site, tmp_path: Path) -> None:
    site.store.chmod(0o755)
    done = site.command("list")
    remedy = f"run 'chmod 0700 {site.store}' if this folder is the store; --store selects another"
    assert (done.returncode, done.stderr) == (3, f"pam-totp: {site.store}: the mode must be 0700 ({remedy})\n")
    site.store.chmod(0o700)
    missing = tmp_path / "none"
    until(lambda: not missing.exists(), "the folder does not exist")
    done = site.command("list", "--store", missing)
    said = f"pam-totp: {missing}: store not found ('pam-totp enroll' creates it; --store selects another)\n"
    assert (done.returncode, done.stderr) == (3, said)


def test_a_missing_port_is_reported_with_a_remedy(site: Site, tmp_path: Path) -> None:
    site.enrol()
    missing = tmp_path / "none"
    done = site.command("resync", ME, "--port", missing)
    said = f"pam-totp: {missing} cannot be opened: no such file or directory (check that the token is plugged in)\n"
    assert (done.returncode, done.stderr) == (3, said)


def test_a_name_without_an_account_is_enrolled_with_a_warning(site: Site) -> None:
    done = site.command("enroll", "no-such-account", "--yes", *PIPE)
    warning = "pam-totp: warning: no-such-account has no account on this host\n"
    assert (done.returncode, done.stderr) == (0, warning)
    assert site.command("enroll", ME, "--yes", *PIPE).stderr == ""
