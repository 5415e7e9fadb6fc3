"""`token-sim run`: a token alive on its ports, alone, under a command, or in the terminal.

The law: whatever ends it (a signal, the command, an error), links and sockets are gone and the file is whole; a
signal's handler only leaves a note.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from token_sim.cli.commands import DONE, OUT_OF_REACH, USAGE, Trouble, say
from token_sim.extras import missing
from token_sim.run.wall_time import now_ms

if TYPE_CHECKING:
    from token_sim.run.loop import Runner
    from token_sim.run.simulation import Bench
    from token_sim.wire.pty import Transport

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Notes:
    """What signals have asked for."""

    def __init__(self, runner: Runner) -> None:
        self.stop: int | None = None
        self._runner = runner
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:  # started with nohup, or in a script's background
                signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._press)

    def _stop(self, number: int, _: object) -> None:
        self.stop = number

    def _press(self, *_: object) -> None:
        self._runner.presses += 1


def run(options: argparse.Namespace) -> int:
    from token_sim.run import control
    from token_sim.run.loop import Runner
    from token_sim.run.simulation import Bench
    from token_sim.run.token_file import TokenFile, TokenFileError

    if not 0 < options.speed <= 1_000_000:
        raise Trouble("a speed is more than 0 and at most 1000000", USAGE)
    if options.tui and options.child:
        raise Trouble("--tui and a command both want the terminal (leave out one)", USAGE)
    with ExitStack() as undo:
        try:
            file = TokenFile.open(options.file)
        except TokenFileError as error:
            raise Trouble(str(error)) from error
        undo.callback(file.close)
        bench = Bench.of_file(file, options.seed)
        bench.elapse(max(0, now_ms() - file.body.now))  # the time in the drawer
        undo.callback(file.save)
        path = options.control or control.socket_path(options.file)
        try:
            owner = control.Control(path)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise Trouble(f"the owner's socket {path} cannot be made: {why} (see --control)", OUT_OF_REACH) from error
        undo.callback(owner.close)
        ports: list[Transport] = []
        for port in _ports(options, bench):
            ports.append(port)
            undo.callback(port.close)
        runner = Runner(bench, ports, owner, options.speed)
        return _live(options, runner, path)


def _ports(options: argparse.Namespace, bench: Bench) -> list[Transport]:
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
                raise Trouble(missing("pyserial"), OUT_OF_REACH) from None
            ports.append(Tcp(options.rfc2217, modem=bench.device))
    return ports


def _live(options: argparse.Namespace, runner: Runner, control: str) -> int:
    notes = Notes(runner)
    urls = [transport.url() for transport, _, _ in runner.ports]
    if options.tui:
        return _show(runner, notes, urls)
    if options.child:
        return _under(options.child, runner, notes, urls[0], control)
    serial = runner.bench.device.serial
    say(options, {"serial": serial, "ports": urls, "control": control}, f"{serial} on {', '.join(urls)}")
    while notes.stop is None:
        runner.step()
    return 128 + notes.stop


def _under(command: list[str], runner: Runner, notes: Notes, url: str, control: str) -> int:
    """Run `command` while the token lives, pass signals on to it, and its exit status back."""
    environment = {**os.environ, "TOKEN_SIM_PORT": url, "TOKEN_SIM_CONTROL": control}
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise Trouble(f"{command[0]} cannot be run: {(error.strerror or '').lower()}", OUT_OF_REACH) from error
    try:
        while (status := child.poll()) is None:
            runner.step()
            if notes.stop is not None:
                # a terminal's Ctrl-C has reached the command itself: it is in our group
                if notes.stop != signal.SIGINT or not sys.stdin.isatty():
                    child.send_signal(notes.stop)
                notes.stop = None
    except BaseException:
        child.kill()
        child.wait()
        raise
    return status if status >= 0 else 128 - status


def _show(runner: Runner, notes: Notes, urls: list[str]) -> int:
    try:
        from token_sim.cli.tui import TokenApp
    except ImportError:
        raise Trouble(missing("textual"), OUT_OF_REACH) from None
    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # it reads the one and draws on the other
        raise Trouble("--tui needs a terminal (without one: --link PATH, and 'token-sim press')", OUT_OF_REACH)
    TokenApp(runner, urls, lambda: notes.stop is not None).run()
    return DONE if notes.stop is None else 128 + notes.stop
