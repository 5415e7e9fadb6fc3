"""The owner's requests to a token: over the control socket if the token is running, otherwise to the token's file."""

from __future__ import annotations

import argparse
from typing import Any

from token_sim.cli.command_line import UNAVAILABLE, CommandError
from token_sim.run.wall_time import now_ms


def ask(options: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request, and return the reply. Raise CommandError if the request is refused or needs a running token."""
    from token_sim.run import control

    path = options.control or control.socket_path(options.file)
    try:
        return control.ask(path, request)
    except control.NotRunning:
        return _ask_file(options.file, request)
    except ValueError as error:
        raise CommandError(str(error)) from error


def _ask_file(path: str, request: dict[str, Any]) -> dict[str, Any]:
    from token_sim.device.faults import PERMANENT
    from token_sim.run import simulation, token_file

    try:
        token = token_file.TokenFile.open(path)
    except token_file.TokenFileError as error:
        raise CommandError(str(error)) from error
    try:
        is_lasting = request["do"] != "fault" or request["name"] in PERMANENT
        if request["do"] not in simulation.AT_REST or not is_lasting:
            raise CommandError(f"the token {path} is not running (start it with 'token-sim run {path}')", UNAVAILABLE)
        simulated = simulation.Simulation.of_file(token)
        simulated.elapse(max(0, now_ms() - token.hardware.now))  # advance the token by the time since the last run
        reply = simulated.command(request)
        token.save()
        return reply
    except ValueError as error:
        raise CommandError(str(error)) from error
    finally:
        token.close()
