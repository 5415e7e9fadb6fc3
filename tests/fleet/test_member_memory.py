"""Tests of the memory of a member's service: this memory contains no password or code after logins."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from pam_totp.core.answer import CROCKFORD
from tests.conftest import as_root
from tests.logins.test_memory import LENGTHS, password
from tests.support.memory import copies
from tests.support.pamconf import Result, login, service
from tests.support.site import ME, MODULE, Site
from tests.support.tls import ACCEPTED, REFUSED, Fleet, Reply, Request

FURTHER = 10  # logins before the search


@pytest.fixture
def member(members: Fleet, site: Site) -> Iterator[Site]:
    """Yield the installation of a member. The authority accepts answers that begin with 9."""

    def reply(request: Request) -> Reply:
        return 200, ACCEPTED if str(request.document["answer"]).startswith("9") else REFUSED

    server = members.server(reply)
    paths = "".join(f"{name} = '{members.credentials}/{name}.pem'\n" for name in ("certificate", "key", "ca"))
    site.config.write_text(f"[member]\nauthorities = ['{server.address}']\n{paths}forward_digits = 8\n")
    yield site


def recovery_code() -> str:
    """Return a recovery code that the authority refuses."""
    return "A" + "".join(secrets.choice(CROCKFORD) for _ in range(15))


@as_root
def test_the_service_of_a_member_keeps_no_password_and_no_code(member: Site) -> None:
    serving = member.start()
    line = f"auth required {MODULE} socket={member.socket} nodelay"
    service(member.confdir, "plain", line)
    service(member.confdir, "forward", f"{line} forward_pass")

    def log_in_all() -> list[bytes]:
        said: list[str] = []
        for length in LENGTHS[::2]:
            right, wrong = (f"{first}{secrets.randbelow(10**7):07}" for first in (9, 1))
            forwarded, mistyped, recovery = password(length), password(length), recovery_code()
            assert login("forward", ME, [forwarded + right], member.confdir).result is Result.SUCCESS
            assert login("plain", ME, [wrong, right], member.confdir).result is Result.SUCCESS
            assert login("plain", ME, [mistyped, recovery], member.confdir).result is Result.AUTH_ERR
            said += [forwarded, mistyped, right, wrong, recovery]
        return [text.encode() for text in said]

    secret = log_in_all()
    for _ in range(FURTHER):
        login("plain", ME, ["10000000", "20000000"], member.confdir)
    assert copies(serving.pid, secret) == []
