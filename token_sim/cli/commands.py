"""What the commands do, but for `run`.

The law: options in, lines out, Trouble for a person to read; what a command needs beyond the standard library is
imported by it, when it runs.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from token_sim.run.wall_time import now_ms

DONE, REFUSED, USAGE, OUT_OF_REACH = range(4)


class Trouble(Exception):
    """A message for the person, and the exit status."""

    def __init__(self, message: str, status: int = REFUSED) -> None:
        super().__init__(message)
        self.status = status


def say(options: argparse.Namespace, document: dict[str, Any], text: str) -> None:
    print(json.dumps(document) if options.json else text, flush=True)


# --- making tokens


def new(options: argparse.Namespace) -> None:
    from token_sim.device import models
    from token_sim.factory import manufacture
    from token_sim.run import token_file

    profile = models.PROFILES[options.profile]
    if os.path.lexists(options.file):
        raise Trouble(f"{options.file} exists already (a token is made once; choose another name)")
    if options.slot2 and profile.slots < 2:
        raise Trouble(f"a {profile.name} token has one slot (only --profile yubikey has two)", USAGE)
    key = _seed_from_stdin() if options.secret_stdin else None
    number = int.from_bytes(os.urandom(4), "big") % 10**8
    serial = options.serial or manufacture.serial_number(profile, number)
    try:
        slot = manufacture.new_slot(profile, **_slot(options), key=key)
        made = [manufacture.make(profile, serial, slot, options.counter)]
        if options.slot2:
            made.append(manufacture.make(profile, serial, manufacture.new_slot(profile, **_slot(options)), 0))
        text = manufacture.token_text(profile, made, now_ms())
    except ValueError as error:
        raise Trouble(str(error), USAGE) from error
    token_file.write_durably(options.file, text.encode())
    for one in made:
        known = one.slot.key == key
        say(options, one.to_doc(with_seed=not known), one.serial if known else one.csv())


def factory(options: argparse.Namespace) -> None:
    from token_sim.device import models
    from token_sim.factory import (
        manufacture,
        seed_files,
    )
    from token_sim.run import token_file

    profile = models.PROFILES[options.profile]
    last = options.first + options.count - 1
    if options.count < 1 or options.first < 0 or last >= 10**8:
        raise Trouble("a batch has 1 token or more, and serial numbers of up to 8 digits", USAGE)
    key = _hex_key_from_stdin() if options.key_stdin else None
    try:
        tokens = manufacture.batch(profile, options.count, options.first, **_slot(options))
        forms = list(dict.fromkeys(options.seeds or ["csv"]))
        written = {name: data for form in forms for name, data in SEED_FILES[form](tokens, key).items()}
        paths = manufacture.write_batch(options.out, profile, tokens, now_ms())
    except ValueError as error:
        raise Trouble(str(error), USAGE) from error
    except FileExistsError as error:
        raise Trouble(f"{error.filename} exists already (choose another --first or --out)") from error
    except seed_files.MissingPskc as error:
        raise Trouble(str(error), OUT_OF_REACH) from error
    for name, data in written.items():
        token_file.write_durably(os.path.join(options.out, name), data)
    names = [os.path.join(options.out, name) for name in written]
    say(options, {"tokens": paths, "seeds": names}, "\n".join([*paths, *names]))


def _csv(tokens: list[Any], _: bytes | None) -> dict[str, bytes]:
    from token_sim.factory import manufacture

    return {"seeds.csv": manufacture.csv_seeds(tokens).encode()}


def _pskc(tokens: list[Any], _: bytes | None) -> dict[str, bytes]:
    from token_sim.factory import seed_files

    return {"seeds.pskc.xml": seed_files.pskc_seeds(tokens)}


def _pskc_aes(tokens: list[Any], given: bytes | None) -> dict[str, bytes]:
    """A transport key that was given is not written down; one that we make is, beside the file it opens."""
    from token_sim.factory import seed_files

    key = given or seed_files.transport_key()
    files = {"seeds.aes.pskc.xml": seed_files.pskc_seeds(tokens, key)}
    return files if given else {**files, "transport-key.txt": key.hex().encode() + b"\n"}


SEED_FILES: dict[str, Callable[[list[Any], bytes | None], dict[str, bytes]]] = {
    "csv": _csv,
    "pskc": _pskc,
    "pskc-aes": _pskc_aes,
}


def _slot(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("kind", "digits", "algorithm", "period")}


def _seed_from_stdin() -> bytes:
    text = sys.stdin.readline().strip().replace(" ", "")
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass
    try:
        return base64.b32decode(text.upper().rstrip("=") + "=" * (-len(text.rstrip("=")) % 8))
    except binascii.Error:
        raise Trouble("the seed on standard input is neither hex nor base32", USAGE) from None


def _hex_key_from_stdin() -> bytes:
    try:
        key = bytes.fromhex(sys.stdin.readline().strip())
    except ValueError:
        key = b""
    if len(key) != 16:
        raise Trouble("the transport key on standard input is not 32 hex digits", USAGE)
    return key


# --- at the port


def press(options: argparse.Namespace) -> None:
    if options.ms is not None and not 1 <= options.ms <= 60_000:
        raise Trouble("a press lasts 1 to 60000 ms", USAGE)
    _codes(options, lambda client: client.press(options.ms))


def watch(options: argparse.Namespace) -> None:
    _codes(options, lambda client: client.wait_code())


def _codes(options: argparse.Namespace, one: Callable[[Any], str]) -> None:
    from token_sim.client import Client, ClientError, Refused
    from token_sim.device import seven_segment

    left = options.times
    try:
        with Client(options.port, options.timeout, options.wait) as client:
            while left is None or left > 0:
                code = one(client)
                drawn = "\n".join(seven_segment.small(seven_segment.light(code))) if options.lcd else ""
                say(options, {"code": code}, f"{drawn}\n{code}" if drawn else code)
                left = None if left is None else left - 1
    except Refused as error:
        raise Trouble(str(error)) from error
    except ClientError as error:
        raise Trouble(str(error), OUT_OF_REACH) from error


def term(options: argparse.Namespace) -> None:
    from token_sim.client import Client, ClientError

    try:
        Client(options.port).close()  # a clear message now, rather than miniterm's
    except ClientError as error:
        raise Trouble(str(error), OUT_OF_REACH) from error
    from serial.tools import miniterm

    sys.argv = ["miniterm", "--echo", options.port, "9600"]
    miniterm.main()


# --- the owner's


def advance(options: argparse.Namespace) -> None:
    from token_sim.run.wall_time import parse_span

    try:
        parse_span(options.by)
    except ValueError as error:
        raise Trouble(str(error), USAGE) from error
    request = {"do": "advance", "by": options.by, "temp": options.temp, "only_token": options.only_token}
    _tell(options, _ask(options, request))


def fault(options: argparse.Namespace) -> None:
    from token_sim.device.faults import WHAT

    if options.name is None:
        armed = _ask(options, {"do": "oracle"})["faults"]
        lines = (f"{'*' if name in armed else ' '} {name:<20} {what}" for name, what in WHAT.items())
        say(options, {"faults": armed, "known": {str(name): what for name, what in WHAT.items()}}, "\n".join(lines))
        return
    request = {"do": "clear" if options.clear else "fault", "name": options.name}
    if not options.clear:
        request |= {"times": options.times, "number": options.number}
    reply = _ask(options, request)
    say(options, reply, f"armed: {', '.join(reply['faults']) or 'nothing'}")


def copy(options: argparse.Namespace) -> None:
    """Snapshot and restore. The path is the caller's, and the running token may be in another folder."""
    reply = _ask(options, {"do": options.name, options.key: os.path.abspath(options.copy)})
    if options.name == "snapshot":
        say(options, reply, options.copy)
    else:
        _tell(options, reply)


def plain(options: argparse.Namespace) -> None:
    _tell(options, _ask(options, {"do": options.name}))


def _tell(options: argparse.Namespace, reply: dict[str, Any]) -> None:
    if options.json or reply:
        say(options, reply, "\n".join(f"{key}={'' if value is None else value}" for key, value in reply.items()))


def _ask(options: argparse.Namespace, request: dict[str, Any]) -> dict[str, Any]:
    """Ask the running token, or, where it makes sense, the one at rest in its file."""
    from token_sim.run import control

    path = options.control or control.socket_path(options.file)
    try:
        return control.ask(path, request)
    except control.NotRunning:
        pass
    except ValueError as error:
        raise Trouble(str(error)) from error
    return _at_rest(options.file, request)


def _at_rest(path: str, request: dict[str, Any]) -> dict[str, Any]:
    from token_sim.device.faults import LASTING
    from token_sim.run import (
        simulation,
        token_file,
    )

    try:
        token = token_file.TokenFile.open(path)
    except token_file.TokenFileError as error:
        raise Trouble(str(error)) from error
    try:
        lasting = request["do"] != "fault" or request["name"] in LASTING
        if request["do"] not in simulation.AT_REST or not lasting:
            raise Trouble(f"{path} is not running (start it with 'token-sim run {path}')", OUT_OF_REACH)
        table = simulation.Bench.of_file(token)
        table.elapse(max(0, now_ms() - token.body.now))  # the time in the drawer
        reply = table.command(request)
        token.save()
        return reply
    except ValueError as error:
        raise Trouble(str(error)) from error
    finally:
        token.close()
