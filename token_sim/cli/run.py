"""run: run a token on its ports, until a signal or for as long as a command runs.

Rules:
- `run` removes links and sockets, and saves the token file, at the end of a run (by a signal, the command or an error).
- A signal handler only records the signal.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from token_sim.cli.command_line import (
    DONE,
    PORT_VARIABLE,
    UNAVAILABLE,
    WRONG_USAGE,
    CommandError,
    Commands,
    add_command,
    add_control,
    number,
    print_result,
)
from token_sim.cli.terminal import drawing
from token_sim.extras import missing
from token_sim.run.wall_time import now_ms

if TYPE_CHECKING:
    from token_sim.run.loop import Runner
    from token_sim.run.simulation import Simulation
    from token_sim.wire.pty import Transport

ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MAX_SPEED = 1_000_000
MAX_PORT = 65_535


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "run",
        run,
        "run a token on a port, until Ctrl-C or for as long as a command runs",
        "run fob.token --link /tmp/fob",
        "run fob.token --tcp 4000 --rfc2217 4001",
        "run fob.token --speed 60 -- make test",
        "run fob.token --tui",
    )
    parser.add_argument("file", help="the token file")
    parser.add_argument("--link", metavar="PATH", help="a stable path for the pseudo-terminal")
    port = number(int, 0, MAX_PORT)
    parser.add_argument("--tcp", type=port, metavar="PORT", help="socket:// on loopback (0: any free port)")
    parser.add_argument("--rfc2217", type=port, metavar="PORT", help="rfc2217:// on loopback (0: any free port)")
    parser.add_argument("--speed", type=float, default=1.0, help="simulated seconds per real second (1)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the start value of noise and bit rot, for repeatable runs (0)"
    )
    parser.add_argument("--tui", action="store_true", help="show the token in the terminal")
    add_control(parser)
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} [-- COMMAND ...]"


class Signals:
    """The received signals. `end` is the last signal that ends the run. SIGUSR1 presses the button."""

    def __init__(self, runner: Runner) -> None:
        self.end: int | None = None
        self._runner = runner
        for ending in ENDING_SIGNALS:
            if signal.getsignal(ending) is not signal.SIG_IGN:  # keep ignoring the signals that nohup or `&` ignores
                signal.signal(ending, self._end)
        signal.signal(signal.SIGUSR1, self._press)

    def _end(self, number: int, _: object) -> None:
        self.end = number

    def _press(self, *_: object) -> None:
        self._runner.requested_presses += 1


def run(options: argparse.Namespace) -> int:
    from token_sim.run import control
    from token_sim.run.loop import Runner
    from token_sim.run.simulation import Simulation
    from token_sim.run.token_file import TokenFile, TokenFileError

    if not 0 < options.speed <= MAX_SPEED:
        raise CommandError(f"--speed must be more than 0 and at most {MAX_SPEED}", WRONG_USAGE)
    if options.tui and options.child:
        raise CommandError("--tui cannot be used with a command: both use the terminal", WRONG_USAGE)
    with ExitStack() as undo:
        try:
            file = TokenFile.open(options.file)
        except TokenFileError as error:
            raise CommandError(str(error)) from error
        undo.callback(file.close)
        simulation = Simulation.of_file(file, options.seed)
        simulation.elapse(max(0, now_ms() - file.hardware.now))  # advance the token by the time since the last run
        undo.callback(file.save)
        path = options.control or control.socket_path(options.file)
        try:
            owner = control.Control(path)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            what = f"the owner's socket {path} cannot be created: {why} (choose another --control)"
            raise CommandError(what, UNAVAILABLE) from error
        undo.callback(owner.close)
        ports: list[Transport] = []
        for port in _ports(options, simulation):
            ports.append(port)
            undo.callback(port.close)
        runner = Runner(simulation, ports, owner, options.speed)
        return _run_token(options, runner, path)


def _ports(options: argparse.Namespace, simulation: Simulation) -> list[Transport]:
    from token_sim.wire.pty import Pty

    ports: list[Transport] = []
    if options.link is not None or (options.tcp is None and options.rfc2217 is None):
        ports.append(Pty(options.link))
    if options.tcp is not None or options.rfc2217 is not None:
        from token_sim.wire.tcp import Tcp, need_rfc2217

        if options.tcp is not None:
            ports.append(Tcp(options.tcp))
        if options.rfc2217 is not None:
            try:
                need_rfc2217()
            except ImportError:
                raise CommandError(missing("pyserial"), UNAVAILABLE) from None
            ports.append(Tcp(options.rfc2217, modem=simulation.device))
    return ports


def _run_token(options: argparse.Namespace, runner: Runner, control: str) -> int:
    signals = Signals(runner)
    urls = [transport.url() for transport, _, _ in runner.ports]
    if options.tui:
        return _show(runner, signals, urls)
    if options.child:
        return _run_child(options.child, runner, signals, urls[0], control)
    serial = runner.simulation.device.serial
    document = {"serial": serial, "ports": urls, "control": os.path.abspath(control)}
    print_result(options, document, f"{serial} on {', '.join(urls)}")
    while signals.end is None:
        runner.step()
    return 128 + signals.end


def _run_child(command: list[str], runner: Runner, signals: Signals, url: str, control: str) -> int:
    """Run the token while `command` runs, and pass signals on to the command. Return the command's exit status."""
    environment = {**os.environ, PORT_VARIABLE: url, "TOKEN_SIM_CONTROL": os.path.abspath(control)}
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        why = (error.strerror or "").lower()
        raise CommandError(f"{command[0]} cannot be run: {why}", UNAVAILABLE) from error
    try:
        while (status := child.poll()) is None:
            runner.step()
            if signals.end is not None:
                # The terminal also sends SIGINT to the command at Ctrl-C, because the command is in the same process
                # group.
                if signals.end != signal.SIGINT or not sys.stdin.isatty():
                    child.send_signal(signals.end)
                signals.end = None
    except BaseException:
        child.kill()
        child.wait()
        raise
    return status if status >= 0 else 128 - status


def _show(runner: Runner, signals: Signals, urls: list[str]) -> int:
    try:
        from token_sim.cli.tui import TokenApp
    except ImportError:
        raise CommandError(missing("textual"), UNAVAILABLE) from None
    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # textual reads standard input and draws on standard error
        raise CommandError("--tui requires a terminal (otherwise use --link PATH and 'token-sim press')", UNAVAILABLE)
    with drawing() as terminal:
        app = TokenApp(runner, urls, lambda: signals.end is not None or terminal.is_gone)
        app.run()
    if signals.end is not None or terminal.is_gone:
        return 128 + (signals.end or signal.SIGHUP)
    if app.return_code:
        raise CommandError("the interface has failed (the error is above)")
    return DONE
