"""Tests of logins through the real FreeRADIUS, with radclient, pam_radius_auth and packets that are sent twice."""

from __future__ import annotations

import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.answer import recovery_digest
from pam_totp.core.settings import NEXT_PROMPT
from pam_totp.operations.authenticate import REFUSED as REFUSED_TEXT
from pam_totp.store.postgres import ASKED
from pam_totp.system import radius as pack
from tests.conftest import with_mounts
from tests.fleet.radius_load import log_in_under_load
from tests.support import tls
from tests.support.cluster import with_postgresql
from tests.support.fleet import HOST, Fleet
from tests.support.pamconf import Login, Result, login, service
from tests.support.radius import (
    PAM_MODULE,
    STATE,
    USER_NAME,
    USER_PASSWORD,
    FreeRadius,
    Nas,
    running,
    with_freeradius,
)
from tests.support.site import TREE, codes, fob, until

pytestmark = [with_postgresql, with_freeradius, pytest.mark.timeout(300)]
QUIET = 1.0  # seconds: longer than a reply takes


@pytest.fixture(scope="module")
def radius(fleet: Fleet) -> Iterator[FreeRadius]:
    with running(fleet, "radius1.example.org") as made:
        yield made


def counter(fleet: Fleet, user: str) -> int:
    return fleet.store.read(user).tokens[0].next_factor


# ---- logins


def test_radclient_logs_in_with_a_right_code_once(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    done = radius.radclient(user, codes(0))
    assert "Received Access-Accept" in done.stdout, done.stdout
    assert "Message-Authenticator = 0x" in done.stdout.partition("Received")[2]
    assert "Received Access-Challenge" in radius.radclient(user, codes(0)).stdout
    assert counter(fleet, user) == 1


def test_the_log_has_the_service_of_the_client(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    with radius.nas() as vpn, radius.nas("switch") as switch:
        assert vpn.ask(user, codes(0)).kind == "accept"
        assert switch.ask(user, codes(1)).kind == "accept"
    logs = "".join(authority.log.read_text() for authority in fleet.authorities)
    for name, rest in (("openvpn", "at=0"), ("radius", "at=1")):
        line = next(x for x in logs.splitlines() if f"accepted user={user}" in x and rest in x)
        assert f"pam_totp({name}:auth)" in line
        assert f"member={radius.name} rhost=192.0.2.7" in line


def test_a_wrong_code_gets_one_challenge_and_then_a_refusal(fleet: Fleet, radius: FreeRadius) -> None:
    for user in (fleet.user(), "not-enrolled"):
        with radius.nas() as nas:
            first = nas.ask(user, "000000")
            assert (first.kind, first.messages) == ("challenge", (NEXT_PROMPT,))
            second = nas.ask(user, "000001", first.state)
            assert (second.kind, second.messages, second.state) == ("reject", (REFUSED_TEXT,), None)


def test_two_codes_in_a_row_over_a_challenge_are_accepted(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user(tokens=(fob(row_needed=True),))
    with radius.nas() as nas:
        first = nas.ask(user, codes(3))
        assert first.kind == "challenge"
        assert nas.ask(user, codes(4), first.state).kind == "accept"
    assert counter(fleet, user) == 5


def test_a_client_without_challenges_gets_a_refusal_at_once(fleet: Fleet, radius: FreeRadius) -> None:
    with radius.nas("switch") as nas:
        reply = nas.ask(fleet.user(), "000000")
    assert (reply.kind, reply.state) == ("reject", None)


def test_a_recovery_code_is_accepted_with_its_message(fleet: Fleet, radius: FreeRadius) -> None:
    salt = "5a" * 16
    user = fleet.user(salt=salt, recovery=(recovery_digest(salt, "0123456789ABCDEF"),))
    with radius.nas() as nas:
        reply = nas.ask(user, "0123-4567-89AB-CDEF")
    assert (reply.kind, reply.messages) == ("accept", ("recovery code used, 0 left",))


@pytest.mark.parametrize("user", ["%{User-Password}", 'a"b', "a\\b", "a\nb", "é", "a,b", "x" * 253, "$x", "`id`", "{}"])
def test_a_strange_name_is_an_unknown_user(fleet: Fleet, radius: FreeRadius, user: str) -> None:
    with radius.nas() as nas:
        assert nas.ask(user, "000000").kind == "challenge"


def test_a_name_and_a_password_arrive_as_they_were_sent(fleet: Fleet, radius: FreeRadius) -> None:
    user = 'dom\\us"er%{x}'
    record = fleet.store.read(fleet.user())
    fleet.store.update(user, lambda _: (record._replace(user=user), None), create=True)
    with radius.nas() as nas:
        assert nas.ask(user, codes(0)).kind == "accept"


@pytest.mark.parametrize("answer", ["", "pass\\word", '"', "\xff", "x" * 128, "%{exec:/bin/false}"])
def test_a_malformed_answer_is_never_accepted(fleet: Fleet, radius: FreeRadius, answer: str) -> None:
    user = fleet.user()
    with radius.nas() as nas:
        assert nas.ask(user, answer).kind in ("challenge", "reject")
    assert counter(fleet, user) == 0


def test_a_code_in_chap_is_refused(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    done = radius.radclient(user, codes(0), "Message-Authenticator = 0x00", as_chap=True)
    assert "CHAP-Password = 0x" in done.stdout
    assert "Received Access-Reject" in done.stdout
    assert counter(fleet, user) == 0


# ---- forged and repeated packets


def test_a_packet_without_message_authenticator_gets_no_reply(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    with radius.nas() as nas:
        assert nas.send(nas.request(user, codes(0), is_signed=False), QUIET) is None
        assert nas.ask(user, codes(0)).kind == "accept", "the code must stay unused"


def test_a_packet_with_another_secret_gets_no_reply(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    with radius.nas(secret="another secret") as nas:
        assert nas.send(nas.request(user, codes(0)), QUIET) is None
        assert nas.send(nas.request(user, codes(0), is_signed=False), QUIET) is None
    assert (counter(fleet, user), fleet.store.read(user).failures) == (0, 0)


def test_a_changed_packet_gets_no_reply(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    with radius.nas() as nas:
        packet = nas.request(user, codes(0))
        forged = packet[:-1] + bytes([packet[-1] ^ 1])
        assert nas.send(forged, QUIET) is None
    assert counter(fleet, user) == 0


def test_an_unknown_client_gets_no_reply(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    with Nas(radius.port, radius.secrets["vpn"], "127.0.0.3") as unknown:
        assert unknown.send(unknown.request(user, codes(0)), QUIET) is None
    assert counter(fleet, user) == 0


def test_a_packet_sent_again_gets_the_same_reply_and_no_decision(fleet: Fleet, radius: FreeRadius) -> None:
    users = fleet.user(), fleet.user()
    with radius.nas() as nas:
        for user, answer, kind in ((users[0], codes(0), "accept"), (users[1], "000000", "challenge")):
            packet = nas.request(user, answer)
            replies = [nas.insist(packet) for _ in range(5)]
            assert replies[0].kind == kind
            assert replies == [replies[0]] * 5
    assert counter(fleet, users[0]) == 1
    assert fleet.store.read(users[1]).failures == 1


def test_a_recorded_packet_changes_nothing_after_a_restart(fleet: Fleet, radius: FreeRadius) -> None:
    """FreeRADIUS asks an authority again. The authority repeats a verdict only for the same request."""
    user, other = fleet.user(), fleet.user()
    with radius.nas() as nas:
        packets = nas.request(user, codes(0)), nas.request(other, "000000")
        before = [nas.insist(packet).kind for packet in packets]
        radius.restart()
        assert [nas.insist(packet).kind for packet in packets] == before == ["accept", "challenge"]
    assert (counter(fleet, user), fleet.store.read(other).failures) == (1, 1)


def test_a_recorded_packet_from_another_port_changes_nothing(fleet: Fleet, radius: FreeRadius) -> None:
    """An attacker on the network can choose the port. FreeRADIUS then does not know the packet."""
    user, other = fleet.user(), fleet.user()
    with radius.nas() as nas:
        packets = nas.request(user, codes(0)), nas.request(other, "000000")
        before = [nas.insist(packet).kind for packet in packets]
    for _ in range(3):
        with radius.nas() as nas:
            assert [nas.insist(packet).kind for packet in packets] == before == ["accept", "challenge"]
    assert (counter(fleet, user), fleet.store.read(other).failures) == (1, 1)


def test_a_packet_of_one_client_gets_no_verdict_of_another(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    with radius.nas() as vpn, radius.nas("switch") as switch:
        packet = vpn.request(user, codes(0))
        assert vpn.insist(packet).kind == "accept"
        assert switch.insist(switch.request(user, codes(0), vector=packet[4:20])).kind == "reject"


@pytest.mark.parametrize("kind", [USER_NAME, USER_PASSWORD, STATE])
def test_a_packet_with_two_names_passwords_or_states_is_refused(fleet: Fleet, radius: FreeRadius, kind: int) -> None:
    user = fleet.user()
    with radius.nas() as nas:
        state = nas.ask(user, "000000").state
        packet = nas.request(user, codes(0), state, more=bytes([kind, 18]) + b"x" * 16)
        assert nas.insist(packet).kind == "reject"
    assert (counter(fleet, user), fleet.store.read(user).failures) == (0, 1)


def test_a_recorded_packet_opens_nothing_later(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    with radius.nas() as nas:
        packet = nas.request(user, codes(0))
        assert nas.insist(packet).kind == "accept"
        for number in range(ASKED):  # other logins displace the stored verdict
            assert nas.ask(user, codes(1 + number)).kind == "accept"
        radius.restart()
        assert nas.insist(packet).kind == "challenge"
    assert counter(fleet, user) == 1 + ASKED


def test_a_recorded_code_in_a_new_packet_opens_nothing(fleet: Fleet, radius: FreeRadius) -> None:
    user = fleet.user()
    with radius.nas() as nas:
        assert [nas.ask(user, codes(0)).kind for _ in range(2)] == ["accept", "challenge"]


def test_a_repeated_packet_is_accepted_once_authorities_answer(fleet: Fleet) -> None:
    """Both authorities are stopped, and send no reply. They answer the received questions after SIGCONT."""
    user = fleet.user()
    with running(fleet, "radius6.example.org") as radius, radius.nas() as nas:
        assert nas.ask(user, codes(0)).kind == "accept"
        packet = nas.request(user, codes(1))
        for authority in fleet.authorities:
            authority.send_signal(signal.SIGSTOP)
        try:
            assert nas.send(packet, QUIET) is None
            until(lambda: "Do-Not-Respond" in radius.log.read_text(), "FreeRADIUS gives up")
        finally:
            for authority in fleet.authorities:
                authority.send_signal(signal.SIGCONT)
        assert nas.insist(packet).kind == "accept"
    assert counter(fleet, user) == 2


def test_a_recorded_state_opens_nothing_for_another_user(fleet: Fleet, radius: FreeRadius) -> None:
    users = [fleet.user(tokens=(fob(row_needed=True),)) for _ in range(2)]
    with radius.nas() as nas:
        state = nas.ask(users[0], codes(3)).state
        assert nas.ask(users[1], codes(4), state).kind == "challenge"
    with radius.nas("switch") as other:
        assert other.ask(users[0], codes(4), state).kind == "reject", "the State is for the service openvpn"


# ---- pam_radius_auth


def test_stock_pam_radius_auth_logs_in_over_a_challenge(fleet: Fleet, radius: FreeRadius, tmp_path: Path) -> None:
    """FreeRADIUS must accept packets without a Message-Authenticator: Debian 12's module omits this attribute."""
    old = radius.folder / pack.CLIENTS
    text = old.read_text()
    old.write_text(text.replace("require_message_authenticator = yes", "require_message_authenticator = no"))
    main = radius.folder / pack.CONFIGURATION
    configuration = main.read_text()
    main.write_text(configuration.replace("if (!&Message-Authenticator &&", "if (!&User-Name &&"))
    radius.restart()
    try:
        _log_in_by_pam(fleet, radius, tmp_path)
    finally:
        old.write_text(text)
        main.write_text(configuration)
        radius.restart()


def test_pam_radius_auth_without_message_authenticator_is_refused(
    fleet: Fleet, radius: FreeRadius, tmp_path: Path
) -> None:
    user = fleet.user()
    confdir = pam_service(radius, tmp_path, 3, "retry=1")
    done = login("vpn", user, [codes(0)], confdir)
    assert done.result in (Result.AUTHINFO_UNAVAIL, Result.AUTH_ERR), done
    assert counter(fleet, user) == 0


def pam_service(radius: FreeRadius, folder: Path, seconds: int, *options: str) -> Path:
    """Write the PAM service `vpn`, which waits `seconds` for FreeRADIUS. Return the folder of the PAM service."""
    servers, confdir = folder / "servers", folder / "pam.d"
    servers.touch(0o600)
    servers.write_text(f"{HOST}:{radius.port} {radius.secrets['vpn']} {seconds}\n")
    confdir.mkdir()
    arguments = " ".join((f"conf={servers}", "prompt=Code", "prompt_attribute", *options))
    service(confdir, "vpn", f"auth required {PAM_MODULE} {arguments}")
    return confdir


def _log_in_by_pam(fleet: Fleet, radius: FreeRadius, tmp_path: Path) -> None:
    confdir = pam_service(radius, tmp_path, 20)
    user = fleet.user(tokens=(fob(row_needed=True),))

    def attempt(*answers: str) -> Login:
        return login("vpn", user, answers, confdir)

    over_a_challenge = attempt(codes(3), codes(4))
    assert over_a_challenge.result is Result.SUCCESS, over_a_challenge
    assert [prompt.text for prompt in over_a_challenge.prompts] == ["Code: ", NEXT_PROMPT]
    assert attempt(codes(5)).result is Result.SUCCESS
    assert attempt("000000", "000001").result is Result.AUTH_ERR


# ---- authorities


def test_a_thousand_logins_lose_none_while_an_authority_is_killed(fleet: Fleet, radius: FreeRadius) -> None:
    """The short form of the test in tests/torture/test_radius.py."""
    log_in_under_load(fleet, radius, logins=100, kills=1)


def test_without_an_authority_there_is_no_reply(fleet: Fleet) -> None:
    """A client can then ask another server, or fall back to local accounts. A refusal would prevent both."""
    user = fleet.user()
    with running(fleet, "radius2.example.org") as radius, radius.nas() as nas:
        packet = nas.request(user, codes(0))
        for authority in fleet.authorities:
            authority.end(signal.SIGKILL)
        try:
            assert nas.send(packet, 2 * QUIET) is None
        finally:
            for authority in fleet.authorities:
                authority.start()
        assert nas.ask(user, codes(0)).kind == "accept"


def test_a_revoked_freeradius_refuses_at_once(fleet: Fleet) -> None:
    with running(fleet, "radius3.example.org") as radius, radius.nas() as nas:
        user = fleet.user()
        assert nas.ask(user, codes(0)).kind == "accept"
        fleet.members.revoke(radius.name)
        assert nas.ask(user, codes(1)).kind == "reject"
    assert counter(fleet, user) == 1


def test_an_impostor_of_an_authority_is_not_believed(fleet: Fleet, tmp_path: Path) -> None:
    """FreeRADIUS sends no reply, because another CA has signed the impostor's certificate."""
    authority, asked = tls.Authority("another CA"), list[tls.Request]()

    def reply(request: tls.Request) -> tls.Reply:
        asked.append(request)
        return 200, {"control:Tmp-String-3": {"value": ["accepted"], "do_xlat": False, "op": ":="}}

    server = tls.Server(authority.sign(server=True), tmp_path, reply)
    try:
        with running(fleet, "radius4.example.org") as radius:
            text = pack.configuration([f"{HOST}:{server.port}"], str(radius.folder))
            (radius.folder / pack.CONFIGURATION).write_text(text)
            radius.restart()
            with radius.nas() as nas:
                assert nas.send(nas.request(fleet.user(), codes(0)), 2 * QUIET) is None
    finally:
        server.close()
    assert asked == []


# ---- the command


def test_the_files_belong_to_root_and_only_the_key_to_freeradius(radius: FreeRadius) -> None:
    for name in (pack.CONFIGURATION, pack.CLIENTS, pack.LISTEN, pack.MEMBER):
        status = (radius.folder / name).stat()
        assert status.st_uid == 0, name
        assert stat.S_IMODE(status.st_mode) in (0o640, 0o644), name
    assert stat.S_IMODE((radius.folder / pack.CLIENTS).stat().st_mode) == 0o640
    key = radius.folder / pack.TLS / "key.pem"
    assert (key.owner(), stat.S_IMODE(key.stat().st_mode)) == (pack.ACCOUNT, 0o600)


def test_a_second_installation_keeps_the_certificate_and_the_clients(radius: FreeRadius) -> None:
    kept = [radius.folder / name for name in (pack.CLIENTS, pack.LISTEN, "tls/certificate.pem")]
    before = [path.read_bytes() for path in kept]
    (radius.folder / pack.CONFIGURATION).write_text("broken {")
    done = radius.command("install")
    assert "FreeRADIUS asks" in done.stdout
    assert "{" in (radius.folder / pack.CONFIGURATION).read_text()
    assert [path.read_bytes() for path in kept] == before
    assert pack.problem(str(radius.folder)) is None


def test_a_comment_in_another_encoding_is_kept_and_no_error(radius: FreeRadius, tmp_path: Path) -> None:
    path = radius.folder / pack.CLIENTS
    before = path.read_bytes()
    try:
        path.write_bytes(before + b"# K\xfcche\n")
        radius.command("client", "kitchen", "127.0.0.77")
        assert path.read_bytes().startswith(before + b"# K\xfcche\n\nclient kitchen {")
        path.write_bytes(before + b"client K\xfcche {\n")
        assert pack.problem(str(radius.folder)) is not None
    finally:
        path.write_bytes(before)


def test_a_client_that_freeradius_refuses_is_not_kept(radius: FreeRadius) -> None:
    path = radius.folder / pack.CLIENTS
    before = path.read_text()
    assert "already in" in radius.command("client", "vpn", "192.0.2.9", status=1).stderr
    for name, address in (
        ("Bad Name", "192.0.2.9"),
        ("x", "not an address"),
        ("x }", "192.0.2.9"),
        ("x", "192.0.2.9/8"),
    ):
        radius.command("client", name, address, status=2)
    path.write_text(before + "broken {\n")
    assert "FreeRADIUS does not accept" in radius.command("client", "x", "192.0.2.9", status=1).stderr
    assert path.read_text() == before + "broken {\n"
    path.write_text(before)
    assert "another client has" in radius.command("client", "twin", "127.0.0.1", status=1).stderr
    assert path.read_text() == before


def test_a_renewed_certificate_is_used_without_a_restart(fleet: Fleet) -> None:
    with running(fleet, "radius5.example.org") as radius, radius.nas() as nas:
        user = fleet.user()
        assert nas.ask(user, codes(0)).kind == "accept"
        command = [
            sys.executable,
            "-m",
            "pam_totp.cli",
            "join",
            "--renew",
            "--config",
            str(radius.folder / pack.MEMBER),
        ]
        done = subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for authority in fleet.authorities:  # close all open connections
            authority.end(signal.SIGKILL)
            authority.start()
        assert nas.ask(user, codes(1)).kind == "accept"


@with_mounts
def test_the_host_gets_a_drop_in_and_a_timer(fleet: Fleet) -> None:
    """The test writes to a private copy of /etc."""
    folder = Path(pack.FOLDER)
    made = FreeRadius.__new__(FreeRadius)
    made.folder = folder
    line = fleet.join_line("radius7.example.org").to_text() + "\n"
    try:
        assert "cancelled" in made.command("install", stdin=line, status=1).stderr
        assert not folder.exists()
        made.command("install", "--yes", stdin=line)
        drop_in = Path(pack.DROP_IN).read_text()
        assert f"\nExecStart=\nExecStart={pack.PROGRAM} -f -d {folder} -l stdout\n" in drop_in
        renewal = Path(pack.UNITS, "pam_totp-radius.service")
        assert f"join --renew --config {folder}/member.toml\n" in renewal.read_text()
        if shutil.which("systemd-analyze") is not None:
            command = ["systemd-analyze", "verify", str(renewal), f"{pack.UNITS}/{pack.TIMER}"]
            verified = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line for line in verified.stderr.splitlines() if "pam_totp-radius" in line]
            assert [line for line in lines if "pam-totp is not executable" not in line] == []
        made.command("install")  # without a question
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        Path(pack.DROP_IN).unlink(missing_ok=True)


def test_a_wrong_line_installs_nothing(fleet: Fleet, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    folder = tmp_path / "radius"
    made = FreeRadius.__new__(FreeRadius)
    made.folder = folder
    done = made.command("install", stdin="pam_totp-join:1:nonsense\n", status=1)
    assert "must be a join line" in done.stderr
    assert not (folder / pack.CONFIGURATION).exists()
