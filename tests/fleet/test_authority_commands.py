"""Tests of `pam-totp authority` and `pam-totp member` on an authority: files, output, and errors."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pam_totp.authority import certificates
from pam_totp.cli import main
from pam_totp.member import wire
from tests.conftest import as_root
from tests.support.cluster import with_postgresql
from tests.support.fleet import Fleet
from tests.support.site import PATIENCE, TREE
from tests.support.tls import free_port

pytestmark = with_postgresql
AUTHORITY = "[authority]\naddresses = ['otp1.example.org:8443', '[2001:db8::1]:8443']\n"


class Place:
    """A site file of an authority. The folder of its certificates is missing at first."""

    def __init__(self, folder: Path) -> None:
        self.config, self.tls = folder / "site.toml", folder / "etc/authority"
        names = {"certificate": "authority.pem", "key": "authority.key", "ca": "ca.pem", "ca_key": "ca.key"}
        self.files = {name: self.tls / file for name, file in names.items()}
        self.write(AUTHORITY + "".join(f"{name} = '{path}'\n" for name, path in self.files.items()))

    def write(self, text: str) -> None:
        self.text = text
        self.config.write_text(text)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [sys.executable, "-m", "pam_totp.cli", *words, "--config", self.config]
        return subprocess.run(command, cwd=TREE, text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_init_makes_what_is_missing_and_keeps_the_rest(place: Place) -> None:
    made = place.run("authority", "init")
    assert made.returncode == 0, made.stderr
    assert [line for line in made.stdout.splitlines() if line.startswith("created: ")] == [
        f"created: {place.files[name]}" for name in ("ca_key", "ca", "key", "certificate")
    ]
    modes = {name: path.stat().st_mode & 0o777 for name, path in place.files.items()}
    assert {modes["key"], modes["ca_key"]} == {0o600}, "only the owner may read keys: the service's account is missing"
    texts = {name: path.read_text() for name, path in place.files.items()}
    assert "next: 'pam-totp store init URL'" in made.stdout
    assert "next: " not in place.run("authority", "init").stdout
    again = json.loads(place.run("authority", "init", "--json").stdout)
    assert (again["made"], len(again["kept"])) == ([], 4)
    assert again["pin"] == certificates.fingerprint(texts["ca"]).hex()
    place.files["certificate"].unlink()
    assert json.loads(place.run("authority", "init", "--json").stdout)["made"] == [str(place.files["certificate"])]
    place.files["certificate"].unlink()
    renewed = place.run("authority", "init").stdout
    assert renewed.endswith("next: 'systemctl reload pam_totp-authority' on this host\n")
    assert {name: path.read_text() for name, path in place.files.items() if name != "certificate"} == {
        name: text for name, text in texts.items() if name != "certificate"
    }
    assert "DNS:otp1.example.org, IP Address:2001:DB8:0:0:0:0:0:1" in shown(place.files["certificate"])


def shown(certificate: Path) -> str:
    words: list[str | Path] = ["/usr/bin/openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", certificate]
    return subprocess.run(words, text=True, capture_output=True, check=True).stdout


def test_a_second_authority_needs_the_key_of_the_ca_for_its_certificate(place: Place, tmp_path: Path) -> None:
    assert place.run("authority", "init").returncode == 0
    (tmp_path / "second").mkdir()
    second = Place(tmp_path / "second")
    second.tls.mkdir(parents=True)
    second.files["ca"].write_text(place.files["ca"].read_text())
    done = second.run("authority", "init")
    assert done.returncode == 1
    assert done.stderr == (
        f"pam-totp: {second.files['ca_key']}: not found (copy it from another authority, then run init again)\n"
    )
    second.files["ca_key"].write_text(place.files["ca_key"].read_text())
    assert second.run("authority", "init").returncode == 0
    verified: list[str | Path] = [
        "/usr/bin/openssl",
        "verify",
        "-CAfile",
        place.files["ca"],
        second.files["certificate"],
    ]
    assert subprocess.run(verified, capture_output=True, check=False).returncode == 0


@as_root
def test_init_lets_the_service_read_copied_keys(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of the CA belong to root after a copy with scp."""
    words = ["authority", "init", "--config", str(place.config)]
    assert main(words) == 0
    monkeypatch.setattr("pam_totp.cli.authority._group", lambda: 33)
    place.files["ca"].chmod(0o644)
    capsys.readouterr()
    assert main(words) == 0
    assert f"kept: {place.files['ca_key']}, which the service may read now\n" in capsys.readouterr().out
    for key in (place.files["key"], place.files["ca_key"]):
        assert (key.stat().st_gid, key.stat().st_mode & 0o777) == (33, 0o640)
    assert place.files["ca"].stat().st_gid == 0, "the certificate is public: its group is unchanged"
    assert main(words) == 0
    assert f"kept: {place.files['ca_key']}\n" in capsys.readouterr().out


@as_root
def test_init_permits_the_network_to_logins_of_the_authority(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logins at the authority reach the database through the service, whose unit denies the network by default."""
    written: list[bool] = []

    def permit() -> bool:
        written.append(True)
        return len(written) == 1

    monkeypatch.setattr("pam_totp.system.service_network.permit", permit)
    monkeypatch.setattr("pam_totp.system.service_network.restart", lambda: True)
    words = ["authority", "init", "--config", str(place.config)]
    place.write(f"{place.text}[store]\nurl = 'postgresql:///otp'\n")
    assert main(words) == 0
    assert not written, "no drop-in is written if the host uses another site file"
    monkeypatch.setattr("pam_totp.cli.authority.site_file", lambda _: str(place.config))
    capsys.readouterr()
    assert main(words[:2]) == 0
    assert "-network.conf, so that logins at this host reach the database\n" in capsys.readouterr().out
    assert main(words[:2]) == 0
    assert "-network.conf" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words", "status", "said"),
    [
        ("", ["authority", "init"], 1, "[authority] is missing in"),
        ("[authority]\n", ["authority", "init"], 1, "authority.addresses is missing in"),
        ("[authority]\nadresses = 1\n", ["authority", "serve"], 1, "authority: unknown setting 'adresses'"),
        (AUTHORITY, ["authority", "serve"], 1, "an authority requires a database (set url"),
        (AUTHORITY, ["authority", "serve", "--json"], 2, "--json is an option of 'pam-totp authority init'"),
        (AUTHORITY, ["authority", "serve", "--log", "file"], 2, "--log must be syslog or stderr"),
        (AUTHORITY, ["authority", "fence", "--complete"], 2, "--complete is an option of 'pam-totp authority restore'"),
        (
            AUTHORITY,
            ["authority", "restore"],
            2,
            "authority restore requires --log FILE... (without a log, run 'pam-totp authority fence')",
        ),
        (AUTHORITY, ["authority", "fence"], 1, 'the store must be a database (set url = "postgresql://..." in [store]'),
        (AUTHORITY, ["member", "list"], 1, "a fleet requires a database (set url"),
        ("[member]\nauthorities = 'a:1'\n", ["member", "list"], 1, "this host is a member (run the command on an"),
        (AUTHORITY, ["member", "add"], 2, "pam-totp member add needs a name"),
        (AUTHORITY, ["member", "list", "web1"], 2, "pam-totp member list takes no name"),
        (AUTHORITY, ["member", "revoke", "web1", "web2"], 2, "pam-totp member revoke takes at most one name"),
        (
            AUTHORITY,
            ["member", "revoke", "web1", "--allow", "all"],
            2,
            "unexpected option of 'pam-totp member revoke': --allow",
        ),
        (AUTHORITY, ["member", "add", "Web1", "--group", "web"], 2, "the name must be a host name in lower case"),
        (AUTHORITY, ["member", "add", "web1"], 2, "pam-totp member add needs --group GROUP"),
        (AUTHORITY, ["member", "add", "web1", "--group", "a b"], 2, "'a b': the name of a group must be"),
        (AUTHORITY, ["member", "groups", "--put", "alice"], 2, "pam-totp member groups needs a name"),
    ],
)
def test_a_wrong_use_is_named_with_its_remedy(  # noqa: PLR0917 - parametrized
    place: Place, capsys: pytest.CaptureFixture[str], text: str, words: list[str], status: int, said: str
) -> None:
    place.write(text)
    assert main([*words, "--config", str(place.config)]) == status
    out, err = capsys.readouterr()
    assert said in err
    assert (err.count("\n"), out) == (1, "")


def test_serve_without_certificates_names_the_remedy(place: Place) -> None:
    place.write(f"{place.text}[store]\nurl = 'postgresql:///otp?host=/missing'\n")
    done = place.run("authority", "serve")
    missing = f"{place.files['certificate']}: no such file or directory"
    assert (done.returncode, done.stderr) == (3, f"pam-totp: {missing} (run 'pam-totp authority init')\n")


def test_serve_names_an_address_that_is_in_use(fleet: Fleet, place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = fleet.authorities[0].config.read_text()
        place.write(text.replace(f"listen = '127.0.0.1:{fleet.authorities[0].port}'", f"listen = '127.0.0.1:{port}'"))
        done = place.run("authority", "serve")
    assert done.returncode == 3
    assert f"127.0.0.1:{port}" in done.stderr.replace("', ", ":").replace("('", "")
    assert "address already in use" in done.stderr


def test_serve_tells_systemd_that_it_listens(fleet: Fleet, tmp_path: Path) -> None:
    """`systemctl start` must not succeed before members can connect."""
    started = fleet.authorities[0].config.read_text()
    config, port = tmp_path / "site.toml", free_port()
    config.write_text(started.replace(f":{fleet.authorities[0].port}'", f":{port}'", 1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        words = [sys.executable, "-m", "pam_totp.cli", "authority", "serve", "--config", str(config)]
        environment = os.environ | {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        serving = subprocess.Popen(words, cwd=TREE, env=environment, stderr=subprocess.PIPE)
        try:
            assert systemd.recv(100) == b"READY=1"
            socket.create_connection(("127.0.0.1", port), PATIENCE).close()
        finally:
            serving.terminate()
            serving.communicate()


def test_the_unit_waits_until_the_authority_listens() -> None:
    unit = (TREE / "pam_totp" / "system" / "data" / "pam_totp-authority.service").read_text().splitlines()
    assert "Type=notify" in unit


def test_add_prints_the_join_line_alone_on_standard_output(fleet: Fleet) -> None:
    name, group = f"host{secrets.token_hex(4)}", f"g{secrets.token_hex(4)}"
    done = fleet.command("member", "add", name, "--group", group)
    assert done.stdout.count("\n") == 1
    assert wire.JoinLine.from_text(done.stdout).pin == fleet.pin
    assert f"pam-totp: on {name}, run 'pam-totp join' within an hour" in done.stderr
    assert (
        f"members of {group} may ask about no user yet (run 'pam-totp member groups {group} --allow all')"
        in done.stderr
    )
    content = json.loads(fleet.command("member", "add", name, "--group", "web", "--service", "sshd", "--json").stdout)
    assert (content["member"], content["seconds"], content["joined_before"]) == (name, 3600, False)
    (member,) = (member for member in fleet.members.all() if member.name == name)
    assert (member.groups, member.services) == (("web",), ("sshd",))


def test_members_are_listed_with_their_state(fleet: Fleet) -> None:
    added, revoked = f"host{secrets.token_hex(4)}", fleet.member()
    fleet.command("member", "add", added, "--group", "web", "--service", "sudo")
    assert fleet.command("member", "revoke", revoked.name, "--yes").stdout == (
        f"{revoked.name}: revoked; all authorities refuse it from now on\n"
    )
    shown = fleet.command("member", "list").stdout
    assert shown.splitlines()[0].endswith("  CERTIFICATE ENDS")
    rows = {row.split()[0]: row.split()[1:4] for row in shown.splitlines()}
    assert rows["MEMBER"] == ["GROUPS", "SERVICES", "STATE"]
    assert rows[added] == ["web", "sudo", "added"]
    assert rows[revoked.name] == ["web", "all", "revoked"]
    listed = {member["name"]: member for member in json.loads(fleet.command("member", "list", "--json").stdout)}
    assert listed[revoked.name]["fingerprint"] == revoked.fingerprint.hex()
    assert listed[added]["joined"] is None
    done = fleet.command("member", "revoke", "unknown", "--yes", status=1)
    assert done.stderr == "pam-totp: unknown: member not found (see 'pam-totp member list')\n"


def test_groups_are_changed_and_shown(fleet: Fleet) -> None:
    members, users = f"m{secrets.token_hex(4)}", f"u{secrets.token_hex(4)}"
    fleet.command("member", "groups", members, "--allow", users, "--allow", "all")
    fleet.command("member", "groups", members, "--deny", "all")
    fleet.command("member", "groups", users, "--put", "alice", "--put", "bob", "--take", "bob")
    rows = [row.split() for row in fleet.command("member", "groups").stdout.splitlines()]
    assert [members, users, "off", "-"] in rows
    assert [users, "-", "off", "alice"] in rows
    content = json.loads(fleet.command("member", "groups", members, "--json").stdout)
    assert content == [{"group": members, "may": [users], "users": [], "enroll": "off"}]
    fleet.command("member", "groups", members, "--enroll", "ticket")
    assert json.loads(fleet.command("member", "groups", members, "--json").stdout)[0]["enroll"] == "ticket"
    fleet.command("member", "groups", members, "--enroll", "off")
    assert json.loads(fleet.command("member", "groups", members, "--json").stdout)[0]["enroll"] == "off"


def test_restored_names_the_command_for_a_database(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restored", "--store", "postgresql:///otp", "--yes"]) == 1
    assert "the store is a database (run 'pam-totp authority restore' with the same options)" in capsys.readouterr().err
