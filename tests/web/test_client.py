"""Tests of pam_totp.client with the real service, and with defective services."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from pam_totp import client
from pam_totp.client import Misconfigured, NotAdmitted, Outcome, OutOfReach, Verdict
from tests.conftest import as_root
from tests.support.site import ME, TREE, Site, codes


def ask(site: Site, code: str | bytes, user: str = ME, **options: Any) -> Outcome:
    return client.verify(user, code, service="web", path=str(site.socket), **options)


def test_the_right_code_is_accepted_once(site: Site) -> None:
    site.start()
    site.enrol()
    assert ask(site, codes(0))
    refused = ask(site, codes(0))
    assert not refused
    assert refused.messages == (
        "Refused. Try the next code. If that is refused too, enter two codes in a row in one answer, or three.",
    )
    assert site.log.has("accepted", f"user={ME}", "by=code")
    assert site.log.has("refused", "reason=replayed")


def test_two_codes_in_a_row_resynchronise_a_token(site: Site) -> None:
    site.start()
    site.enrol()
    assert not ask(site, codes(500))
    assert ask(site, codes(500, 2))
    assert site.counter() == 502


def test_the_messages_count_refusals_since_the_last_success(site: Site) -> None:
    site.start()
    site.enrol()
    ask(site, "000000")
    ask(site, "000001")
    assert ask(site, codes(0)).messages == ("2 answers were refused since the last login",)


def test_the_rhost_of_a_listed_client_is_logged(site: Site) -> None:
    site.config.write_text(f'[clients]\n"{ME}" = "web"\n')
    site.start()
    site.enrol()
    assert ask(site, codes(0), rhost="192.0.2.7")
    assert site.log.has("accepted", "rhost=192.0.2.7", "pam_totp(web:auth)")


def test_the_grace_period_does_not_replace_a_code(site: Site) -> None:
    site.config.write_text("[policy]\ngrace_period = 3600\n")
    site.start()
    site.enrol()
    assert ask(site, codes(0), rhost="192.0.2.7")
    assert not ask(site, "000000", rhost="192.0.2.7")


def test_a_user_without_token_is_refused_unless_nullok_is_set(site: Site) -> None:
    site.start()
    assert ask(site, "123456").verdict is Verdict.REFUSED
    site.config.write_text("[service.web]\nnullok = true\n")
    outcome = ask(site, "123456")
    assert outcome.verdict is Verdict.NOT_ENROLLED
    assert not outcome, "bool(Outcome(Verdict.NOT_ENROLLED)) is False"


@pytest.mark.parametrize("code", ["1" * 513, "12\x0045", b"\xff" * 600, "\ud800"])
def test_an_impossible_code_is_refused_without_asking(site: Site, code: str | bytes) -> None:
    assert ask(site, code).verdict is Verdict.REFUSED


@pytest.mark.parametrize("user", ["", "a\0b", "x" * 5000, "\ud800"])
def test_an_impossible_name_is_refused_without_asking(site: Site, user: str) -> None:
    assert ask(site, "123456", user).verdict is Verdict.REFUSED


def test_no_argument_can_inject_a_field_into_the_hello(site: Site) -> None:
    site.start()
    site.enrol()
    assert not ask(site, codes(0), user="other", rhost=f"x\0user={ME}")
    with suppress(NotAdmitted):  # the service lets an ordinary account ask only about itself
        assert not ask(site, codes(0), user=f"other user={ME}")
    assert site.counter() == 0


def test_a_missing_service_raises_an_error_with_a_hint(site: Site) -> None:
    with pytest.raises(OutOfReach, match=r"start 'pam-totp serve'"):
        ask(site, "123456")
    site.start()
    site.kill()
    with pytest.raises(OutOfReach, match=r"start 'pam-totp serve'"):
        ask(site, "123456")


def test_an_unreadable_store_raises_an_error(site: Site) -> None:
    site.start()
    site.enrol()
    site.path().chmod(0o644)
    with pytest.raises(OutOfReach, match="store"):
        ask(site, codes(0))


def test_an_invalid_site_file_raises_an_error(site: Site) -> None:
    site.config.write_text("[polcy]\n")
    site.start()
    with pytest.raises(Misconfigured, match="pam-totp policy"):
        ask(site, "123456")


@as_root
def test_an_unlisted_account_gets_an_error_that_names_the_list(site: Site) -> None:
    site.start()
    site.enrol(user="root")
    script = (
        "import os, sys; from pam_totp import client\n"  # import as root: other accounts might lack access to the tree
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        f"print(client.verify('root', sys.argv[1], service='web', path={str(site.socket)!r}).verdict.value)"
    )

    def ask_as_nobody() -> str:
        done = subprocess.run([sys.executable, "-c", script, codes(0)], cwd=TREE, capture_output=True, text=True)  # noqa: PLW1510
        return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

    assert ask_as_nobody().startswith("pam_totp.client.NotAdmitted: ")
    assert "[clients] in /etc/pam_totp.toml" in ask_as_nobody()
    site.config.write_text('[clients]\nnobody = "web"\n')
    assert ask_as_nobody() == "accepted"


def test_one_of_200_threads_with_the_same_code_is_accepted(site: Site) -> None:
    site.start()
    site.enrol()

    def is_accepted(_: int) -> bool:
        try:
            return ask(site, codes(0), timeout=60.0).accepted
        except OutOfReach:  # some logins wait for the lock for over five seconds if the disk is slow
            return False

    with ThreadPoolExecutor(200) as threads:
        assert sum(threads.map(is_accepted, range(200))) == 1


# Defective services


@contextmanager
def fake_service(path: Path, *dialogues: Callable[[socket.socket], None]) -> Iterator[list[bytes]]:
    """Serve one connection for each of `dialogues`, in order. Yield a list that receives each hello."""
    hellos: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for dialogue in dialogues:
                channel, _ = listener.accept()
                with channel:
                    channel.settimeout(10)
                    hellos.append(channel.recv(5000))
                    dialogue(channel)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield hellos
        thread.join(10)
        assert not thread.is_alive()


def sends(*packets: bytes) -> Callable[[socket.socket], None]:
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
def test_an_unexpected_reply_is_never_an_acceptance(site: Site, packets: tuple[bytes, ...]) -> None:
    with fake_service(site.socket, sends(*packets)), pytest.raises(OutOfReach):
        ask(site, "123456")


def test_a_refusal_before_the_prompt_means_not_admitted(site: Site) -> None:
    with fake_service(site.socket, sends(b"r7")), pytest.raises(NotAdmitted):
        ask(site, "123456")


def test_the_code_is_sent_only_once_even_if_the_service_repeats_its_prompt(site: Site) -> None:
    replies: list[bytes] = []

    def greedy(channel: socket.socket) -> None:
        for packet in (b"g", b"p", b"P", b"g"):
            channel.send(packet)
            replies.append(channel.recv(5000))
        channel.send(b"r7")

    with fake_service(site.socket, greedy):
        assert not ask(site, "123456")
    assert replies == [b"N", b"A123456", b"N", b"N"]


def test_the_client_reconnects_only_before_the_code_was_sent(site: Site) -> None:
    with fake_service(site.socket, sends(), sends(), sends(b"p", b"r0")) as hellos:
        assert ask(site, "123456")
    assert len(hellos) == 3
    site.socket.unlink()
    with fake_service(site.socket, sends(b"p")) as hellos, pytest.raises(OutOfReach, match="may be used up"):
        ask(site, "123456")
    assert len(hellos) == 1


@pytest.mark.parametrize(
    ("packets", "error"),
    [
        ((b"p",), OutOfReach),
        ((b"p", b"x"), OutOfReach),
        ((b"p", b"r9"), OutOfReach),
        ((b"p", b"r3"), Misconfigured),
        ((b"r7",), NotAdmitted),
        (None, OutOfReach),
    ],
)
def test_no_variable_of_a_failed_call_shows_the_code(
    site: Site, packets: tuple[bytes, ...] | None, error: type[Exception]
) -> None:
    with nullcontext() if packets is None else fake_service(site.socket, sends(*packets)):
        with pytest.raises(error) as caught:
            ask(site, "314159")
        variables = variables_of_the_client(caught.value)
    assert variables
    assert not [text for text in variables if "314159" in text]


def test_no_variable_of_a_wrong_call_shows_the_code(site: Site) -> None:
    with pytest.raises(ValueError) as caught:
        client.verify(ME, "314159", service="", path=str(site.socket))
    assert not [text for text in variables_of_the_client(caught.value) if "314159" in text]


def variables_of_the_client(error: BaseException) -> list[str]:
    """Return the variables in every frame of the client in the traceback, as a web framework would show them."""
    frames = [
        frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == client.__file__
    ]
    return [f"{name} = {value!r}" for frame in frames for name, value in frame.f_locals.items()]


def test_a_silent_service_ends_in_a_timeout(site: Site) -> None:
    done = threading.Event()

    def silent(channel: socket.socket) -> None:
        done.wait(10)

    started = time.monotonic()
    with fake_service(site.socket, silent):
        with pytest.raises(OutOfReach, match="in time"):
            ask(site, "123456", timeout=0.2)
        done.set()
    assert time.monotonic() - started >= 0.2


def test_the_client_imports_only_the_standard_library() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.insert(0, {os.fspath(TREE)!r}); import pam_totp.client",
        ],
        check=False,
    )
    assert done.returncode == 0
