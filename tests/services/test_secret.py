"""Tests of secret= with the user's own file, through the real libpam. test_home.py tests other accounts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.core.secretfile import parse, serialize
from pam_totp.core.slots import decode
from tests.support.pamconf import Result, login, service
from tests.support.site import ME, MODULE, Site, codes, fob


@pytest.fixture
def file(site: Site) -> Path:
    """Configure the service `demo`. Return the path of the secret file of ME, which does not exist yet."""
    folder = site.folder / "home"
    folder.mkdir(0o755)
    line = f"auth required {MODULE} [secret={folder}/${{USER}}.totp] socket={site.socket} nodelay second_prompt"
    service(site.confdir, "demo", line)
    return folder / f"{ME}.totp"


def write(file: Path, user: str = ME) -> None:
    file.write_bytes(serialize(UserRecord(user=user, tokens=(fob(),))))
    file.chmod(0o600)


def test_a_code_is_accepted_once_and_the_file_remains_private(site: Site, file: Path) -> None:
    write(file)
    assert site.gets_in(codes(0))
    assert not site.gets_in(codes(0))
    assert parse(decode(file.read_bytes()).document).tokens == (
        fob(1, last_used=parse(decode(file.read_bytes()).document).tokens[0].last_used),
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(os.listdir(file.parent)) == sorted([file.name, file.name + ".lock"])


def test_the_service_never_opens_the_file(site: Site, file: Path) -> None:
    site.start()
    write(file)
    assert site.gets_in(codes(0))
    assert site.log.lines() == []


def test_a_user_without_a_file_is_not_enrolled(site: Site, file: Path) -> None:
    done = site.login(codes(0))
    assert (done.result, len(done.prompts)) == (Result.AUTH_ERR, 2)
    assert os.listdir(file.parent) == [], "no file is created"
    line = f"auth required {MODULE} [secret={file.parent}/${{USER}}.totp] nullok"
    service(site.confdir, "demo", line, "auth required pam_permit.so")
    assert login("demo", ME, [], site.confdir).result is Result.SUCCESS, (
        "with nullok, the module returns PAM_IGNORE without a prompt"
    )


def test_users_without_account_and_without_file_are_refused_alike(site: Site, file: Path) -> None:
    unknown, unenrolled = (login("demo", user, ["755224"], site.confdir) for user in ("no-such-user", ME))
    assert (unknown.result, unknown.prompts, unknown.messages) == (
        Result.AUTH_ERR,
        unenrolled.prompts,
        unenrolled.messages,
    )


def test_an_unknown_account_is_not_treated_as_unenrolled_under_nullok(site: Site, file: Path) -> None:
    """Every account seems to be unknown while a name service is unavailable."""
    line = f"auth required {MODULE} [secret={file.parent}/${{USER}}.totp] nodelay nullok"
    service(site.confdir, "demo", line, "auth required pam_permit.so")
    assert login("demo", "no-such-user", ["755224"], site.confdir).result is Result.AUTHINFO_UNAVAIL
    line = line.replace("nullok", "grace_period=60 no_second_prompt")
    service(site.confdir, "demo", line, "auth required pam_permit.so")
    done = login("demo", "no-such-user", ["755224"], site.confdir, items={"rhost": "192.0.2.7"})
    assert (done.result, len(done.prompts)) == (Result.AUTH_ERR, 1), "without nullok, an unknown user is prompted"


def _link(file: Path) -> None:
    file.rename(file.with_name("real"))
    file.symlink_to("real")


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_link, id="a link"),
        pytest.param(lambda file: file.chmod(0o640), id="group may read"),
        pytest.param(lambda file: file.parent.chmod(0o775), id="group may write to the folder"),
        pytest.param(lambda file: file.parent.chmod(0o757), id="others may write to the folder"),
        pytest.param(lambda file: write(file, "bob"), id="another user's record"),
        pytest.param(_pipe, id="a pipe"),
        pytest.param(lambda file: (file.unlink(), file.mkdir(0o700)), id="a folder"),
        pytest.param(lambda file: file.write_bytes(b""), id="empty"),
        pytest.param(lambda file: (file.unlink(), file.parent.rmdir()), id="no folder"),
    ],
)
@pytest.mark.parametrize("argument", ["", "nullok"])
def test_an_invalid_file_denies(site: Site, file: Path, spoil: Callable[[Path], object], argument: str) -> None:
    service(site.confdir, "demo", f"auth required {MODULE} [secret={file.parent}/${{USER}}.totp] nodelay {argument}")
    write(file)
    spoil(file)
    assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL


@pytest.mark.parametrize(
    "template", ["", "x", "./x", "~", "~bob/x", "${HOME}", "/x/", "/x/${UID}", "/x/$USER", "/x/~", "x/${USER}", "/x\ty"]
)
def test_an_invalid_template_denies(site: Site, template: str) -> None:
    service(site.confdir, "demo", f"auth required {MODULE} [secret={template}] nodelay nullok")
    assert site.login(codes(0)).result is Result.SERVICE_ERR
