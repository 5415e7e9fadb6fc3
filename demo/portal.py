"""The portal to look at: `make portal`, and a browser. ARGS=9000 for another port than 8443.

Nothing of the host is touched, and no root is needed: the store is a temporary folder, the port is on loopback, and the
password is one that is made up, where a real portal asks PAM. A simulated token waits to be put into use.
"""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pam_totp import audit
from pam_totp.record import HotpToken
from pam_totp.store.file import FileStore
from pam_totp.web import server
from pam_totp.web.app import create_app
from pam_totp.web.portal import Config
from tests.demo import Token
from tests.site import ME, TREE, Site

PORT = 8443
PASSWORD = "correct horse"


class MadeUp:
    """Takes one password, for one user."""

    def right(self, user: str, password: str) -> bool:
        return (user, password) == (ME, PASSWORD)


def handed_out(site: Site) -> tuple[str, Token]:
    """A token fresh from the factory, plugged in; in the user's record, and not in use yet. Its serial number comes
    with it."""
    made = site.folder / "factory"
    factory = [sys.executable, "-m", "token_sim.cli", "factory", "--count", "1", "--out", made]
    subprocess.run(factory, cwd=TREE, check=True, stdout=subprocess.DEVNULL)
    serial, seed, _, _, counter = next(csv.reader((made / "seeds.csv").read_text().splitlines()))[:5]
    key, now = bytes.fromhex(seed), int(time.time())
    site.enrol(
        HotpToken(name="key ring", secret=key, created=now, counter=int(counter), serial=serial, confirmed=False)
    )
    return serial, Token(made / f"{serial}.token", site.folder / "token")


def say(site: Site, serial: str, token: Token, address: object) -> None:
    print(
        f"The portal is at http://{address}/ until you press Ctrl-C,\nand all that it knows is gone then.\n\n"
        f"   user name     {ME}\n"
        f"   password      {PASSWORD}\n\n"
        f"Add a phone: scan the code. Or add a hardware token, with the serial number\n"
        f"{serial}; this presses its button twice, here and whenever you are asked\n"
        f"for its codes:\n\n"
        f"   {sys.executable} -m token_sim.cli press \\\n"
        f"      --port {token.port} -n 2\n\n"
        f"The store is {site.store}; what is decided follows.\n",
        flush=True,
    )


def main(port: int) -> None:
    for number in server.ENDING:  # from the first moment: the folder is to go whenever it ends
        signal.signal(number, server.end)
    with tempfile.TemporaryDirectory(prefix="pam_totp-portal-") as folder:
        site = Site(Path(folder))
        serial, token = handed_out(site)
        address = server.Address("127.0.0.1", port)
        config = Config(
            store=FileStore(str(site.store)),
            passwords=MadeUp(),
            issuer="trying out",
            tls=False,
            sink=audit.to_stderr,
            hosts=("127.0.0.1", "localhost"),
        )
        try:
            server.serve(create_app(config), address, proxy=None, ready=lambda at: say(site, serial, token, at))
        except OSError as e:
            another = port + 1 if 1024 <= port < 65535 else PORT + 1  # below 1024 they are root's
            sys.exit(f"{address}: {(e.strerror or str(e)).lower()}; try another port: make portal ARGS={another}")
        finally:
            token.unplug()


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else str(PORT)
    if not (wanted.isascii() and wanted.isdigit() and int(wanted) < 1 << 16):
        sys.exit(f"{wanted} is not a port: make portal ARGS=9000")
    main(int(wanted))
