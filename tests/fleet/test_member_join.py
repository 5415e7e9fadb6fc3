"""Tests of `pam-totp join`: the pin, the token, the files, the site file, and the renewal of the certificate."""

from __future__ import annotations

import configparser
import io
import json
import os
import ssl
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pam_totp.cli import main
from pam_totp.core.settings import MemberSettings, SettingsError, parse_site
from pam_totp.member.client import Client
from pam_totp.member.credentials import Credentials
from pam_totp.member.joining import DAY, JoinError, Validity, renew, validity
from pam_totp.member.renewal import look
from pam_totp.member.wire import JoinLine
from pam_totp.store import StoreError
from pam_totp.system import service_network
from pam_totp.system.site_edit import with_member
from tests.conftest import as_root
from tests.support.site import TREE, UNPRIVILEGED_UID
from tests.support.tls import Authority, Fleet, Reply, Request, Script, Server, free_port

TOKEN = "ab" * 16
SITE = "# our site\n[policy]\nprompt = 'Code: '  # short\n"


class Joining:
    """A scripted authority that lets a member join with TOKEN, and the command `join` of that member."""

    def __init__(self, members: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.members, self.ca = members, members.authority
        self.capsys, self.monkeypatch = capsys, monkeypatch
        self.server = members.server(self.reply)
        self.config, self.folder = members.folder / "site.toml", members.folder / "joined"
        self.authorities = [self.server.address, "otp2.example.org:8443"]
        self.health: Reply = (
            200,
            {"time": 1, "version": "1", "member": "web1", "certificate_days": 90, "store": "ok"},
        )
        self.before: Callable[[Request], Reply | None] = lambda request: None  # a test can replace the reply

    def reply(self, request: Request) -> Reply:
        other = self.before(request)
        if other is not None:
            return other
        if request.path == "/v1/ca":
            return 200, {"ca": self.ca.pem.decode()}
        if request.path == "/v1/health":
            return self.health
        csr = str(request.document["csr"]).encode()
        certificate = self.ca.sign_request(csr, "web1").decode()
        if request.path == "/v1/renew":
            return 200, {"certificate": certificate}
        assert request.path == "/v1/join"
        if request.document["token"] != TOKEN:
            return 403, {"error": "the token is not valid"}
        return 200, {
            "name": "web1",
            "certificate": certificate,
            "ca": self.ca.pem.decode(),
            "authorities": self.authorities,
        }

    def line(self, *addresses: str, pin: str | None = None, token: str = TOKEN) -> str:
        return JoinLine(authorities=addresses or (self.server.address,), pin=pin or self.ca.pin, token=token).to_text()

    def run(self, line: str | None = None, *options: str) -> tuple[int, str, str]:
        """Run `join`, and return its exit status and its outputs."""
        self.monkeypatch.setattr("sys.stdin", io.StringIO(f"{self.line() if line is None else line}\n"))
        words = ["join", "--config", str(self.config), "--credentials", str(self.folder), *options]
        status = main(words)
        shown = self.capsys.readouterr()
        return status, shown.out, shown.err

    @property
    def settings(self) -> MemberSettings:
        found = parse_site(self.config.read_text()).member
        assert found is not None
        return found

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.server.requests]

    def changed_nothing(self) -> bool:
        return not self.folder.exists() and (not self.config.exists() or self.config.read_text() == SITE)


@pytest.fixture
def joining(members: Fleet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Joining:
    return Joining(members, capsys, monkeypatch)


def test_a_host_joins_with_one_line(joining: Joining) -> None:
    joining.config.write_text(SITE)
    status, out, err = joining.run()
    assert (status, "joined as web1" in out) == (0, True), err
    assert joining.paths == ["/v1/ca", "/v1/join", "/v1/health"]
    assert TOKEN not in out + err
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in joining.folder.iterdir()}
    assert modes == dict.fromkeys(("certificate.pem", "key.pem", "ca.pem"), 0o600)
    assert stat.S_IMODE(joining.folder.stat().st_mode) == 0o700
    text = joining.config.read_text()
    assert text.startswith(SITE), "comments and other tables are unchanged"
    assert sorted(joining.settings.authorities) == sorted(joining.authorities)
    assert parse_site(text).policy == {"prompt": "Code: "}
    Credentials.of(joining.settings).context()


def test_the_certificate_of_the_new_member_is_shown_to_the_authority(joining: Joining) -> None:
    joining.run()
    certificate = ssl.PEM_cert_to_DER_cert((joining.folder / "certificate.pem").read_text())
    assert [request.peer for request in joining.server.requests] == [None, None, certificate]
    assert b"PRIVATE KEY" not in joining.server.raw


def test_json_names_the_member_and_no_secret(joining: Joining) -> None:
    status, out, _ = joining.run(None, "--json")
    shown = json.loads(out)
    assert (status, shown["member"], shown["key"]) == (0, "web1", str(joining.folder / "key.pem"))
    assert sorted(shown["authorities"]) == sorted(joining.authorities)
    assert shown["ends"] == validity(str(joining.folder / "certificate.pem")).end


def test_an_impostor_gets_no_token(joining: Joining) -> None:
    joining.config.write_text(SITE)
    status, _, err = joining.run(joining.line(pin=Authority("other").pin))
    assert (status, "another fingerprint" in err) == (1, True)
    assert joining.paths == ["/v1/ca"]
    assert TOKEN.encode() not in joining.server.raw
    assert joining.changed_nothing()


def test_a_server_with_the_right_ca_and_another_certificate_gets_no_token(joining: Joining) -> None:
    """Every server can present the CA's public certificate. The CA must also have signed the server's certificate."""
    impostor = joining.members.server(joining.reply, Authority("other").sign(server=True))
    status, _, err = joining.run(joining.line(impostor.address))
    assert (status, "its certificate was issued by an unknown CA" in err) == (3, True)
    assert TOKEN.encode() not in impostor.raw
    assert joining.changed_nothing()


LINES: dict[str, tuple[str, str]] = {
    "empty": ("", "must be a join line"),
    "other text": ("hello", "must be a join line"),
    "a later version": ("pam_totp-join:2:a:1", "the version of the join line must be 1"),
    "cut off": ("pam_totp-join:1:a:8443:" + "ab" * 32, "must be a join line"),
}


@pytest.mark.parametrize("name", LINES)
def test_another_line_is_refused_with_the_reason(joining: Joining, name: str) -> None:
    line, reason = LINES[name]
    status, _, err = joining.run(line)
    assert (status, reason in err) == (1, True), err
    assert joining.server.connections == 0


def test_a_used_token_is_refused_with_the_remedy(joining: Joining) -> None:
    status, _, err = joining.run(joining.line(token="cd" * 16))
    assert (status, "pam-totp member add" in err, "cd" * 16 in err) == (1, True, False)
    assert joining.changed_nothing()


def test_another_authority_is_asked_if_the_first_is_down(joining: Joining) -> None:
    assert joining.run(joining.line(f"127.0.0.1:{free_port()}", joining.server.address))[0] == 0
    status, _, err = joining.run(joining.line(f"127.0.0.1:{free_port()}"))
    assert (status, "connection refused" in err) == (3, True)


REPLIES: dict[str, tuple[str, Reply, str]] = {
    "no CA": ("/v1/ca", (200, {"ca": "x"}), "another fingerprint"),
    "no certificate": ("/v1/join", (200, {}), "the reply must be a valid message"),
    "cannot sign": ("/v1/join", (503, {"error": "no key"}), "status 503"),
    "no health": ("/v1/health", (401, {"error": "no"}), "status 401"),
}


@pytest.mark.parametrize("name", REPLIES)
def test_after_a_bad_reply_nothing_is_changed(joining: Joining, name: str) -> None:
    path, reply, reason = REPLIES[name]
    joining.config.write_text(SITE)
    joining.before = lambda request: reply if request.path == path else None
    status, _, err = joining.run()
    assert (status in (1, 3), reason in err) == (True, True), err
    assert joining.changed_nothing()


def test_a_certificate_for_another_key_is_refused(joining: Joining) -> None:
    other = joining.ca.sign("web1").certificate.decode()
    reply = {"name": "web1", "certificate": other, "ca": joining.ca.pem.decode(), "authorities": ["otp1:1"]}
    joining.before = lambda request: (200, reply) if request.path == "/v1/join" else None
    status, _, err = joining.run()
    assert (status, "does not match the key" in err) == (3, True)
    assert joining.changed_nothing()


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        ('[store]\nurl = "postgresql:///otp"\n', "member and store: only one of these tables is allowed"),
        ("[authority]\n", "member and authority: only one of these tables is allowed"),
        ("[policy]\nwindow = 1\n", "policy.window: not allowed on a member"),
        ("member.connect = 1\n", "member.authorities: required"),
    ],
)
def test_a_host_with_another_role_cannot_join(joining: Joining, site: str, reason: str) -> None:
    joining.config.write_text(site)
    status, _, err = joining.run()
    assert (status, reason in err) == (1, True), err
    assert joining.server.connections == 0, "the token must stay unused"
    assert joining.config.read_text() == site


def test_a_member_can_join_again(joining: Joining) -> None:
    joining.run()
    first = (joining.folder / "key.pem").read_text()
    text = joining.config.read_text() + "patience = 2.5\n[clients]\nwww-data = 'web'\n"
    joining.config.write_text(text)
    joining.authorities = [joining.server.address]
    assert joining.run()[0] == 0
    assert (joining.folder / "key.pem").read_text() != first
    assert (joining.settings.authorities, joining.settings.patience) == ((joining.server.address,), 2.5)
    assert parse_site(joining.config.read_text()).clients == {"www-data": "web"}
    assert sorted(os.listdir(joining.folder)) == ["ca.pem", "certificate.pem", "key.pem"]


def test_a_member_that_joins_again_keeps_the_places_of_its_files(joining: Joining) -> None:
    joining.run()
    moved = joining.members.folder / "moved.pem"
    (joining.folder / "certificate.pem").rename(moved)
    text = joining.config.read_text().replace(str(joining.folder / "certificate.pem"), str(moved))
    joining.config.write_text(text)
    before = moved.read_text()
    joining.monkeypatch.setattr("sys.stdin", io.StringIO(joining.line()))
    assert main(["join", "--config", str(joining.config)]) == 0
    assert moved.read_text() != before
    assert joining.settings.certificate == str(moved)
    assert not (joining.folder / "certificate.pem").exists()


@pytest.mark.parametrize("path", ["/v1/ca", "/v1/join", "/v1/health"])
def test_control_c_leaves_nothing_half_done(joining: Joining, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Ctrl-C arrives while the member waits for a reply."""
    joining.config.write_text(SITE)
    from pam_totp.member import joining as module

    original: Callable[..., Any] = module._ask

    def interrupted(authority: str, context: ssl.SSLContext, method: str, asked: str, body: bytes | None) -> Any:
        if asked == path:
            raise KeyboardInterrupt
        return original(authority, context, method, asked, body)

    monkeypatch.setattr(module, "_ask", interrupted)
    assert joining.run()[0] == 130
    assert joining.changed_nothing()


def test_a_site_file_that_cannot_be_written_uses_up_no_token(joining: Joining, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    status, _, err = joining.run()
    assert (status, "run the command as root" in err) == (3, True)
    assert joining.server.connections == 0


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("missing", [{"f_bavail": 15}, {"f_files": 1000, "f_favail": 7}], ids=["blocks", "inodes"])
def test_a_full_disk_uses_up_no_token(
    joining: Joining, monkeypatch: pytest.MonkeyPatch, again: bool, missing: dict[str, int]
) -> None:
    if again:
        assert joining.run()[0] == 0
    found = joining.server.connections
    space = {"f_frsize": 4096, "f_bavail": 10_000, "f_files": 0, "f_favail": 0} | missing
    with monkeypatch.context() as patched:
        patched.setattr("os.statvfs", lambda path: SimpleNamespace(**space))
        status, _, err = joining.run()
    assert (status, joining.server.connections) == (3, found)
    folder = joining.folder if again else joining.folder.parent
    assert err == f"pam-totp: {folder}: the disk is full (free some space, then use the same line)\n"
    assert joining.run()[0] == 0


@as_root
@pytest.mark.parametrize("renews", [False, True])
def test_a_link_of_the_services_account_leads_root_nowhere(joining: Joining, renews: bool) -> None:
    """Root would otherwise change the mode of the link's target, and write a key to the target."""
    with tempfile.TemporaryDirectory(prefix="pam_totp-link-") as name:
        store, target = Path(name) / "store", Path(name) / "target"
        Path(name).chmod(0o755)
        target.mkdir(0o755)
        store.mkdir(0o755)
        if renews:
            joining.folder = store / ".member"
            assert joining.run()[0] == 0
            (store / ".member").rename(target / "was")
            target = target / "was"
        os.chown(store, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
        (store / ".member").symlink_to(target)
        before = {path: path.read_bytes() for path in target.iterdir()}, target.stat()
        words = ["--renew"] if renews else ["--credentials", str(store / ".member")]
        done = subprocess.run(
            [sys.executable, "-m", "pam_totp.cli", "join", "--config", str(joining.config), *words],
            cwd=TREE,
            input=f"{joining.line()}\n",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert ({path: path.read_bytes() for path in target.iterdir()}, target.stat()) == before


# ---- the network of the service


def test_the_drop_in_permits_all_that_the_unit_denies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pam_totp.service.d" / "network.conf"
    monkeypatch.setattr(service_network, "DROP_IN", str(path))
    assert service_network.permit()
    assert not service_network.permit(), "the drop-in already exists"
    unit, drop_in = configparser.RawConfigParser(strict=False), configparser.RawConfigParser()
    unit.read(TREE / "pam_totp" / "system" / "data" / "pam_totp.service")
    drop_in.read(path)
    network = {"privatenetwork", "restrictaddressfamilies", "ipaddressdeny"}
    assert network <= unit["Service"].keys()
    assert dict(drop_in["Service"]) == {
        "privatenetwork": "no",
        "restrictaddressfamilies": f"{unit['Service']['restrictaddressfamilies']} AF_INET AF_INET6",
        "ipaddressdeny": "",
    }
    path.write_text("[Service]\n")
    assert service_network.permit()
    assert path.read_text() == service_network.CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


# ---- the site file

EDITS = {
    "no file": ("", '[member]\nauthorities = ["a:1"]\n'),
    "no line end": ("[policy]", '[policy]\n\n[member]\nauthorities = ["a:1"]\n'),
    "other authorities": (
        '[member]  # fleet\nauthorities = [  # all\n  "x:1",  # ]\n  "[::1]:2",\n]  # end\n[clients]\na = "b"\n',
        '[member]  # fleet\nauthorities = ["a:1"]  # end\n[clients]\na = "b"\n',
    ),
    "one authority": ("[member]\nauthorities = 'x:1'\n", '[member]\nauthorities = ["a:1"]\n'),
    "none": ("[member]\nconnect = 2\n", '[member]\nauthorities = ["a:1"]\nconnect = 2\n'),
}


@pytest.mark.parametrize("name", EDITS)
def test_only_the_member_table_of_the_site_file_changes(name: str) -> None:
    before, after = EDITS[name]
    assert with_member(before, {"authorities": ["a:1"]}) == after


@pytest.mark.parametrize(
    "text",
    [
        "member = { authorities = ['x:1'] }\n",
        "[policy]\nprompt = '''\n[member]\n'''\n",
        "[member]\n'authorities' = ['x:1']\n",
        "[member\n",
    ],
)
def test_a_site_file_that_cannot_be_edited_is_an_error(text: str) -> None:
    with pytest.raises(SettingsError):
        with_member(text, {"authorities": ["a:1"]})


# ---- renewal


def member_of(members: Fleet, script: Script, days: tuple[int, int] = (-61, 30)) -> tuple[Server, MemberSettings]:
    """Return an authority, and the settings of a member. The certificate is valid on `days`, relative to today."""
    signed = members.authority.sign("web1", days=days)
    (members.credentials / "certificate.pem").write_bytes(signed.certificate)
    (members.credentials / "key.pem").write_bytes(signed.key)
    server = members.server(script)
    return server, members.settings(server.address, answer=2)


def sign(members: Fleet) -> Script:
    def reply(request: Request) -> Reply:
        certificate = members.authority.sign_request(str(request.document["csr"]).encode(), "web1")
        return 200, {"certificate": certificate.decode()}

    return reply


@pytest.mark.parametrize(
    ("begin", "end", "now", "is_due"),
    [
        (-1, 90, 59.9, False),
        (-1, 90, 60, True),
        (-1, 90, 95, True),
        (0, 6, 3.9, False),
        (0, 6, 4, True),
    ],
)
def test_a_certificate_is_renewed_from_day_60(begin: int, end: int, now: float, is_due: bool) -> None:
    assert Validity(begin * DAY, end * DAY).is_due(int(now * DAY)) is is_due


def test_the_service_renews_a_certificate_that_is_due(members: Fleet) -> None:
    server, settings = member_of(members, sign(members))
    key = (members.credentials / "key.pem").read_text()
    log: list[tuple[str, dict[str, object]]] = []
    now = validity(settings.certificate).end - 29 * DAY
    look(lambda: settings, lambda verb, **fields: log.append((verb, fields)), now - 30 * DAY)
    assert (server.connections, log) == (0, []), "too early"
    look(lambda: settings, lambda verb, **fields: log.append((verb, fields)), now)
    assert log == [("changed", {"what": "member-renew", "days": (validity(settings.certificate).end - now) // DAY})]
    assert (members.credentials / "key.pem").read_text() != key
    assert sorted(os.listdir(members.credentials)) == ["ca.pem", "certificate.pem", "key.pem"]
    assert validity(settings.certificate).end > now + 80 * DAY


def test_a_failed_renewal_is_logged_and_changes_nothing(members: Fleet) -> None:
    _, settings = member_of(members, lambda request: (503, {"error": "no key"}))
    before = (members.credentials / "certificate.pem").read_bytes()
    log: list[dict[str, object]] = []
    look(lambda: settings, lambda verb, **fields: log.append(fields), validity(settings.certificate).end - 29 * DAY)
    problem = str(log[0]["problem"])
    assert "the certificate was not renewed: no authority answered" in problem
    assert "status 503: no key; its certificate expires in 29 days" in problem
    assert (members.credentials / "certificate.pem").read_bytes() == before


def test_a_revoked_member_renews_nothing(members: Fleet) -> None:
    _, settings = member_of(members, lambda request: (401, {"error": "revoked"}))
    with pytest.raises(JoinError, match="is not a member"):
        renew(settings)


def test_a_killed_renewal_is_completed_by_the_next_use(members: Fleet) -> None:
    """The process was killed after it had replaced the certificate, and before it had replaced the key."""
    server, settings = member_of(members, sign(members))
    renewed = members.authority.sign("web1")
    (members.credentials / "key.pem.next").write_bytes(renewed.key)
    (members.credentials / "key.pem.next").chmod(0o600)
    (members.credentials / "certificate.pem").write_bytes(renewed.certificate)
    renew(settings)
    assert len(server.requests) == 1
    assert Client(settings)._current_context() is not None
    assert sorted(os.listdir(members.credentials)) == ["ca.pem", "certificate.pem", "key.pem"]


def test_one_process_at_a_time_renews(members: Fleet) -> None:
    server, settings = member_of(members, sign(members))
    with Credentials.of(settings).replacing(), pytest.raises(StoreError, match="another process is replacing"):
        renew(settings)
    assert server.connections == 0


def test_the_command_renews_at_any_time(joining: Joining) -> None:
    joining.run()
    before = (joining.folder / "certificate.pem").read_text()
    joining.config.write_text(
        joining.config.read_text().replace('"otp2.example.org:8443"', f'"{joining.server.address}"')
    )
    assert main(["join", "--renew", "--config", str(joining.config)]) == 0
    assert "renewed; valid until" in joining.capsys.readouterr().out
    assert (joining.folder / "certificate.pem").read_text() != before
    assert main(["join", "--renew", "--config", str(joining.config), "--json"]) == 0
    assert json.loads(joining.capsys.readouterr().out)["ends"] == validity(str(joining.folder / "certificate.pem")).end


def test_only_a_member_can_renew(joining: Joining) -> None:
    joining.config.write_text(SITE)
    assert main(["join", "--renew", "--config", str(joining.config)]) == 1
    assert "this host is no member" in joining.capsys.readouterr().err


ACTING = """
import os
from pam_totp.member import joining
os.setegid(65534)
os.seteuid(65534)  # the real ids remain root's, as in `pam-totp join --renew`
print(joining.new_request().csr)
joining.OPENSSL = "/usr/bin/grep"
print(joining._openssl("^Uid", "/proc/self/status"))
"""


@as_root
def test_openssl_runs_with_the_effective_ids_alone() -> None:
    """execve(2) of Linux 6.1 sets the effective ids to the real ids under NoNewPrivileges, as in a unit of systemd."""
    command = ["setpriv", "--no-new-privs", sys.executable, "-c", ACTING]
    done = subprocess.run(command, cwd=TREE, text=True, capture_output=True, check=False)
    assert "BEGIN CERTIFICATE REQUEST" in done.stdout, done.stderr
    assert done.stdout.split("Uid:")[1].split() == ["65534"] * 4, "openssl cannot become root again"
