"""Tests of the pytest plugin: its fixtures, errors, and use in another project."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import serial

from pam_totp.core.oath import hotp, totp
from tests.support.site import TREE
from tests.token_sim.tokens import PATIENCE, SEED, no_descriptors_left
from token_sim.client import Client
from token_sim.testing import live_token
from token_sim.testing.live_token import LiveToken, NoCode, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.token_sim(key=SEED)
def test_the_fixture_is_a_token_on_a_port(token_sim: LiveToken) -> None:
    assert token_sim.press() == "755224"
    with serial.Serial(token_sim.port, timeout=0.05) as port:
        port.write(b"DISP?\r")
        received = b""
        while not received.endswith(b"OK\r\n"):
            received += port.read(100)
        assert received.endswith(b"text=755224\r\nOK\r\n")
    assert token_sim.key == SEED


def test_two_tokens_have_different_seeds_and_ports(token_sim_factory: Callable[..., LiveToken]) -> None:
    first, second = token_sim_factory(), token_sim_factory(digits=8)
    assert first.key != second.key and first.port != second.port
    assert (first.press(), second.press()) == (hotp(first.key, 0), hotp(second.key, 0, 8))


@pytest.mark.parametrize("profile", ["generic", "c100", "c200", "etoken-pass", "go7", "yubikey"])
def test_every_press_on_every_model_returns_a_new_code(
    profile: str, token_sim_factory: Callable[..., LiveToken]
) -> None:
    token = token_sim_factory(profile=profile, key=SEED)
    codes = [token.press() for _ in range(3)]
    if token.slot.kind == "hotp":
        assert codes == ["755224", "287082", "359152"]
    else:
        assert codes[-1] == totp(SEED, token.oracle()["clock_ms"] // 1000, period=token.slot.period)


def test_a_fixture_controls_time_faults_snapshots_and_the_plug(token_sim: LiveToken, tmp_path: Path) -> None:
    assert token_sim.advance("30d", temp=45)["error_ms"] < -30_000
    token_sim.snapshot(str(tmp_path / "copy"))
    first = token_sim.press()
    token_sim.fault("power-after-write")
    assert token_sim.press() == hotp(token_sim.key, 2)
    token_sim.restore(str(tmp_path / "copy"))
    assert token_sim.press() == first
    token_sim.unplug()
    assert not Path(token_sim.port).exists()
    token_sim.plug()
    with Client(token_sim.port) as client:
        assert client.press() == hotp(token_sim.key, 1)


@pytest.mark.parametrize("fault", ["bit-rot", "dead-battery", "counter-limit", "tamper", "stuck-button"])
def test_a_press_without_a_code_raises_an_error(token_sim: LiveToken, fault: str) -> None:
    token_sim.fault(fault)
    with pytest.raises(NoCode, match="shows no code"):
        token_sim.press()


@pytest.mark.token_sim(key=SEED)
def test_no_repr_shows_the_seed(token_sim: LiveToken) -> None:
    for thing in (
        token_sim,
        token_sim.slot,
        token_sim._simulation,
        token_sim._simulation.device,
        token_sim._simulation.file,
    ):
        assert SEED.hex() not in repr(thing) and SEED.decode() not in repr(thing)


@pytest.mark.token_sim("C200", type="HOTP", key="GEZD GNBV gy3tqojq-GEZDGNBVGY3TQOJQ=", digits=8)
class TestMarks:
    def test_a_profile_has_no_name_and_words_have_any_case(self, token_sim: LiveToken) -> None:
        assert token_sim.key == SEED and token_sim.slot.kind == "hotp"
        assert token_sim.oracle()["profile"] == "c200"
        assert token_sim.press() == hotp(SEED, 0, 8)

    @pytest.mark.token_sim(digits=7, algorithm="sha-256")
    def test_the_marks_of_class_and_test_add_up(self, token_sim: LiveToken) -> None:
        assert token_sim.oracle()["profile"] == "c200"
        assert (token_sim.slot.digits, token_sim.slot.algorithm, token_sim.key) == (7, "SHA256", SEED)

    @pytest.mark.token_sim(kind="totp")
    def test_a_tests_own_mark_wins_also_by_the_options_other_name(self, token_sim: LiveToken) -> None:
        assert token_sim.slot.kind == "totp"

    @pytest.mark.parametrize("token_sim", ["eToken PASS", {"profile": "etoken_pass", "digits": 6}], indirect=True)
    def test_a_parameter_selects_the_profile_or_the_options(self, token_sim: LiveToken) -> None:
        assert token_sim.oracle()["profile"] == "etoken-pass"
        assert token_sim.key == SEED


@pytest.mark.parametrize(
    ("profile", "options", "message"),
    [
        (["c20"], {}, "token_sim: unknown profile 'c20': did you mean 'c200'?"),
        ([], {"profile": "rsa"}, "token_sim: unknown profile 'rsa': must be one of generic, c100, c200, etoken-pass"),
        (["c200"], {"profile": "c100"}, "token_sim: at most one profile is allowed"),
        ([], {"digit": 8}, "token_sim: unknown option 'digit': did you mean 'digits'?"),
        ([], {"counters": 8}, "token_sim: unknown option 'counters': did you mean 'counter'?"),
        ([], {"type": "hotpp"}, "token_sim: unknown type 'hotpp': did you mean 'hotp'?"),
        ([], {"type": "hotp", "kind": "totp"}, "token_sim: type and kind are the same option"),
        ([], {"algorithm": "md5"}, "token_sim: unknown algorithm 'md5': must be one of SHA1"),
        ([], {"digits": "8"}, "token_sim: digits must be an integer"),
        ([], {"key": "no seed"}, "token_sim: a key as text must be hex or base32"),
        ([], {"key": 5}, "token_sim: a seed must have 14 to 64 bytes"),
    ],
)
def test_an_unknown_word_is_an_error_with_a_suggestion(
    profile: list[str], options: dict[str, Any], message: str, token_sim_factory: Callable[..., LiveToken]
) -> None:
    with pytest.raises(pytest.fail.Exception) as caught:
        token_sim_factory(*profile, **options)
    assert str(caught.value).startswith(message) and not caught.value.pytrace


def test_a_token_suggests_faults_and_commands(token_sim: LiveToken) -> None:
    with pytest.raises(ValueError, match=r"unknown fault 'torn-wrte': did you mean 'torn-write'"):
        token_sim.fault("torn-wrte")
    with pytest.raises(ValueError, match="unknown command 'unplugg': did you mean 'unplug'"):
        token_sim.command("unplugg")
    token_sim.fault("Torn_Write")
    assert token_sim.oracle()["faults"] == {"torn-write": 1}


def test_clear_without_a_name_undoes_all_faults(token_sim: LiveToken) -> None:
    for name in ("torn-write", "segment", "dead-battery", "stuck-button"):
        token_sim.fault(name)
    assert set(token_sim.oracle()["faults"]) == {"torn-write", "segment", "dead-battery", "stuck-button"}
    token_sim.clear()
    assert token_sim.oracle()["faults"] == {}
    assert token_sim.press() == hotp(token_sim.key, 0)


def break_thread(token: LiveToken) -> None:
    """Cause an error in the next step of the loop, and wait for the end of the thread."""

    def step() -> None:
        raise OSError("no descriptors left")

    token._runner.step = step  # type: ignore[assignment, method-assign]
    token._thread.join(PATIENCE)


def test_a_dead_thread_is_one_clear_error_at_once(token_sim: LiveToken) -> None:
    with serial.Serial(token_sim.port, timeout=PATIENCE) as port:
        break_thread(token_sim)
        with pytest.raises(serial.SerialException):
            port.read(1)  # fails at once
    with pytest.raises(Stopped, match="its thread has died: OSError: no descriptors left"):
        token_sim.press()
    with pytest.raises(Stopped, match="its thread does not run"):
        token_sim.oracle()
    token_sim.close()


def test_close_reports_a_dead_thread_that_no_call_has_reported() -> None:
    token = LiveToken()
    break_thread(token)
    with pytest.raises(Stopped, match="its thread has died: OSError"):
        token.close()
    with pytest.raises(Stopped, match="it was closed"):
        token.press()


def test_a_fork_does_not_wait_for_the_thread_of_its_parent(token_sim: LiveToken) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns: this process has threads
        child = os.fork()
    if child == 0:
        try:
            token_sim.press()
        except Stopped:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert token_sim.press()


def test_a_token_works_after_all_descriptors_are_used_up(token_sim: LiveToken) -> None:
    with Client(token_sim.port, timeout=PATIENCE) as client:
        with no_descriptors_left():
            assert client.press() == hotp(token_sim.key, 0)
            assert token_sim.press() == hotp(token_sim.key, 1)
            token_sim.unplug()
            with pytest.raises(ValueError, match=r"^the port cannot be opened: too many open files$"):
                token_sim.plug()
        assert not token_sim.oracle()["plugged"]
        token_sim.plug()
        assert Path(token_sim.port).exists()


def test_a_token_works_with_descriptors_above_1023() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("the limit of descriptors is below 2048")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    descriptors = [os.dup(0) for _ in range(1024)]
    try:
        with LiveToken() as token:
            while descriptors:
                os.close(descriptors.pop())
            with Client(token.port, timeout=PATIENCE) as client:  # pyserial itself needs a low descriptor
                assert client.press() == token.oracle()["last_code"]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_port_is_valid_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with LiveToken("port") as token:
        monkeypatch.chdir("/")
        assert token.port == str(tmp_path / "port")
        token.unplug()
        assert list(tmp_path.iterdir()) == []


def test_a_port_that_cannot_be_made_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        LiveToken(str(tmp_path / "nowhere" / "port"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_token_follows_the_hosts_clock_that_a_test_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    host = 0
    monkeypatch.setattr(live_token, "now_ms", lambda: host)
    with LiveToken(profile="c200", key=SEED) as token:
        ahead = token.oracle()["time_ms"]  # the time by which calls have advanced the token
        for date in (2_000_000_000, 1_000_000_020, 1_000_003_660):
            host = date * 1000
            assert token.oracle()["time_ms"] == pytest.approx(host + ahead, abs=1000)
            code, clock = token.press(), token.oracle()["clock_ms"]
            assert code == totp(SEED, clock // 1000, period=60)
            ahead += token.oracle()["time_ms"] - host - ahead
        assert ahead < 5_000, "the display was dark before each press"
        assert abs(token.oracle()["error_ms"]) < 10, "the jumps of the clock must not age the token"
    with LiveToken(now=5_000_000) as token:
        assert token.oracle()["time_ms"] < 6_000_000


OTHER_PROJECT = """\
import asyncio, os, time
from pathlib import Path
import freezegun, pytest, serial
from token_sim.client import Client

@pytest.mark.token_sim(profile="c100", digits=8)
def test_login(token_sim, worker_id):
    assert len(token_sim.press()) == 8 and worker_id == "gw0"

def read(port):
    with serial.Serial(port, timeout=20) as line:
        line.write(b"DISP?\\r")
        return line.read_until(b"OK")

def test_the_fake_file_system_is_first(fs, token_sim, token_sim_session):
    assert token_sim.press() in read(token_sim.port).decode()
    assert not os.path.exists(token_sim.port) and not os.path.exists("/proc")
    token_sim.unplug()
    token_sim.plug()
    assert read(token_sim.port) and token_sim_session.press()
    fs.create_file("/etc/mine")
    assert Path("/etc/mine").exists()

def test_the_fake_file_system_is_last(token_sim_factory, fs):
    token = token_sim_factory("yubikey")
    assert token.press() and b"OK" in read(token.port)

@freezegun.freeze_time("2020-02-02 02:02:02")
@pytest.mark.token_sim("c200", key="3132333435363738393031323334353637383930")
def test_frozen_time(token_sim, token_sim_factory):
    for token in (token_sim, token_sim_factory()):
        assert 0 <= token.oracle()["time_ms"] / 1000 - time.time() < 2
    with Client(token.port) as client:  # the loop's clock is not frozen
        assert client.press()
    with freezegun.freeze_time("2030-03-03", tick=True):
        assert 0 <= token_sim.oracle()["time_ms"] / 1000 - time.time() < 2

async def test_asyncio(token_sim):
    with serial.Serial(token_sim.port, timeout=0) as line:
        readable = asyncio.Event()
        asyncio.get_running_loop().add_reader(line.fileno(), readable.set)
        line.write(b"PRESS\\r")
        await asyncio.wait_for(readable.wait(), 20)
        asyncio.get_running_loop().remove_reader(line.fileno())
    assert token_sim.press()

def test_the_session_has_one_token(token_sim_session, token_sim_session_factory):
    assert token_sim_session.oracle()["counter"] == 1
    assert token_sim_session_factory("c200").press()
"""


def test_another_project_can_use_the_fixtures_beside_other_plugins(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(OTHER_PROJECT)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\nfilterwarnings = error\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", "-n", "1", "."]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env["PYTHONPATH"] = str(TREE)
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "6 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.bare
def test_importing_the_plugin_imports_no_other_package() -> None:
    code = "import pytest, sys; before = set(sys.modules); import token_sim.pytest_plugin; "
    code += "print(*sorted(m for m in set(sys.modules) - before if not m.startswith('token_sim')))"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"
