"""pam_totp.client: what other applications are told, by the real service and by one that misbehaves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pam_totp import client
from pam_totp.client import Misconfigured, NotAdmitted, Outcome, OutOfReach, Verdict
from tests.conftest import as_root
from tests.site import ME, TREE, Site, codes


def ask(site: Site, code: str | bytes, user: str = ME, **more: object) -> Outcome:
    return client.verify(user, code, service="web", path=str(site.socket), **more)  # type: ignore[arg-type]


def test_the_right_code_is_accepted_once(site: Site) -> None:
    site.start()
    site.enrol()
    assert ask(site, codes(0))
    refused = ask(site, codes(0))
    assert not refused
    assert refused.messages == ("refused; if the code was right, enter two codes in a row, or three",)
    assert site.log.has("accepted", f"user={ME}", "by=code")
    assert site.log.has("refused", "reason=replayed")


def test_two_codes_in_a_row_bring_a_token_back_into_step(site: Site) -> None:
    site.start()
    site.enrol()
    assert not ask(site, codes(500))
    assert ask(site, codes(500, 2))
    assert site.counter() == 502


def test_the_person_is_told_what_was_refused_since_the_last_success(site: Site) -> None:
    site.start()
    site.enrol()
    ask(site, "000000")
    ask(site, "000001")
    assert ask(site, codes(0)).messages == ("2 answers were refused since the last login",)


def test_the_persons_address_is_in_the_log_where_a_listed_client_says_it(site: Site) -> None:
    site.config.write_text(f'[clients]\n"{ME}" = "web"\n')
    site.start()
    site.enrol()
    assert ask(site, codes(0), rhost="192.0.2.7")
    assert site.log.has("accepted", "rhost=192.0.2.7", "pam_totp(web:auth)")


def test_an_earlier_code_stands_for_none(site: Site) -> None:
    site.config.write_text("[policy]\ngrace_period = 3600\n")
    site.start()
    site.enrol()
    assert ask(site, codes(0), rhost="192.0.2.7")
    assert not ask(site, "000000", rhost="192.0.2.7")


def test_who_is_not_enrolled_is_refused_unless_the_site_says_nullok(site: Site) -> None:
    site.start()
    assert ask(site, "123456").verdict is Verdict.REFUSED
    site.config.write_text("[service.web]\nnullok = true\n")
    outcome = ask(site, "123456")
    assert outcome.verdict is Verdict.NOT_ENROLLED
    assert not outcome, "it is for the application to say what that is worth"


@pytest.mark.parametrize("code", ["1" * 513, "12\x0045", b"\xff" * 600, "\ud800"])
def test_a_code_that_nobody_can_have_is_refused_unasked(site: Site, code: str | bytes) -> None:
    assert ask(site, code).verdict is Verdict.REFUSED


@pytest.mark.parametrize("user", ["", "a\0b", "x" * 5000, "\ud800"])
def test_a_name_that_nobody_can_have_is_refused_unasked(site: Site, user: str) -> None:
    assert ask(site, "123456", user).verdict is Verdict.REFUSED


def test_no_text_of_a_name_can_add_a_field_to_the_question(site: Site) -> None:
    site.start()
    site.enrol()
    assert not ask(site, codes(0), user="nobody", rhost=f"x\0user={ME}")
    with suppress(NotAdmitted):  # where we are not root, that is somebody else
        assert not ask(site, codes(0), user=f"nobody user={ME}")
    assert site.counter() == 0


def test_without_a_service_it_says_what_to_do(site: Site) -> None:
    with pytest.raises(OutOfReach, match=r"is 'pam-totp serve' running\?"):
        ask(site, "123456")
    site.start()
    site.kill()
    with pytest.raises(OutOfReach, match=r"is 'pam-totp serve' running\?"):
        ask(site, "123456")


def test_a_store_out_of_reach_is_no_refusal(site: Site) -> None:
    site.start()
    site.enrol()
    site.path().chmod(0o644)
    with pytest.raises(OutOfReach, match="store"):
        ask(site, codes(0))


def test_a_bad_site_file_is_no_refusal(site: Site) -> None:
    site.config.write_text("[polcy]\n")
    site.start()
    with pytest.raises(Misconfigured, match="pam-totp policy"):
        ask(site, "123456")


@as_root
def test_an_account_that_is_not_listed_is_told_where_to_be_listed(site: Site) -> None:
    site.start()
    site.enrol(user="root")
    asking = (
        "import os, sys; from pam_totp import client\n"  # before it leaves root: the tree may be closed to others
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        f"print(client.verify('root', sys.argv[1], service='web', path={str(site.socket)!r}).verdict.value)"
    )

    def as_nobody() -> str:
        done = subprocess.run([sys.executable, "-c", asking, codes(0)], cwd=TREE, capture_output=True, text=True)  # noqa: PLW1510
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    assert as_nobody().startswith("pam_totp.client.NotAdmitted: ")
    assert "[clients] in /etc/pam_totp.toml" in as_nobody()
    site.config.write_text('[clients]\nnobody = "web"\n')
    assert as_nobody() == "accepted"


def test_one_code_from_many_threads_gets_one_in_however_full_the_service_is(site: Site) -> None:
    site.start()
    site.enrol()

    def gets_in(_: int) -> bool:
        try:
            return ask(site, codes(0), timeout=60.0).accepted
        except OutOfReach:  # on a slow disk not all have the lock within five seconds
            return False

    with ThreadPoolExecutor(200) as many:
        assert sum(many.map(gets_in, range(200))) == 1


# A service that misbehaves


@contextmanager
def answering(path: Path, *dialogues: Callable[[socket.socket], None]) -> Iterator[list[bytes]]:
    """A listener that treats one connection after the other as told; what it was sent comes into the list."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for dialogue in dialogues:
                channel, _ = listener.accept()
                with channel:
                    channel.settimeout(10)
                    heard.append(channel.recv(5000))
                    dialogue(channel)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield heard
        thread.join(10)
        assert not thread.is_alive()


def saying(*packets: bytes) -> Callable[[socket.socket], None]:
    def dialogue(channel: socket.socket) -> None:
        for packet in packets:
            channel.send(packet)
            if packet[:1] in b"pPg":
                channel.recv(5000)

    return dialogue


@pytest.mark.parametrize(
    "packets",
    [
        *((b"r0",), (b"p", b"r00"), (b"p", b"r"), (b"p", b"r-1"), (b"p", b"r\xc2\xb2"), (b"p", b"r0x"), (b"p", b"r13")),
        *((b"x",), (b"p", b"A123456"), (b"p", b"r0" + b"0" * 5000), tuple([b"i"] * 17)),
    ],
)
def test_what_is_not_agreed_lets_nobody_in(site: Site, packets: tuple[bytes, ...]) -> None:
    with answering(site.socket, saying(*packets)), pytest.raises(OutOfReach):
        ask(site, "123456")


def test_a_refusal_before_the_question_means_that_we_may_not_ask(site: Site) -> None:
    with answering(site.socket, saying(b"r7")), pytest.raises(NotAdmitted):
        ask(site, "123456")


def test_the_code_is_sent_once_whatever_is_asked(site: Site) -> None:
    got: list[bytes] = []

    def greedy(channel: socket.socket) -> None:
        for packet in (b"g", b"p", b"P", b"g"):
            channel.send(packet)
            got.append(channel.recv(5000))
        channel.send(b"r7")

    with answering(site.socket, greedy):
        assert not ask(site, "123456")
    assert got == [b"N", b"A123456", b"N", b"N"]


def test_hung_up_on_before_the_question_it_asks_again_and_after_it_never(site: Site) -> None:
    with answering(site.socket, saying(), saying(), saying(b"p", b"r0")) as heard:
        assert ask(site, "123456")
    assert len(heard) == 3
    site.socket.unlink()
    with answering(site.socket, saying(b"p")) as heard, pytest.raises(OutOfReach, match="may be used up"):
        ask(site, "123456")
    assert len(heard) == 1


def test_silence_ends_at_the_time_limit(site: Site) -> None:
    done = threading.Event()

    def silent(channel: socket.socket) -> None:
        done.wait(10)

    begun = time.monotonic()
    with answering(site.socket, silent):
        with pytest.raises(OutOfReach, match="in time"):
            ask(site, "123456", timeout=0.2)
        done.set()
    assert time.monotonic() - begun >= 0.2


def test_it_stands_on_the_standard_library_alone() -> None:
    found = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {os.fspath(TREE)!r}); import pam_totp.client",
        ],
        check=False,
    )
    assert found.returncode == 0
