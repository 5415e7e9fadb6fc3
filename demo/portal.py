"""A portal with a temporary store, for a browser: `make portal`. The port is 8443; ARGS=9000 selects port 9000.

- The store is a temporary folder, and the port is on loopback. The portal leaves the host unchanged, and does not
  require root.
- The password is the constant `PASSWORD`. An installed portal validates passwords through PAM.
- The user has a ticket for a phone, and can activate a simulated token instead.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from demo.scene import TOKEN_SIM, USER, Made, PluggedToken, Scene, make_token, plugged_in
from pam_totp.core.record import DAY, HotpToken, UserRecord
from pam_totp.operations import audit_log
from pam_totp.operations.tickets import TICKET_DAYS, issue_ticket, new_phone
from pam_totp.store.file import FileStore
from pam_totp.web import server
from pam_totp.web.app import create_app
from pam_totp.web.portal import Config

PORT = 8443
PASSWORD = "correct horse"


class OnePassword:
    """A password check that accepts one user with one password."""

    def verify(self, user: str, password: str, delay: Callable[[float], None]) -> bool:
        return (user, password) == (USER, PASSWORD)


def hand_out(made: Made, store: FileStore) -> str:
    """Add the token, unconfirmed, and a ticket for a phone to the user's record. Return the ticket."""
    now = int(time.time())
    token = HotpToken(
        name="key ring",
        secret=bytes.fromhex(made.seed),
        created=now,
        counter=int(made.counter),
        serial=made.serial,
        confirmed=False,
    )

    def change(record: UserRecord) -> tuple[UserRecord, str]:
        return issue_ticket(record.with_token(token), new_phone(record, now), now + TICKET_DAYS * DAY)

    return store.update(USER, change, create=True)


def print_instructions(scene: Scene, serial: str, token: PluggedToken, ticket: str, address: object) -> None:
    print(
        f"The portal is at http://{address}/ until you press Ctrl-C.\nCtrl-C also deletes the store.\n\n"
        f"   user name     {USER}\n"
        f"   password      {PASSWORD}\n"
        f"   ticket        {ticket}\n\n"
        f'The ticket sets up a phone. Or activate the key fob "key ring": its serial\n'
        f"number is {serial}. Run this command when the portal asks for codes of\n"
        f"that key fob. The command presses the button twice:\n\n"
        f"   {TOKEN_SIM} press \\\n"
        f"      --port {token.port} -n 2\n\n"
        f"The store is {scene.store}. The audit log follows.\n",
        flush=True,
    )


def main(port: int) -> None:
    for number in server.ENDING_SIGNALS:  # before the folder is created, so that each signal removes the folder
        signal.signal(number, server.exit_on_signal)
    with tempfile.TemporaryDirectory(prefix="pam_totp-portal-") as folder:
        scene = Scene(Path(folder))
        store = FileStore(str(scene.store))
        made = make_token(scene.folder)
        ticket = hand_out(made, store)
        config = Config(
            store=store,
            passwords=OnePassword(),
            issuer="demonstration",
            tls=False,
            sink=audit_log.to_stderr,
            hosts=("127.0.0.1", "localhost"),
        )
        with plugged_in(made.file, scene.folder / "token") as token:
            ready = partial(print_instructions, scene, made.serial, token, ticket)
            serve(config, server.Address("127.0.0.1", port), ready)


def serve(config: Config, address: server.Address, ready: Callable[[object], None]) -> None:
    try:
        server.serve(create_app(config), address, proxy=None, ready=ready)
    except OSError as e:
        another = address.port + 1 if 1024 <= address.port < 65535 else PORT + 1  # ports below 1024 need root
        why = (e.strerror or str(e)).lower()
        sys.exit(f"{address} cannot be used: {why} (try another port: make portal ARGS={another})")


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else str(PORT)
    if not (wanted.isascii() and wanted.isdigit() and int(wanted) < 1 << 16):
        sys.exit(f"{wanted}: must be a port number (example: make portal ARGS=9000)")
    main(int(wanted))
