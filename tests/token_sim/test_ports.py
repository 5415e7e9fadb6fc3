"""Tests of all kinds of ports with real pyserial: sessions, second clients, invalid input, and unplugging."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import termios
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pexpect
import pytest
import serial

from tests.token_sim.tokens import NOON, SEED, image, new_token, no_descriptors_left, running, token_sim, wait_until
from token_sim.client import Client, PortError, Refused, Timeout
from token_sim.device.models import PROFILES
from token_sim.run.loop import Runner
from token_sim.run.simulation import Simulation
from token_sim.testing import inprocess
from token_sim.testing.live_token import LiveToken
from token_sim.wire.tcp import Tcp

pytestmark = pytest.mark.filterwarnings(
    "ignore:set(Daemon|Name):DeprecationWarning"
)  # pyserial calls the deprecated methods


@pytest.fixture
def fob(tmp_path: Path) -> Iterator[LiveToken]:
    with LiveToken(str(tmp_path / "port"), key=SEED) as token:
        yield token


def script(port: serial.Serial) -> bytes:
    """Send requests to `port`, and return the output up to the reply to `DISP?`."""
    port.timeout = 0.1
    port.write(b"*IDN?\r\nNONSENSE\rPRESS 60\n")
    received = b""
    while b"+OTP" not in received or not received.endswith(b"\r\n"):
        received += port.read(max(1, port.in_waiting))
    port.write(b"DISP?\r")
    while not received.endswith(b"text=755224\r\nOK\r\n"):
        received += port.read(max(1, port.in_waiting))
    return received


def test_the_same_requests_get_the_same_output_on_every_port(tmp_path: Path) -> None:
    received = {}
    for kind, options in (
        ("pty", ["--link", str(tmp_path / "port")]),
        ("socket", ["--tcp", "0"]),
        ("rfc2217", ["--rfc2217", "0"]),
    ):
        path = new_token(tmp_path / kind, "--serial", "SMGN00000001")
        with running(path, *options) as run, serial.serial_for_url(run.ports[0]) as port:
            received[kind] = script(port)
    simulation = Simulation.in_memory(image(), PROFILES["generic"], NOON)
    simulation.elapse(1000)
    url = inprocess.publish("same", simulation)
    with serial.serial_for_url(url) as port:
        received["token"] = script(port)
    inprocess.withdraw("same")
    assert received["pty"] == received["socket"] == received["rfc2217"] == received["token"]


def test_one_token_sends_its_events_to_all_its_ports(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    with running(path, "--link", tmp_path / "port", "--tcp", "0", "--rfc2217", "0") as run:
        clients = [Client(url, timeout=20) for url in run.ports]
        for client in clients:
            client.ask("DISP?")
        assert clients[0].press() == clients[1].wait_code() == clients[2].wait_code() == "755224"
        for client in clients:
            client.close()


def test_a_second_client_is_refused_with_a_message(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    with running(path, "--link", tmp_path / "port", "--tcp", "0", "--speed", "20") as run:
        for url in [*run.ports] * 3:
            with Client(url) as first:
                first.ask("DISP?")
                done = token_sim("press", "--port", url)
                assert (done.returncode, done.stdout) == (3, "")
                assert re.fullmatch(r"token-sim: .* another client uses the port\n", done.stderr)
                assert first.press()


def test_a_second_telnet_client_is_refused_and_disconnected(tmp_path: Path) -> None:
    with running(new_token(tmp_path / "fob"), "--rfc2217", "0") as run:
        host, port = run.ports[0].removeprefix("rfc2217://").split(":")
        with serial.serial_for_url(run.ports[0]) as first:
            with socket.create_connection((host, int(port)), 10) as second:
                assert second.makefile("rb").read() == b"ERR 8 IN-USE\r\n"
            assert first.is_open and script(first)


def test_tcp_ports_listen_on_loopback_only() -> None:
    for port in (Tcp(), Tcp(0, Simulation.in_memory(image(), PROFILES["generic"], NOON).device)):
        assert "://127.0.0.1:" in port.url()
        assert port._listener is not None and port._listener.getsockname()[0] == "127.0.0.1"
        port.close()


@pytest.mark.parametrize(
    "junk", [b"\xff\xfa\x2c\x05\xff\xf0", b"\xff\xf0", b"\xff\xfa\x2c\x03\x63\xff\xf0" * 9, b"\xff" * 999]
)
def test_invalid_telnet_closes_only_the_connection_of_its_client(junk: bytes, tmp_path: Path) -> None:
    simulation = Simulation.in_memory(image(), PROFILES["generic"], NOON)
    runner = Runner(simulation, [Tcp(0, simulation.device)])
    port = int(runner.ports[0][0].url().rpartition(":")[2])
    try:
        with socket.create_connection(("127.0.0.1", port)) as client:
            for _ in range(3):
                runner.step()
            client.sendall(junk)
            for _ in range(5):
                runner.step()
        for _ in range(3):
            runner.step()
        with socket.create_connection(("127.0.0.1", port)) as client:
            for _ in range(3):
                runner.step()
            client.sendall(b"DISP?\r")
            client.setblocking(False)
            received = b""

            def answered() -> bool:
                nonlocal received
                runner.step()
                with suppress(BlockingIOError):
                    received += client.recv(4096)
                return b"OK\r\n" in received

            wait_until(answered, "the next client is answered")
    finally:
        runner.close()


@contextmanager
def stepping(port: int) -> Iterator[tuple[socket.socket, Callable[[Callable[[], object], str], None], Runner]]:
    """Yield a client of TCP port `port`, a function that steps the loop until a condition is true, and the runner."""
    simulation = Simulation.in_memory(image(), PROFILES["c100"], NOON)
    simulation.elapse(1000)
    runner = Runner(simulation, [Tcp(port)], speed=20)

    def step_until(condition: Callable[[], object], what: str) -> None:
        def stepped() -> object:
            runner.step()
            return condition()

        wait_until(stepped, what)

    host, _, number = runner.ports[0][0].url().removeprefix("socket://").partition(":")
    try:
        with socket.create_connection((host, int(number))) as client:
            client.setblocking(False)
            yield client, step_until, runner
    finally:
        runner.close()


def received_by(client: socket.socket) -> Callable[[], bytes]:
    """Return a function that returns all input of the client so far, with `EOF` after the end of the connection."""
    data = bytearray()

    def read() -> bytes:
        with suppress(BlockingIOError):
            data.extend(client.recv(4096) or b"EOF")
        return bytes(data)

    return read


def test_a_client_that_ends_its_input_still_gets_the_code() -> None:
    with stepping(0) as (client, step_until, _):
        client.sendall(b"PRESS\r")
        client.shutdown(socket.SHUT_WR)
        read = received_by(client)
        step_until(lambda: read().endswith(b"EOF"), "the connection is closed")
        assert read().startswith(b"OK\r\n+OTP 755224\r\nEOF")


def test_a_new_client_replaces_a_client_that_has_ended_its_input() -> None:
    with stepping(0) as (client, step_until, runner):
        client.sendall(b"PRESS 60000\r")
        client.shutdown(socket.SHUT_WR)
        step_until(lambda: runner.simulation.device.is_busy, "the press has begun")
        with socket.create_connection(client.getpeername()) as second:
            second.setblocking(False)
            second.sendall(b"BATT?\r")
            answer = received_by(second)
            step_until(lambda: b"OK" in answer(), "the next client is answered")
            assert b"IN-USE" not in answer() and runner.simulation.device.is_busy


def test_a_tcp_port_survives_a_lack_of_descriptors() -> None:
    with stepping(0) as (client, step_until, runner), socket.socket() as second:
        client.sendall(b"DISP?\r")
        read = received_by(client)
        step_until(lambda: b"OK" in read(), "the first client is answered")
        with no_descriptors_left():
            second.connect(client.getpeername())
            runner.step()
            listener = runner.ports[0][0].descriptors()
            assert len(listener) == 1, "the loop must omit the listener from `poll`"
        refused = received_by(second)
        step_until(lambda: b"IN-USE" in refused(), "the second client is accepted, and refused")


def test_rfc_2217_has_modem_lines(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    with running(path, "--rfc2217", "0") as run, serial.serial_for_url(run.ports[0], timeout=0.1) as port:
        wait_until(lambda: port.cts and port.dsr and not port.cd, "the token has power and a dark display")
        port.write(b"PRESS\r")
        wait_until(lambda: port.read(100) is not None and port.cd, "the display is lit")
        port.baudrate, port.parity, port.rts = 115_200, serial.PARITY_EVEN, False


def test_the_terminal_is_raw_again_after_a_client_changed_it(fob: LiveToken) -> None:
    assert stat.S_ISLNK(Path(fob.port).lstat().st_mode)
    with serial.Serial(fob.port) as port:
        local = termios.tcgetattr(port.fileno())[3]
        assert not local & (termios.ECHO | termios.ICANON | termios.ISIG)
        settings = termios.tcgetattr(port.fileno())
        settings[3] |= termios.ECHO | termios.ICANON
        termios.tcsetattr(port.fileno(), termios.TCSANOW, settings)

    def raw() -> bool:
        with Path(fob.port).open("rb", buffering=0) as port:
            return not termios.tcgetattr(port)[3] & termios.ECHO

    wait_until(raw, "the terminal is raw again")
    with Client(fob.port) as client:
        assert client.press() == "755224"


EXCLUSIVE = """\
import fcntl, os, termios, time
path = input()
end = time.monotonic() + 30
for _ in range(3):
    while True:
        try:
            port = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.005)
    fcntl.ioctl(port, termios.TIOCEXCL)
    try:
        os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        print("not exclusive")
    except OSError:
        pass
    os.close(port)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: the test uses other accounts")
@pytest.mark.parametrize("account", [0, 65534])
def test_a_clients_exclusive_access_ends_with_the_client(account: int) -> None:
    with tempfile.TemporaryDirectory() as folder:  # other accounts cannot enter pytest's folder
        os.chmod(folder, 0o711)  # noqa: S103
        os.chown(folder, account, account)
        words = ["/usr/bin/python3", "-I", "-c", EXCLUSIVE]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, user=65534, group=65534, stdin=pipe, stdout=pipe, text=True) as client:
            os.setegid(account)
            os.seteuid(account)  # change all threads, because exclusive access has no effect on root
            try:
                with LiveToken(f"{folder}/port") as token:
                    os.chmod(token.port, 0o666)  # noqa: S103
                    assert client.communicate(f"{token.port}\n", timeout=60)[0] == ""
                    assert client.returncode == 0
                    assert Client(token.port, patience=20).press() == token.oracle()["last_code"]
            finally:
                os.seteuid(0)
                os.setegid(0)


@contextmanager
def forked(child: Callable[[], object]) -> Iterator[int]:
    """Yield the pid of a process that runs `child` and exits. Kill the process at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns: this process has threads
        process = os.fork()
    if process == 0:
        try:
            child()
        finally:
            os._exit(0)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_unplug_disconnects_clients_while_a_forked_process_runs(fob: LiveToken) -> None:
    with serial.Serial(fob.port, timeout=0.05) as port, forked(signal.pause):
        fob.unplug()
        with pytest.raises(serial.SerialException):
            for _ in range(100):
                port.read(1)


def test_a_forked_process_does_not_remove_the_port(fob: LiveToken) -> None:
    with forked(fob.close) as child:  # as in a test that forks without an exit: pytest's issue 12028
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert Client(fob.port).press() == "755224"


def test_unplug_removes_the_port_and_plug_restores_it(fob: LiveToken) -> None:
    path = fob.port
    with serial.Serial(path, timeout=0.05) as port:
        fob.unplug()
        with pytest.raises(serial.SerialException):
            for _ in range(100):
                port.read(1)
        assert not Path(path).exists()
        with pytest.raises(PortError, match="port not found"):
            Client(path)
    fob.plug()
    with Client(path) as client:
        assert client.press() == "755224"


def test_unplug_closes_a_tcp_port_and_plug_opens_the_same_port(tmp_path: Path) -> None:
    path = new_token(tmp_path / "fob")
    with running(path, "--tcp", "0") as run, Client(run.ports[0]) as client:
        assert client.press() == "755224"
        assert token_sim("unplug", path).returncode == 0
        with pytest.raises(PortError, match="disappeared"):
            client.ask("DISP?")
        done = token_sim("press", "--port", run.ports[0])
        assert done.returncode == 3
        assert token_sim("plug", path).returncode == 0
        assert Client(run.ports[0], patience=20).press() == "287082"


def test_a_client_with_patience_waits_until_the_token_is_plugged_in(fob: LiveToken) -> None:
    with Client(fob.port, patience=20) as client:
        assert client.press() == "755224"
        fob.unplug()
        with pytest.raises(PortError, match="disappeared"):
            client.press()
        fob.plug()
        assert client.press() == "287082"


def test_a_clients_error_names_the_missing_code_or_the_refusal(fob: LiveToken) -> None:
    with Client(fob.port, timeout=0.2) as client:
        with pytest.raises(Timeout, match=r"no code in 0.2 s"):
            client.wait_code()
        fob.fault("counter-limit")
        client.timeout = 20
        with pytest.raises(Refused, match="exhausted"):
            client.press()


def test_token_urls_run_on_virtual_time() -> None:
    simulation = Simulation.in_memory(image(), PROFILES["c100"], NOON)
    url = inprocess.publish("virtual", simulation)
    try:
        with Client(url, timeout=3600) as client:
            assert [client.press() for _ in range(5)] == ["755224", "287082", "359152", "969429", "338314"]
            with pytest.raises(PortError, match="another client uses the port"):
                Client(url)
            simulation.command({"do": "unplug"})
            with pytest.raises(PortError, match="disappeared"):
                client.press()
            with pytest.raises(PortError, match="port not found"):
                Client(url)
        simulation.command({"do": "plug"})
        with Client(url, timeout=3600) as client:
            assert client.press() == "254676"
        assert simulation.device.hardware.now - NOON > 150_000  # the display turned off five times
    finally:
        inprocess.withdraw("virtual")


def test_a_token_url_behaves_like_other_serial_ports() -> None:
    simulation = Simulation.in_memory(image(), PROFILES["c100"], NOON)
    simulation.elapse(1000)
    url = inprocess.publish("ordinary", simulation)
    try:
        port = serial.serial_for_url(url, timeout=3600)
        port.write(b"DISP?\r")
        assert (port.in_waiting > 0, port.out_waiting) == (True, 0)
        port.reset_input_buffer()
        assert port.in_waiting == 0, "the input was dropped"
        assert (port.cts, port.dsr, port.cd, port.ri) == (True, True, False, False)
        simulation.command({"do": "hold"})
        assert port.ri, "the button is pressed"
        with pytest.raises(OSError, match="no file descriptor"):
            port.fileno()
        port.close()
        with pytest.raises(serial.PortNotOpenError):
            port.write(b"DISP?\r")
    finally:
        inprocess.withdraw("ordinary")


def test_wait_code_returns_the_code_of_another_press(fob: LiveToken) -> None:
    with Client(fob.port) as client:
        client.ask("DISP?")
        pressed = fob.press()
        assert client.wait_code() == pressed == "755224"


def test_a_client_reads_the_codes_of_a_typing_token(tmp_path: Path) -> None:
    with (
        LiveToken(str(tmp_path / "port"), profile="yubikey", key=SEED, speed=20) as token,
        Client(token.port) as client,
    ):
        assert [client.press(), client.press()] == ["755224", "287082"]


def test_a_shell_can_press_the_button(fob: LiveToken) -> None:
    def has_counter(counter: int) -> object:
        return fob.oracle()["counter"] == counter

    for _ in range(3):
        shown = fob.oracle()["counter"]
        assert subprocess.run(["sh", "-c", f"echo PRESS > {fob.port}"], check=False, timeout=20).returncode == 0
        wait_until(partial(has_counter, shown + 1), "the press is counted")
        wait_until(lambda: fob.oracle()["state"] == "display", "the code is shown")
        fob.advance("1s")


def test_unread_output_is_dropped_before_the_next_client(fob: LiveToken) -> None:
    with serial.Serial(fob.port) as port:
        port.write(b"HELP\rhalf a li")
        wait_until(lambda: port.in_waiting > 50, "the answer has arrived")

    for _ in range(2):
        fob.oracle()  # wait for a step of the loop, which detects the end of the client
    descriptor = os.open(
        fob.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK
    )  # a raw descriptor, because pyserial would flush the input
    try:
        with pytest.raises(BlockingIOError):
            os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def test_pyserials_miniterm_can_press_and_read(fob: LiveToken) -> None:
    with pexpect.spawn(sys.executable, ["-m", "serial.tools.miniterm", fob.port], timeout=20) as terminal:
        terminal.expect(r"Quit: Ctrl\+\]")
        terminal.send("ECHO ON\r")
        terminal.expect(r"OK\r+\n")
        terminal.send("PRESS\r")
        terminal.expect(r"PRESS\r+\nOK\r+\n")
        terminal.expect(r"\+OTP 755224\r+\n")
        terminal.send("DISQ\x7fP?\r")
        terminal.expect(r"text=755224\r+\nOK\r+\n")
        terminal.send("\x1d")
        terminal.expect(pexpect.EOF)


def test_token_sim_term_is_miniterm(fob: LiveToken) -> None:
    words = ["-m", "token_sim.cli", "term", "--port", fob.port]
    with pexpect.spawn(sys.executable, words, timeout=20) as terminal:
        terminal.expect(r"Quit: Ctrl\+\]")
        terminal.send("PRESS\r")
        terminal.expect(r"\+OTP 755224\r+\n")
        terminal.send("\x1d")
        terminal.expect(pexpect.EOF)
