"""Tests of an authority over HTTPS: certificates, permissions, dialogues, joining, renewal, and shutdown."""

from __future__ import annotations

import secrets
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pam_totp.authority import certificates
from pam_totp.authority.budget import BURST
from pam_totp.authority.certificates import CLIENT, Issuer
from pam_totp.core.record import HotpToken
from pam_totp.core.settings import parse_site
from pam_totp.member import joining, wire
from pam_totp.member.joining import renew
from pam_totp.store import StoreError
from tests.core.racing import in_threads
from tests.support.cluster import with_postgresql
from tests.support.fleet import HOST, Client, Fleet, Member, question
from tests.support.site import codes, until

pytestmark = with_postgresql
REQUESTS: list[tuple[str, str, wire.Message | None]] = [
    ("POST", wire.ANSWER_PATH, question("alice", "123456")),
    ("POST", wire.BEGIN_PATH, wire.Begin(user="alice", service="sshd", rhost=None)),
    ("POST", wire.REDEEM_PATH, wire.Redeem(id="1" * 32, user="alice", service="sshd", rhost=None, ticket="x")),
    ("POST", wire.RENEW_PATH, wire.Renew(csr="request")),
    ("GET", wire.HEALTH_PATH, None),
]


def counter(fleet: Fleet, user: str) -> int:
    token = fleet.store.read(user).tokens[0]
    assert isinstance(token, HotpToken)
    return token.counter


# ---- certificates


@pytest.fixture(scope="module")
def other_ca(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    folder = tmp_path_factory.mktemp("other")
    (folder / "ca.key").write_text(fleet.key)
    (folder / "ca.pem").write_text(certificates.make_ca(fleet.key, "pam_totp"))
    return Issuer(str(folder / "ca.pem"), str(folder / "ca.key"))


WRONG = {  # kind of certificate -> reason in the authority's log, TLS alert to the member
    "expired": ("certificate has expired", "certificate expired"),
    "400 days early": ("certificate is not yet valid", "bad certificate"),
    "self-signed": ("self-signed certificate", "unknown ca"),
    "other CA": ("unable to get local issuer certificate", "unknown ca"),
    "of an authority": ("unsuitable certificate purpose", "unsupported certificate"),
}


def wrong_certificate(fleet: Fleet, kind: str, name: str, other_ca: Issuer, monkeypatch: pytest.MonkeyPatch) -> str:
    request = certificates.make_request(fleet.key)
    if kind == "expired":
        return fleet.issuer._sign(request, name, CLIENT, [f"DNS:{name}"], 0)
    if kind == "400 days early":
        monkeypatch.setattr(certificates, "BACKDATED", timedelta(days=-400))
        return fleet.issuer.sign_member(request, name)
    if kind == "self-signed":
        return certificates.make_ca(fleet.key, name)
    if kind == "other CA":
        return other_ca.sign_member(request, name)
    return fleet.issuer.sign_authority(request, [HOST])


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_certificate_is_refused_and_both_sides_know_why(
    fleet: Fleet, other_ca: Issuer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    member, token = fleet.member(), secrets.token_bytes(32)
    member.certificate.write_text(wrong_certificate(fleet, kind, member.name, other_ca, monkeypatch))
    fleet.members.add(member.name, ["web"], None, token, 60)
    fleet.members.join(token, member.fingerprint)
    with member.client() as client, pytest.raises(OSError) as error:
        client.ask(question(fleet.user(), codes(0)))
    reason, alert = WRONG[kind]
    fleet.authorities[0].waits_for(f"refused: handshake failed: {reason}", f"rhost={HOST}")
    assert alert in str(error.value).lower().replace("_", " ")


def test_a_certificate_without_a_row_is_no_member(fleet: Fleet) -> None:
    member, user = fleet.member(), fleet.user()
    member.certificate.write_text(fleet.issuer.sign_member(certificates.make_request(fleet.key), member.name))
    with member.client() as client:
        for method, path, message in REQUESTS:
            status, content = client.send(method, path, None if message is None else message.to_json())
            assert (status, content) == (401, {"error": "the certificate belongs to no member"})
    fleet.authorities[0].waits_for("belongs to no member", member.name, f"rhost={HOST}")
    assert counter(fleet, user) == 0


def test_without_a_certificate_only_the_ca_and_joining_are_offered(fleet: Fleet) -> None:
    with fleet.anonymous() as client:
        for method, path, message in REQUESTS:
            status, content = client.send(method, path, None if message is None else message.to_json())
            assert (status, content) == (401, {"error": "a certificate of a member is required"})
        status, content = client.send("GET", wire.CA_PATH)
        assert status == 200
        assert certificates.fingerprint(content["ca"]).hex() == fleet.pin


def test_a_revoked_member_is_out_at_once_on_a_kept_connection(fleet: Fleet) -> None:
    member, user = fleet.member(), fleet.user()
    with member.client() as client, member.client(1) as other:
        assert client.ask(question(user, codes(0))).accepted
        assert other.ask(question(user, codes(1))).accepted
        fleet.command("member", "revoke", member.name, "--yes")
        for connection in (client, other):
            assert connection.post(wire.ANSWER_PATH, question(user, codes(2))).status == 401
    fleet.authorities[0].waits_for("the member is revoked", member.name)
    assert counter(fleet, user) == 2


def test_only_tls_1_3_is_accepted(fleet: Fleet) -> None:
    context = fleet.context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with Client(fleet.authorities[0].port, context) as client, pytest.raises(OSError):
        client.send("GET", wire.CA_PATH)


def test_no_session_is_resumed_so_each_handshake_checks_the_certificate(fleet: Fleet) -> None:
    with fleet.member().client() as client:
        assert client.send("GET", wire.HEALTH_PATH).status == 200
        assert client.http.sock.session is None or not client.http.sock.session.has_ticket


# ---- questions


def test_a_member_gets_verdicts_on_a_kept_connection(fleet: Fleet) -> None:
    user, member = fleet.user(), fleet.member()
    with member.client() as client:
        for number in range(3):
            assert client.ask(question(user, codes(number))).by == "code"
        assert not client.ask(question(user, codes(0))).accepted
    fleet.authorities[0].waits_for(f"accepted user={user} by=code", "next=3", "at=2", f"member={member.name}")
    fleet.authorities[0].waits_for(f"refused user={user} reason=replayed", f"member={member.name}", "rhost=192.0.2.7")


def test_a_member_asks_only_for_its_groups_and_services(fleet: Fleet) -> None:
    user, other = fleet.user(), fleet.user()
    group = f"users-of-{user}"
    fleet.command("member", "groups", "db", "--allow", group)
    fleet.command("member", "groups", group, "--put", user)
    member = fleet.member("db", services=["sudo"])
    with member.client() as client:
        for name, service in ((other, "sudo"), ("nobody", "sudo"), (user, "sshd")):
            status, content = client.post(wire.ANSWER_PATH, question(name, codes(0), service=service))
            assert status == 403
            assert "the member may not ask about this" in content["error"]
            assert client.post(wire.BEGIN_PATH, wire.Begin(user=name, service=service, rhost=None)).status == 403
        assert client.ask(question(user, codes(0), service="sudo")).accepted
    fleet.authorities[0].waits_for(f"refused user={other} reason=not-this-member", f"member={member.name}")


def test_the_same_question_to_another_authority_gets_the_same_verdict(fleet: Fleet) -> None:
    user, member, another = fleet.user(), fleet.member(), fleet.member()
    right, wrong = question(user, codes(0)), question(user, "000000")
    verdicts = [member.ask(right, 0), member.ask(wrong, 0)]
    assert [member.ask(right, 1), member.ask(wrong, 1)] == verdicts
    assert fleet.store.read(user).failures == 1
    assert not another.ask(right).accepted, "the id belongs to the member"
    fleet.authorities[1].waits_for(f"accepted user={user} by=code", "again=yes")


def test_a_dialogue_of_three_prompts_may_change_the_authority(fleet: Fleet) -> None:
    user = fleet.user(failures=20, failures_at=2**31)
    member = fleet.member()
    first = question(user, codes(5))
    assert not member.ask(first, 0).accepted
    assert member.ask(question(user, codes(6), codes(5), id=first.id), 1).again
    assert member.ask(question(user, codes(7), codes(5), codes(6), id=first.id), 0).by == "row"


def test_begin_passes_by_grace_and_nullok_of_the_authority_only(fleet: Fleet) -> None:
    user, member = fleet.user(), fleet.member()

    def begin(client: Client, name: str, service: str) -> Any:
        reply = client.post(wire.BEGIN_PATH, wire.Begin(user=name, service=service, rhost="192.0.2.7"))
        assert reply.status == 200
        return reply.content["by"]

    with member.client() as client:
        assert [begin(client, user, service) for service in ("graceful", "open", "sshd")] == [None] * 3
        assert [begin(client, "nobody", service) for service in ("graceful", "open", "sshd")] == [
            None,
            "not-enrolled",
            None,
        ]
        assert client.ask(question(user, codes(0), service="graceful")).accepted
        assert begin(client, user, "graceful") == "grace"
    with fleet.member().client() as client:
        assert begin(client, user, "graceful") is None, "grace must apply to one member only"


def test_a_guessing_member_is_held_while_others_log_in(fleet: Fleet) -> None:
    user, guesser, honest = fleet.user(), fleet.member(), fleet.member()
    with guesser.client() as client, honest.client() as other:
        for number in range(3 * BURST):  # more refusals than the budget allows and regains during the test
            assert not client.ask(question(f"unknown{number}", "000000")).accepted
        assert not client.ask(question(user, codes(0))).accepted
        assert other.ask(question(user, codes(0))).accepted
        assert client.ask(question(user, codes(1, 2))).by == "row"
    fleet.authorities[0].waits_for("reason=member-budget", f"member={guesser.name}")
    fleet.authorities[0].waits_for("too many refused answers", f"member={guesser.name}")


# ---- joining and renewal


def join(fleet: Fleet, line: wire.JoinLine, csr: str | None = None, authority: int = 0) -> tuple[int, dict[str, Any]]:
    with fleet.anonymous(authority) as client:
        request = certificates.make_request(fleet.key) if csr is None else csr
        return client.post(wire.JOIN_PATH, wire.Join(token=line.token, csr=request))


def joined(fleet: Fleet, content: dict[str, Any], folder: Path) -> Member:
    """Return the member with the certificate from `content`, the reply of an authority."""
    member = Member(fleet, content["name"], folder)
    member.key.write_text(fleet.key)
    member.certificate.write_text(content["certificate"])
    return member


def test_a_join_line_makes_a_host_a_member_once(fleet: Fleet, tmp_path: Path) -> None:
    name = f"host{secrets.token_hex(4)}.example.org"
    added = fleet.command("member", "add", name, "--group", "web")
    line = wire.JoinLine.from_text(added.stdout)
    assert (list(line.authorities), line.pin) == (fleet.addresses, fleet.pin)
    assert "within an hour" in added.stderr
    status, content = join(fleet, line)
    assert (status, content["name"], content["authorities"]) == (200, name, fleet.addresses)
    member = joined(fleet, content, tmp_path)
    user = fleet.user()
    assert member.ask(question(user, codes(0))).accepted
    assert join(fleet, line, authority=1)[0] == 403
    assert member.ask(question(user, codes(1))).accepted
    fleet.authorities[0].waits_for("changed what=member-join", f"member={name}", member.fingerprint.hex())
    assert line.token not in fleet.authorities[0].log.read_text()


def test_of_racing_joins_over_two_authorities_one_succeeds(fleet: Fleet, tmp_path: Path) -> None:
    line = fleet.join_line(f"host{secrets.token_hex(4)}")
    replies: list[tuple[int, dict[str, Any]]] = []

    def race(number: int) -> str:
        replies.append(join(fleet, line, authority=number % 2))
        return ""

    in_threads(6, race)
    assert sorted(status for status, _ in replies) == [200] + [403] * 5
    content = next(content for status, content in replies if status == 200)
    assert joined(fleet, content, tmp_path).ask(question(fleet.user(), codes(0))).accepted


def test_a_wrong_token_or_request_joins_nothing(fleet: Fleet) -> None:
    line = fleet.join_line(f"host{secrets.token_hex(4)}")
    status, content = join(fleet, line._replace(token="0" * 32))
    assert status == 403
    assert "token is unknown, used or expired" in content["error"]
    fleet.authorities[0].waits_for("refused: wrong join token", f"rhost={HOST}")
    status, content = join(fleet, line, csr="no request")
    assert (status, content) == (400, {"error": "the certificate request must be in PEM"})
    assert join(fleet, line)[0] == 200, "a refused request must not use up the token"


def test_a_renewed_certificate_is_used_from_then_on(fleet: Fleet) -> None:
    member, user = fleet.member(), fleet.user()
    with member.client() as old:
        request = certificates.make_request(fleet.key)
        assert old.post(wire.RENEW_PATH, wire.Renew(csr=request)).status == 200
        status, content = old.post(wire.RENEW_PATH, wire.Renew(csr=request))
        assert status == 200
        assert old.ask(question(user, codes(0))).accepted, "the new certificate is still unused"
        member.certificate.write_text(content["certificate"])
        assert member.ask(question(user, codes(1)), 1).accepted
        assert old.post(wire.ANSWER_PATH, question(user, codes(2))).status == 401
    fleet.authorities[0].waits_for("changed what=member-renew", f"member={member.name}", member.fingerprint.hex())


def test_health_has_the_clock_of_the_database_and_the_days_left(fleet: Fleet) -> None:
    member = fleet.member()
    with member.client() as client:
        status, content = client.send("GET", wire.HEALTH_PATH)
    assert (status, content["member"], content["store"]) == (200, member.name, "ok")
    assert content["certificate_days"] in (89, 90)
    assert abs(content["time"] - int(fleet.server.sql("SELECT extract(epoch FROM now())::bigint"))) <= 60


# ---- trouble


@contextmanager
def unreachable(fleet: Fleet) -> Iterator[None]:
    """Disconnect the authorities from the database, and block new connections."""
    name = fleet.url.split("/")[3].partition("?")[0]
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    fleet.server.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", end)
    try:
        yield
    finally:
        fleet.server.sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_without_its_database_an_authority_answers_503(fleet: Fleet) -> None:
    member, user = fleet.member(), fleet.user()
    line = fleet.join_line(f"host{secrets.token_hex(4)}")
    asked = question(user, codes(0))
    with member.client() as client:
        assert not client.ask(question(user, "000000")).accepted
        with unreachable(fleet):
            status, content = client.post(wire.ANSWER_PATH, asked)
            assert (status, content) == (503, {"error": "the database is out of reach"})
            assert join(fleet, line)[0] == 503
        assert client.ask(asked).accepted, "on the same connection"
    fleet.authorities[0].waits_for("error problem=", "the database is out of reach", f"member={member.name}")
    assert join(fleet, line)[0] == 200


def test_an_invalid_site_file_is_no_verdict_until_it_is_mended(fleet: Fleet) -> None:
    member, user, authority = fleet.member(), fleet.user(), fleet.authorities[0]
    with member.client() as client:
        authority.config.write_text("[policy]\nlook_ahead = true\n")
        try:
            assert client.post(wire.ANSWER_PATH, question(user, codes(0))).status == 503
        finally:
            fleet.configure(authority)
        assert client.ask(question(user, codes(0))).accepted
    authority.waits_for("error problem=", "policy.look_ahead")


@contextmanager
def held(fleet: Fleet, user: str) -> Iterator[None]:
    """Lock the record of `user` in the database, so that a decision waits."""
    with psycopg.connect(fleet.url) as connection:
        connection.execute("SELECT 1 FROM pam_totp.record WHERE name = %s FOR UPDATE", [user])
        yield


def waiting(fleet: Fleet) -> bool:
    return fleet.server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") != "0"


def test_many_questions_for_one_user_leave_threads_for_others(fleet: Fleet) -> None:
    flooded, user = fleet.user(), fleet.user()
    one, other = fleet.member(), fleet.member()
    clients = [one.client() for _ in range(20)]
    ended: list[object] = []

    def flood(client: Client) -> None:
        ended.append(client.post(wire.ANSWER_PATH, question(flooded, "000000")).status)

    with held(fleet, flooded):
        threads = [threading.Thread(target=partial(flood, client)) for client in clients]
        for thread in threads:
            thread.start()
        until(lambda: waiting(fleet), "a question waits for the lock of the record")
        assert other.ask(question(user, codes(0))).accepted
        assert ended == []
    for thread in threads:
        thread.join()
    for client in clients:
        client.close()
    assert set(ended) <= {200, 503}


def test_a_stop_completes_the_question_that_was_received(fleet: Fleet) -> None:
    user, member, authority = fleet.user(), fleet.member(), fleet.authorities[1]
    verdicts: list[wire.Verdict] = []
    with member.client(1) as idle:
        idle.ask(question(user, "000000"))
        with held(fleet, user):
            asking = threading.Thread(target=lambda: verdicts.append(member.ask(question(user, codes(0)), 1)))
            asking.start()
            until(lambda: waiting(fleet), "the question waits for the lock of the record")
            authority.send_signal(signal.SIGTERM)
            until(lambda: not listens(authority.port), "the authority closes its listening socket")
        assert authority.end(0) == 0
        asking.join()
        assert [verdict.by for verdict in verdicts] == ["code"]
        with pytest.raises((OSError, HTTPException)):
            idle.ask(question(user, codes(1)))
    authority.start()
    assert member.ask(question(user, codes(1)), 1).accepted


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_a_reload_reads_the_certificates_again_and_survives_bad_ones(fleet: Fleet) -> None:
    member, user, authority = fleet.member(), fleet.user(), fleet.authorities[0]
    file = Path(fleet.issuer.certificate).parent / "authority.pem"
    good = file.read_text()
    with fleet.anonymous() as client:
        client.http.connect()
        before = client.http.sock.getpeercert(binary_form=True)
    try:
        file.write_text("damaged")
        authority.send_signal(signal.SIGHUP)
        authority.waits_for("error problem=", str(file))
        assert member.ask(question(user, codes(0))).accepted
    finally:
        file.write_text(good)
    file.write_text(
        fleet.issuer.sign_authority(certificates.make_request((file.parent / "authority.key").read_text()), [HOST])
    )
    authority.send_signal(signal.SIGHUP)

    def is_new() -> bool:
        with fleet.anonymous() as client:
            client.http.connect()
            return bool(client.http.sock.getpeercert(binary_form=True) != before)

    until(is_new, "new connections get the new certificate")
    assert member.ask(question(user, codes(1))).accepted


def test_a_renewal_that_an_authority_delays_shuts_no_member_out(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delayed certificate must not invalidate a newer certificate of another authority."""
    member, slow = fleet.member(), fleet.authorities[0]
    member.folder.chmod(0o700)
    for path in (member.key, member.certificate, member.ca):
        path.chmod(0o600)
    settings = parse_site(member.site).member
    assert settings is not None
    ended = threading.Event()

    def freeze_while_it_signs() -> None:
        tasks = Path(f"/proc/{slow.pid}/task")
        while not ended.is_set():
            with suppress(OSError):
                if any((task / "children").read_text() for task in tasks.iterdir()):
                    slow.send_signal(signal.SIGSTOP)
                    return

    freezer = threading.Thread(target=freeze_while_it_signs)
    freezer.start()
    monkeypatch.setattr(joining, "STEP_WAIT", 2.0)
    with suppress(StoreError):
        renew(settings)
    ended.set()
    freezer.join()
    slow.send_signal(signal.SIGCONT)
    slow.waits_for("what=member-renew", member.name)
    user = fleet.user()
    for number in range(2):
        assert member.ask(question(user, codes(number)), number).accepted
