"""FreeRADIUS as a member of a fleet, with a configuration that serves pam_totp alone.

Rules:
1. All files are in FOLDER, which root owns. FreeRADIUS reads the files, and can change only its credentials in tls/.
   So a compromised FreeRADIUS cannot redirect root or `pam-totp` to other files.
2. `install` generates `radiusd.conf` from the authorities alone, and replaces it. The administrator edits the other
   files: the commands write them once, or add text at the end.
3. The configuration in the package of FreeRADIUS is unchanged. A drop-in of systemd selects FOLDER.
4. A client has a secret of 128 random bits, and must send a Message-Authenticator. TLS replaces both.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
from collections.abc import Mapping, Sequence
from importlib.resources import files
from ipaddress import ip_network
from typing import NamedTuple

from pam_totp.core.address import host_and_port

FOLDER = "/etc/pam_totp-radius"
ACCOUNT = "freerad"
PROGRAM = "/usr/sbin/freeradius"
MODULES = tuple(f"/usr/lib/freeradius/rlm_{name}.so" for name in ("rest", "always", "expr"))
PACKAGES = "freeradius freeradius-rest"
CONFIGURATION, CLIENTS, LISTEN, RADSEC = "radiusd.conf", "clients.conf", "listen.conf", "radsec.conf"
DICTIONARY = "dictionary"
MEMBER, TLS = "member.toml", "tls"
SECRET_BYTES = 16
LEAST_SECRET = 16  # characters
CLIENT_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
UNITS = "/etc/systemd/system"
DROP_IN = f"{UNITS}/freeradius.service.d/10-pam_totp.conf"
TIMER = "pam_totp-radius.timer"
CHECK_TIME = 30.0  # seconds
_REST = """\
	rest pam_totp_{number} {{
		connect_timeout = 1.0
		http_negotiation = '1.1'
		tls {{
			ca_info_file = "${{confdir}}/tls/ca.pem"
			certificate_file = "${{confdir}}/tls/certificate.pem"
			private_key_file = "${{confdir}}/tls/key.pem"
			check_cert = yes
			check_cert_cn = yes
		}}
		authenticate {{
			uri = "https://{authority}/v1/radius"
			method = 'post'
			body = 'json'
			data = "{{{data}}}"
			force_to = 'json'
			timeout = 2.0
			tls = ${{..tls}}
		}}
		pool {{
			start = 0
			min = 0
			max = ${{thread[pool].max_servers}}
			spare = 16
			uses = 0
			retry_delay = 1
			lifetime = 0
			idle_timeout = 240
		}}
	}}
"""
# The body of a question, as `authority.radius.RadiusQuestion` reads it. A value in hexadecimal needs no escapes.
_DATA = {
    "id": "%{control:Tmp-String-0}",
    "user": "%{hex:&User-Name}",
    "service": "%{hex:&control:Tmp-String-1}",
    "answer": "%{hex:&User-Password}",
    "rhost": "%{hex:&Calling-Station-Id}",
    "state": "%{hex:&State}",
    "challenge": "%{control:Tmp-String-2}",
}
_LISTEN = """\
# The addresses of FreeRADIUS. You can edit this file: 'pam-totp member radius install' writes the file only once.
listen {
	type = auth
	ipaddr = *
	port = 1812
	clients = pam_totp
}
listen {
	type = auth
	ipv6addr = ::
	port = 1812
	clients = pam_totp
}
"""
_CLIENTS = """\
# The clients of FreeRADIUS, with their secrets. 'pam-totp member radius client NAME ADDRESS' adds a client at the end.
# pam_totp_service is the name of the service at the authorities, and in the log. With pam_totp_challenge = no, a
# client gets no second prompt.
"""
_CLIENT = """
client {name} {{
	ipaddr = {address}
	proto = udp
	secret = {secret}
	require_message_authenticator = yes
	pam_totp_service = {service}
{more}}}
"""
_RADSEC = """\
# RadSec: RADIUS over TLS, for clients and proxies that support it. Remove the first '#' of each line below, name the
# certificates, and put each client into the list. A client's secret is always radsec (RFC 6614 2.3), because the
# certificate authenticates the client. ca_file must be a CA that signs for these clients only.
#clients pam_totp_radsec {
#	client branch {
#		ipaddr = 192.0.2.0/24
#		proto = tls
#		secret = radsec
#		pam_totp_service = radsec
#		limit {
#			max_connections = 16
#			lifetime = 0
#			idle_timeout = 300
#		}
#	}
#}
#listen {
#	type = auth
#	proto = tcp
#	ipaddr = *
#	port = 2083
#	virtual_server = pam_totp
#	clients = pam_totp_radsec
#	limit {
#		max_connections = 64
#		lifetime = 0
#		idle_timeout = 300
#	}
#	tls {
#		certificate_file = ${confdir}/radsec.pem
#		private_key_file = ${confdir}/radsec.key
#		ca_file = ${confdir}/radsec-ca.pem
#		require_client_cert = yes
#		tls_min_version = "1.2"
#		tls_max_version = "1.3"
#	}
#}
"""
_DICTIONARY = "$INCLUDE /usr/share/freeradius/dictionary\n"
_SERVICE_UNIT = """\
# Written by pam-totp member radius install.
[Service]
ExecStartPre=
ExecStartPre={program} -d {folder} -C -l stdout
ExecStart=
ExecStart={program} -f -d {folder} -l stdout
ExecReload=
ExecReload={program} -d {folder} -C -l stdout
ExecReload=/bin/kill -HUP $MAINPID
"""
_RENEWAL = """\
# Written by pam-totp member radius install.
[Unit]
Description=New certificate of FreeRADIUS for the authorities of pam_totp
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
ExecStart={command} join --renew --config {folder}/member.toml
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={folder}/tls
ProtectHome=yes
PrivateTmp=yes
"""
_TIMER = """\
# Written by pam-totp member radius install.
[Unit]
Description=New certificate of FreeRADIUS for the authorities of pam_totp, each week

[Timer]
OnCalendar=weekly
RandomizedDelaySec=1d
Persistent=yes

[Install]
WantedBy=timers.target
"""


class Client(NamedTuple):
    """A client in the configuration: its name and its settings."""

    name: str
    settings: Mapping[str, str]

    @property
    def address(self) -> str | None:
        """Return the address or network of the client, or None."""
        return self.settings.get("ipaddr")


def missing() -> list[str]:
    """Return the files of FreeRADIUS that are not installed."""
    return [path for path in (PROGRAM, *MODULES) if not os.path.exists(path)]


def configuration(authorities: Sequence[str], folder: str = FOLDER) -> str:
    """Return the text of `radiusd.conf`. `authorities` and `folder` must not contain quotes or dollar signs."""
    assert all(host_and_port(authority) is not None for authority in authorities)
    data = '\\"v\\":1' + "".join(f',\\"{name}\\":\\"{value}\\"' for name, value in _DATA.items())
    modules = "".join(
        _REST.format(number=number, authority=authority, data=data) for number, authority in enumerate(authorities, 1)
    )
    names = "".join(f"\t\tpam_totp_{number}\n" for number in range(1, len(authorities) + 1))
    text = files("pam_totp.system").joinpath(CONFIGURATION).read_text(encoding="utf-8")
    return text.replace("@FOLDER@", folder).replace("@MODULES@", modules).replace("@NAMES@", names)


def new_client(name: str, address: str, service: str, *, has_challenge: bool = True) -> tuple[str, str]:
    """Return the text for a new client, and the secret. `address` may be a network. Raise ValueError."""
    for value in (name, service):
        if CLIENT_NAME.fullmatch(value) is None:
            raise ValueError(f"{value!r}: must be 1 to 64 of a-z, 0-9, '.', '_', '-', and begin with a-z or 0-9")
    network = ip_network(address)
    secret = secrets.token_hex(SECRET_BYTES)
    more = "" if has_challenge else "\tpam_totp_challenge = no\n"
    return _CLIENT.format(name=name, address=network, secret=secret, service=service, more=more), secret


def clients(text: str) -> list[Client]:
    """Return the clients in the text of a configuration, in order. A line has one item, as FreeRADIUS requires."""
    found: list[tuple[str, dict[str, str]]] = []
    depth, inside = 0, 0  # of blocks; `inside` is the depth of the settings of the last client
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["client"] and words[-1] == "{" and len(words) == 3:
            found.append((words[1], {}))
            inside = depth + 1
        if words[-1:] == ["{"]:
            depth += 1
        elif words == ["}"]:
            depth -= 1
        elif words[1:2] == ["="] and found and depth == inside:
            found[-1][1][words[0]] = " ".join(words[2:]).strip("\"'")
    return [Client(name, settings) for name, settings in found]


def is_safe(client: Client) -> bool:
    """Return True if no attacker on the network can forge a request of `client`, or a reply to `client`.

    TLS protects both, so the secret of a client with TLS may be public.
    """
    if client.settings.get("proto") == "tls":
        return True
    has_secret = len(client.settings.get("secret", "")) >= LEAST_SECRET
    return has_secret and client.settings.get("require_message_authenticator") == "yes"


def once(folder: str) -> dict[str, str]:
    """Return the texts of the files that `install` writes only once, by path."""
    texts = {CLIENTS: _CLIENTS, LISTEN: _LISTEN, RADSEC: _RADSEC, DICTIONARY: _DICTIONARY}
    return {os.path.join(folder, name): text for name, text in texts.items()}


def units(command: str, folder: str = FOLDER) -> dict[str, str]:
    """Return the texts of the files of systemd, by path. `command` is the path of `pam-totp`."""
    return {
        DROP_IN: _SERVICE_UNIT.format(program=PROGRAM, folder=folder),
        f"{UNITS}/pam_totp-radius.service": _RENEWAL.format(command=command, folder=folder),
        f"{UNITS}/{TIMER}": _TIMER,
    }


def problem(folder: str) -> str | None:
    """Return the reason why FreeRADIUS refuses the configuration in `folder`, or None if FreeRADIUS accepts it.

    FreeRADIUS runs with its own account, as under systemd.
    """
    command = [PROGRAM, "-C", "-d", folder, "-l", "stdout"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",  # the output repeats lines of the files
            timeout=CHECK_TIME,
            check=False,
            cwd="/",
            user=ACCOUNT,
            group=ACCOUNT,
            extra_groups=(),
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"{PROGRAM}: {getattr(e, 'strerror', None) or 'no result in time'}"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"{PROGRAM}: status {done.returncode}"


def version() -> tuple[int, ...] | None:
    """Return the version that FreeRADIUS prints, or None if FreeRADIUS prints no version."""
    try:
        done = subprocess.run([PROGRAM, "-v"], capture_output=True, text=True, timeout=CHECK_TIME, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"FreeRADIUS Version (\d+)\.(\d+)\.(\d+)", done.stdout)
    return None if found is None else tuple(map(int, found.groups()))
