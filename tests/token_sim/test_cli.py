"""Tests of the command line `token-sim`: codes, signals, the owner's commands, messages and help."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from pam_totp.core.oath import totp
from tests.support.site import TREE
from tests.token_sim.tokens import COMMAND, SEED, new_token, running, token_sim, wait_until
from token_sim.cli import _parser, main, terminal
from token_sim.device.faults import DESCRIPTIONS


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_from_new_to_codes(tmp_path: Path) -> None:
    path, link = new_token(tmp_path / "fob"), tmp_path / "port"
    with running(path, "--link", link, "--speed", "20") as run:
        assert token_sim("press", "--port", link, "-n", "3").stdout.split() == ["755224", "287082", "359152"]
        assert json.loads(token_sim("press", "--port", link, "--json").stdout) == {"code": "969429"}
        drawn = token_sim("press", "--port", link, "--lcd").stdout.splitlines()
        assert len(drawn) == 4 and drawn[-1] == "338314"
        assert run.stop() == 128 + signal.SIGTERM
    assert names(tmp_path) == ["fob"]


def test_200_presses_advance_the_counter_by_200(tmp_path: Path) -> None:
    path, link = new_token(tmp_path / "fob"), tmp_path / "port"
    with running(path, "--link", link, "--speed", "60"):
        assert len(token_sim("press", "--port", link, "-n", "200").stdout.split()) == 200
        assert json.loads(token_sim("oracle", path, "--json").stdout)["counter"] == 200


def test_a_time_based_token_agrees_with_the_hosts_clock(tmp_path: Path) -> None:
    path, link = new_token(tmp_path / "fob", "--type", "totp", "--period", "30"), tmp_path / "port"
    with running(path, "--link", link):
        code = token_sim("press", "--port", link).stdout.strip()
        now = json.loads(token_sim("oracle", path, "--json").stdout)["time_ms"] // 1000
        assert code in (totp(SEED, now), totp(SEED, now - 30))


@pytest.mark.parametrize("seed", [SEED.hex(), SEED.hex().upper(), "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"])
def test_a_seed_comes_from_standard_input_and_is_not_printed_again(tmp_path: Path, seed: str) -> None:
    done = token_sim("new", tmp_path / "fob", "--secret-stdin", "--serial", "SMGN00000042", stdin=seed + "\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "SMGN00000042\n", "")
    assert stat.S_IMODE((tmp_path / "fob").stat().st_mode) == 0o600


def test_a_new_seed_is_printed_once_as_a_line_of_a_seed_file(tmp_path: Path) -> None:
    done = token_sim("new", tmp_path / "fob", "--digits", "8", "--algorithm", "SHA256")
    assert re.fullmatch(r"SMGN[0-9]{8},[0-9a-f]{64},hotp,8,0,SHA256\n", done.stdout)
    both = token_sim("new", tmp_path / "two", "--profile", "yubikey", "--slot2", "--json").stdout.splitlines()
    seeds = [json.loads(line)["seed"] for line in both]
    assert len(seeds) == len(set(seeds)) == 2


def test_run_returns_the_exit_status_of_its_command(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    inner = f"{sys.executable} -m token_sim.cli press && exit 7"
    done = token_sim("run", path, "--speed", "20", "--", "sh", "-c", inner)
    assert (done.returncode, done.stdout, done.stderr) == (7, "755224\n", "")
    done = token_sim("run", path, "--", "sh", "-c", "kill -KILL $$")
    assert done.returncode == 128 + signal.SIGKILL
    assert names(tmp_path) == ["fob"]


def test_a_signal_is_passed_on_to_the_command(tmp_path: Path) -> None:
    path, ready = new_token(tmp_path / "fob"), tmp_path / "ready"
    script = f"trap 'exit 9' TERM; touch {ready}; while :; do sleep 0.05; done"
    words = [*COMMAND, "run", str(path), "--", "sh", "-c", script]
    with subprocess.Popen(words) as process:
        wait_until(ready.exists, "the command runs")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 9
    assert names(tmp_path) == ["fob", "ready"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_ending_signal_removes_links_and_sockets(tmp_path: Path, number: int) -> None:
    path = new_token(tmp_path / "fob")
    with running(path, "--link", tmp_path / "port", "--tcp", "0") as run:
        assert names(tmp_path) == ["fob", "fob.control", "fob.lock", "port"]
        assert run.stop(number) == 128 + number
        assert run.process.stderr is not None and run.process.stderr.read() == ""
    assert names(tmp_path) == ["fob"]


def test_sigusr1_presses_the_button(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    with running(path) as run:
        run.process.send_signal(signal.SIGUSR1)
        wait_until(lambda: '"last_code": "755224"' in token_sim("oracle", path, "--json").stdout, "the code is shown")


def test_a_signal_ends_the_terminal_interface_too(tmp_path: Path) -> None:
    path, link = new_token(tmp_path / "fob"), tmp_path / "port"
    words = ["-m", "token_sim", "run", str(path), "--link", str(link), "--tui"]
    with pexpect.spawn(sys.executable, words, dimensions=(24, 80), timeout=30) as terminal:
        terminal.expect("asleep; on")
        assert names(tmp_path) == ["fob", "fob.control", "fob.lock", "port"]
        terminal.send(" ")
        terminal.expect("755224")
        terminal.kill(signal.SIGTERM)
        terminal.expect(pexpect.EOF)
        terminal.wait()
        assert terminal.exitstatus == 128 + signal.SIGTERM
    assert names(tmp_path) == ["fob"]


FAILING = """\
import sys
from token_sim.cli import main, tui
def tick(self):
    raise RuntimeError("tick")
tui.TokenApp.tick = tick
sys.exit(main(sys.argv[1:]))
"""


def test_a_crash_of_the_terminal_interface_ends_with_a_status(tmp_path: Path) -> None:
    words = ["-c", FAILING, "run", str(new_token(tmp_path / "fob")), "--tui"]
    with pexpect.spawn(sys.executable, words, dimensions=(24, 80), timeout=30) as process:
        process.expect("RuntimeError: tick")
        process.expect_exact("token-sim: the interface has failed (the error is above)\r\n")
        process.expect(pexpect.EOF)
        process.wait()
        assert process.exitstatus == 1
    assert names(tmp_path) == ["fob"]


def test_the_interface_ends_when_its_terminal_disappears(tmp_path: Path) -> None:
    words = ["-m", "token_sim", "run", str(new_token(tmp_path / "fob")), "--tui", "--speed", "60"]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = pexpect.spawn(sys.executable, words, dimensions=(24, 80), timeout=30, env=env, ignore_sighup=True)
    process.expect_exact("--------")
    process.expect("asleep; on")
    os.close(process.child_fd)  # close the terminal; SIGHUP is ignored, as under nohup
    assert os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]) == 128 + signal.SIGHUP
    process.closed = True
    assert names(tmp_path) == ["fob"]


def test_owner_commands_work_on_a_token_that_is_not_running(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    before = json.loads(token_sim("oracle", path, "--json").stdout)
    after = json.loads(token_sim("advance", path, "90d", "--temp", "35", "--json").stdout)
    assert after["time_ms"] - before["time_ms"] >= 90 * 86_400_000
    assert token_sim("snapshot", path, tmp_path / "copy").returncode == 0
    assert token_sim("fault", path, "bit-rot").returncode == 0
    done = token_sim("run", path, "--", *COMMAND, "press")
    assert done.returncode == 1 and "selftest" in done.stderr
    assert token_sim("restore", path, tmp_path / "copy").returncode == 0
    assert token_sim("run", path, "--", *COMMAND, "press").stdout == "755224\n"


def test_a_path_too_long_for_a_socket_is_reported_with_the_option(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    path = new_token(deep / "fob")
    done = token_sim("run", path, "--", "true")
    assert done.returncode == 3
    reason = f"the owner's socket {path}.control cannot be created: af_unix path too long"
    assert done.stderr == f"token-sim: {reason} (choose another --control)\n"
    assert token_sim("run", path, "--control", tmp_path / "c", "--", "true").returncode == 0


def test_a_snapshot_overwrites_no_file(tmp_path: Path) -> None:
    path, copy = new_token(tmp_path / "fob"), tmp_path / "copy"
    assert token_sim("snapshot", path, copy).returncode == 0
    copied = copy.read_bytes()
    assert token_sim("advance", path, "1d").returncode == 0
    aged = path.read_bytes()
    for to in (copy, path):
        done = token_sim("snapshot", path, to)
        message = f"token-sim: {to} already exists (choose another name)\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    assert (path.read_bytes(), copy.read_bytes()) == (aged, copied)


def test_faults_are_listed_armed_and_cleared(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    with running(path, "--link", tmp_path / "port", "--speed", "20"):
        assert token_sim("fault", path, "power-after-write").stdout == "faults: power-after-write\n"
        assert "* power-after-write" in token_sim("fault", path).stdout
        assert token_sim("fault", path, "power-after-write", "--clear").stdout == "faults: none\n"
        assert token_sim("fault", path, "power-after-write").returncode == 0
        assert token_sim("press", "--port", tmp_path / "port", "--timeout", "1").returncode == 3
        assert token_sim("press", "--port", tmp_path / "port").stdout == "287082\n"


def run_fault(path: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run the command `fault` with `words` in this process, for the token `path`. Return the output."""
    main(["fault", str(path), *words])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["weak-battery", "dead-battery", "counter-limit", "bit-rot", "tamper"])
def test_the_list_marks_a_permanent_fault(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fob"
    main(["new", str(path)])
    capsys.readouterr()
    assert "*" not in run_fault(path, capsys)
    assert run_fault(path, capsys, name) == f"faults: {name}\n"
    assert re.findall(r"^\* ([a-z-]+) ", run_fault(path, capsys), re.MULTILINE) == [name]
    assert json.loads(run_fault(path, capsys, "--json"))["faults"] == {name: None}


def test_clear_without_a_name_clears_all_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = new_token(tmp_path / "fob")
    with running(path, "--link", tmp_path / "port"):
        for words in (["--times", "2", "bounce"], ["SEGMENT"], ["stuck-button"], ["dead-battery"]):
            run_fault(path, capsys, *words)
        assert run_fault(path, capsys).count("*") == 4
        assert run_fault(path, capsys, "--clear", "bounce") == "faults: segment, stuck-button, dead-battery\n"
        assert run_fault(path, capsys, "--clear") == "faults: none\n"
        assert run_fault(path, capsys, "--clear") == "faults: none\n"


def test_the_list_of_faults_fits_a_terminal_and_has_hanging_indents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fob"
    main(["new", str(path)])
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "60")
    assert len(run_fault(path, capsys).splitlines()) == len(DESCRIPTIONS)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    lines = run_fault(path, capsys).splitlines()
    assert max(map(len, lines)) <= 60 and len(lines) > len(DESCRIPTIONS)
    assert {line[:23].strip() for line in lines if not line[2].isalpha()} == {""}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "FOB", "--tcp", "65536"], "argument --tcp: must be an integer, 0 to 65535"),
        (["run", "FOB", "--tcp", "-1"], "argument --tcp: must be an integer, 0 to 65535"),
        (["run", "FOB", "--rfc2217", "99999999999999999999"], "argument --rfc2217: must be an integer, 0 to 65535"),
        (["run", "FOB", "--rfc2217", "4000.0"], "argument --rfc2217: must be an integer, 0 to 65535"),
        (["press", "--port", "socket://127.0.0.1:65536"], "must have a host and a port of 1 to 65535"),
        (["press", "--port", "socket://127.0.0.1:0"], "must have a host and a port of 1 to 65535"),
        (["term", "--port", "rfc2217://127.0.0.1:x/"], "must have a host and a port of 1 to 65535"),
        (["watch", "--port", "SOCKET://127.0.0.1"], "must have a host and a port of 1 to 65535"),
        (["press", "--port", "x", "-n", "0"], "argument -n: must be an integer, 1 or more"),
        (["press", "--port", "x", "--timeout", "nan"], "argument --timeout: must be 0 or more"),
        (["press", "--port", "x", "--wait", "-1"], "argument --wait: must be 0 or more"),
        (["fault", "FOB", "bounce", "--times", "0"], "argument --times: must be an integer, 1 or more"),
        (["fault", "FOB", "torn-wrte"], "unknown fault 'torn-wrte': did you mean 'torn-write'?"),
        (["new", "NEW", "--profile", "c20"], "unknown model 'c20': did you mean 'c200'?"),
        (["new", "NEW", "--type", "hop"], "unknown type 'hop': did you mean 'hotp'?"),
        (["prss"], "unknown command 'prss': did you mean 'press'?"),
    ],
)
def test_wrong_usage_is_reported_before_anything_is_opened(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and message in err and err.count("\n") == 1


def test_names_are_case_insensitive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["new", str(tmp_path / "fob"), "--profile", "eToken_Pass", "--type", "TOTP", "--algorithm", "sha-512"]
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["type"], made["algorithm"], len(made["seed"]), made["serial"][2:4]) == ("totp", "SHA512", 128, "EP")


def test_a_command_gets_paths_that_are_valid_in_every_folder(tmp_path: Path) -> None:
    new_token(tmp_path / "fob")
    env = {**os.environ, "PYTHONPATH": str(TREE)}
    child = ["sh", "-c", 'cd / && ls -d "$TOKEN_SIM_PORT" "$TOKEN_SIM_CONTROL"']
    done = token_sim("run", "fob", "--link", "port", "--control", "owner", "--", *child, cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/owner\n{tmp_path}/port\n")


def test_a_run_in_a_folder_that_was_removed_ends_with_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "in use"
    folder.mkdir()
    path = new_token(folder / "fob")
    with running(path, "--link", folder / "port") as run:
        shutil.rmtree(folder)
        assert run.stop() == 3
        assert run.process.stderr is not None
        assert run.process.stderr.read() == f"token-sim: {path}: no such file or directory\n"
    assert not folder.exists()


def test_a_token_that_was_removed_is_not_written_again(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    with running(path, "--link", tmp_path / "port", "--speed", "20") as run:
        path.unlink()
        done = token_sim("press", "--port", tmp_path / "port")
        assert (done.returncode, "shows an error: write" in done.stderr) == (1, True)
        assert run.stop() == 3
    assert names(tmp_path) == []


def test_a_terminal_of_another_encoding_gets_plain_characters(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = token_sim("fault", new_token(tmp_path / "fob"), env=env)
    assert (done.returncode, done.stderr) == (0, "") and "number: cell x 10 + segment" in done.stdout


def test_a_drawing_keeps_its_shape_in_every_encoding() -> None:
    drawn = "╭─ faults (● present) ─╮ ━━ █░ Enter · Esc 20 × 5\n"
    for encoding, expected in (
        ("utf-8", drawn),
        ("ascii", "+- faults (* present) -+ -- #. Enter . Esc 20 x 5\n"),
        ("iso-8859-1", "+- faults (* present) -+ -- #. Enter · Esc 20 × 5\n"),
    ):
        raw = io.BytesIO()
        with io.TextIOWrapper(raw, encoding=encoding) as stream:
            terminal.plain_characters(stream)
            stream.write(drawn)
            stream.flush()
            assert raw.getvalue().decode(encoding) == expected


def test_a_path_is_written_with_its_own_bytes() -> None:
    raw = io.BytesIO()
    with io.TextIOWrapper(raw, encoding="utf-8") as stream:
        terminal.plain_characters(stream)
        stream.write(os.fsdecode(b"/tmp/f\xf6b"))
        stream.flush()
        assert raw.getvalue() == b"/tmp/f\xf6b"


def test_watch_prints_codes_that_others_cause(tmp_path: Path) -> None:
    path, link = new_token(tmp_path / "fob"), tmp_path / "port"
    with running(path, "--link", link) as run:
        words = [*COMMAND, "watch", "--port", str(link), "-n", "1"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watch:
            while watch.poll() is None:
                run.process.send_signal(signal.SIGUSR1)
                try:
                    watch.wait(0.3)
                except subprocess.TimeoutExpired:
                    continue
            assert watch.stdout is not None and re.fullmatch(r"[0-9]{6}\n", watch.stdout.read())


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["press", "--port", "/nowhere"], 3, "/nowhere cannot be opened: port not found"),
        (["press", "--port", "bogus://x"], 3, "bogus://x cannot be opened"),
        (["press", "--port", "/dev/null"], 3, "/dev/null cannot be opened: the path must be a serial port"),
        (["press", "--port", "socket://127.0.0.1:1"], 3, ":1 cannot be opened: connection refused"),
        (["press", "--port", "/etc"], 3, "/etc cannot be opened: is a directory\n"),
        (["run", "/nowhere/fob"], 3, "token-sim: /nowhere/fob: no such file"),
        (["run", "JUNK/fob"], 3, "token-sim: JUNK/fob: not a directory"),
        (["new", "/nowhere/fob"], 3, "token-sim: /nowhere/fob: no such file"),
        (["unplug", "FOB"], 3, "is not running (start it with"),
        (["fault", "FOB", "torn-write"], 3, "is not running (start it with"),
        (["fault", "FOB", "rain"], 2, "rain"),
        (["advance", "FOB", "soon"], 2, "'soon' must be a span of time"),
        (["advance", "FOB", "90"], 2, "'90' must be a span of time (write 90d,"),
        (["restore", "FOB", "/nowhere"], 1, "/nowhere: no such file"),
        (["run", "JUNK"], 1, "must be a token file"),
        (["run", "FOB", "--link", "JUNK"], 3, "JUNK: file already exists (choose another path)"),
        (["run", "FOB", "--speed", "0"], 2, "--speed must be"),
        (["run", "FOB", "--", "/nowhere/at/all"], 3, "/nowhere/at/all cannot be run"),
        (["new", "FOB"], 1, "already exists"),
        (["new", "NEW", "--counter", "-1"], 2, "a counter must be 0 to 2^64-1"),
        (["new", "NEW", "--serial", "short"], 2, "a serial number must have 12"),
        (["new", "NEW", "--digits", "5"], 2, "--digits"),
        (["new", "NEW", "--profile", "c1000"], 2, "c1000"),
        (["new", "NEW", "--slot2"], 2, "one slot"),
        (["new", "NEW", "--secret-stdin"], 2, "must be hex or base32"),
        (["factory", "--out", "OUT", "--count", "0"], 2, "--count must be 1 or more"),
        ([], 2, "COMMAND"),
        (["dance"], 2, "unknown command 'dance': did you mean 'advance'?"),
    ],
)
def test_an_error_is_one_line_with_its_own_exit_status(
    tmp_path: Path, words: list[str], status: int, message: str
) -> None:
    new_token(tmp_path / "FOB")
    (tmp_path / "JUNK").write_text("{}")
    done = token_sim(*words, cwd=tmp_path, stdin="no seed\n", env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("token-sim: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert done.stdout == "" and names(tmp_path) == ["FOB", "JUNK"]


def test_a_running_token_cannot_be_run_again(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    with running(path):
        done = token_sim("run", path)
        assert done.returncode == 1 and "is already in use" in done.stderr


def test_every_command_has_examples_in_its_help() -> None:
    making, using = ("new", "factory", "run"), ("press", "watch", "term")
    owning = ("advance", "fault", "snapshot", "restore", "oracle", "unplug", "plug")
    for command in (*making, *using, *owning):
        done = token_sim(command, "--help")
        assert done.returncode == 0 and f"token-sim {command} " in done.stdout.split("examples:")[1]


def test_help_fits_80_columns_and_explains_every_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = _parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict))
    for command in (parser, *commands.values()):
        assert [line for line in command.format_help().splitlines() if len(line) > 80] == []
        unexplained = [action.dest for action in command._actions if not action.help and action.metavar != "COMMAND"]
        assert unexplained == [], command.prog


@pytest.mark.parametrize("command", ["press", "watch", "term"])
def test_a_missing_port_is_reported_with_both_ways_to_give_it(command: str) -> None:
    env = {k: v for k, v in os.environ.items() if k != "TOKEN_SIM_PORT"}
    done = token_sim(command, env=env)
    message = "token-sim: missing option --port (give it, or set TOKEN_SIM_PORT)\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert "[--port PORT]" in token_sim(command, "--help", env=env).stdout


def test_the_usage_of_run_shows_that_it_takes_a_command() -> None:
    usage = token_sim("run", "--help").stdout.split("\n\n")[0]
    assert usage.startswith("usage: token-sim run [-h]") and usage.endswith(" file [-- COMMAND ...]")


def test_a_missing_package_is_one_line_with_the_command_to_install_it(tmp_path: Path) -> None:
    for module in ("serial", "textual", "pskc"):
        (tmp_path / f"{module}.py").write_text(f"raise ModuleNotFoundError(name='{module}')\n")
    path = new_token(tmp_path / "fob")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    for words, package in (
        (["press", "--port", str(tmp_path / "x")], "pyserial"),
        (["run", str(path), "--rfc2217", "0"], "pyserial"),
        (["run", str(path), "--tui"], "textual"),
        (["factory", "--out", str(tmp_path / "out"), "--seeds", "pskc"], "python-pskc"),
    ):
        done = token_sim(*words, env=env)
        assert done.returncode == 3 and done.stderr.count("\n") == 1
        assert f"(pip install {package})" in done.stderr


def test_without_a_terminal_the_token_is_not_drawn_into_a_file(tmp_path: Path) -> None:
    done = token_sim("run", new_token(tmp_path / "fob"), "--tui")
    message = "token-sim: --tui requires a terminal (otherwise use --link PATH and 'token-sim press')\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", message)
    assert names(tmp_path) == ["fob"]


def test_a_link_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    link = tmp_path / "nowhere" / "port"
    done = token_sim("run", new_token(tmp_path / "fob"), "--link", link)
    assert (done.returncode, done.stderr) == (3, f"token-sim: {link}: no such file or directory\n")


def test_optional_packages_are_not_imported_at_the_start() -> None:
    code = "import sys, token_sim.cli; print(*({'serial', 'textual', 'rich', 'pskc'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"


def test_token_sim_imports_only_oath_from_pam_totp() -> None:
    import ast

    import token_sim as package

    imported = set()
    for source in Path(package.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pam_totp"):
                imported.add(node.module)
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names if alias.name.startswith("pam_totp")}
    assert imported == {"pam_totp.core.oath"}
