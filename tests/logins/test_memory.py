"""Tests that passwords and codes are wiped: the tests search the memory of the service and of a PAM host."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from pam_totp.core.oath import hotp
from tests.conftest import as_root
from tests.support.memory import copies
from tests.support.pamconf import Result, login, service
from tests.support.site import KEY, ME, MODULE, TREE, Site, fob

LENGTHS = (12, 40, 100, 150, 200, 400)  # bytes: Python reuses the memory of objects up to 512 bytes by size
FURTHER = 10  # logins before the search


def password(length: int) -> str:
    """Return a unique password of `length` characters that ends in a letter."""
    return secrets.token_hex(length)[: length - 1] + "x"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    program = tmp_path / "host"
    source = TREE / "tests" / "support" / "forgetting_host.c"
    subprocess.run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", source, "-o", program, "-lpam"], check=True)
    return program


@as_root
def test_the_search_finds_secrets_in_memory(site: Site) -> None:
    secret = password(40).encode()
    source = f"kept = {secret!r}; print(flush=True); input()"
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert copies(process.pid, [secret])
        assert not copies(process.pid, [password(40).encode()])
        process.kill()


@as_root
def test_the_service_keeps_no_password_and_no_code(site: Site) -> None:
    """The test includes refused answers, and a password that a user types at the prompt for a code."""
    serving = site.start()
    site.configure("plain", way="socket")
    line = f"auth required {MODULE} store={site.store} socket={site.socket} nodelay forward_pass"
    service(site.confdir, "forward", line)
    line = f"auth required {MODULE} store={site.store} socket={site.socket} nodelay use_first_pass"
    service(site.confdir, "first", line, carry_authtok=True)
    site.enrol(fob(digits=8))
    codes = iter(hotp(KEY, counter, 8) for counter in range(1000))

    def log_in_all() -> list[bytes]:
        said = []
        for length in LENGTHS:
            forwarded, mistyped, code = password(length), password(length), next(codes)
            assert login("forward", ME, [forwarded + code], site.confdir).result is Result.SUCCESS
            assert login("forward", ME, [mistyped], site.confdir).result is Result.AUTH_ERR
            said += [forwarded, mistyped, code]
            mistyped, strange, code = password(length), "ä" + password(length - 2), next(codes)
            assert login("plain", ME, [mistyped, code], site.confdir).result is Result.SUCCESS
            assert login("plain", ME, [strange, code], site.confdir).result is Result.AUTH_ERR
            said += [mistyped, strange, code]
            first, code = password(length), next(codes)
            assert login("first", ME, [], site.confdir, items={"authtok": code}).result is Result.SUCCESS
            assert login("first", ME, [], site.confdir, items={"authtok": first}).result is Result.AUTH_ERR
            said += [first, code]
        return [secret.encode() for secret in said]

    said = log_in_all()
    for _ in range(FURTHER):
        assert login("plain", ME, [next(codes)], site.confdir).result is Result.SUCCESS
    assert copies(serving.pid, said) == []


@pytest.mark.parametrize("argument", ["", "forward_pass", "use_first_pass", "try_first_pass"])
@pytest.mark.parametrize("right", [True, False])
def test_a_pam_host_keeps_no_answer_of_the_relay(site: Site, host: Path, way: str, argument: str, right: bool) -> None:
    """LD_BIND_NOW is set, because lazy binding makes the loader save vector registers on the stack."""
    if os.geteuid() != 0:
        pytest.skip("requires root: the test traces another process")
    line = f"auth required {MODULE} store={site.store} socket={site.socket if way == 'socket' else 'none'} nodelay"
    service(site.confdir, "host", "auth optional pam_echo.so early", f"{line} {argument}")
    site.enrol(fob(digits=8))
    code = hotp(KEY, 0, 8)
    answer = (password(300) if argument == "forward_pass" or not right else "") + (code if right else "")
    command: list[str | Path] = [host, site.confdir, "host", ME]
    environment = {"LD_BIND_NOW": "1"}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(answer.encode())
        process.stdin.flush()
        result = Result(int(process.stdout.readline()))
        assert result is (Result.SUCCESS if right else Result.AUTH_ERR)
        assert copies(process.pid, [answer.encode()]) == []
