"""Tests of the Debian packages on each system: build, install, enrol, enable, log in, upgrade, remove, purge.

Only `make deb-test` runs these tests. The first run builds the base roots. `ARGS="-k trixie"` selects a system.
Each test of a system starts in the state at the end of the previous test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from pam_totp import __version__
from pam_totp.core.oath import hotp
from tests.support.site import KEY
from tests.systems.packages import NEXT, PACKAGES, PASSWORD, STORE, Packaged
from tests.systems.roots import SYSTEMS

pytestmark = [
    pytest.mark.skipif(
        "PAM_TOTP_PACKAGES" not in os.environ,
        reason="only 'make deb-test' runs this test: it takes minutes for each system",
    ),
    pytest.mark.skipif(os.geteuid() != 0, reason="requires root to enter bare roots"),
    pytest.mark.timeout(3600),  # the first test creates the base roots, which is slow on a busy machine
]
KEYS = {"bob": KEY, "carol": KEY[::-1], "dave": KEY[5:] + KEY[:5]}
SECRETS_TOO = "libpam-totp libpam-totp/purge-secrets boolean"
# strace delays each rename and removal by dpkg, so that for seconds the folder has files of both versions.
SLOWLY = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=rename,unlink,rmdir:delay_enter=20000")


@pytest.fixture(scope="module", params=SYSTEMS)
def packaged(request: pytest.FixtureRequest) -> Iterator[Packaged]:
    """Yield the system with the first version's packages in /srv/one and the second version's in /srv/two."""
    with Packaged(SYSTEMS[request.param]) as made:
        made.build_both()
        yield made


def test_two_builds_from_two_folders_give_the_same_bytes(packaged: Packaged) -> None:
    """The second build has a different folder, account, umask, time, time zone and language."""
    tree = packaged.clone("dave", "else/where")
    packaged.shell("chmod -R go= /home/dave/else")
    other = "umask 077; export TZ=Pacific/Kiritimati LANG=C; faketime '2031-05-05 05:05:05'"
    assert packaged.build(tree, "/srv/again", "dave", other) == packaged.first
    assert len(packaged.first) == len(PACKAGES)


def test_lintian_finds_neither_errors_nor_warnings(packaged: Packaged) -> None:
    found = packaged.tries("sh", "-c", "lintian --allow-root --fail-on error,warning /srv/one/*.deb")
    assert (found.returncode, found.stdout.strip()) == (0, "")


def test_token_sim_works_without_pam_totp(packaged: Packaged) -> None:
    packaged.install("/srv/one", "token-sim")
    packaged.does("apt-get", "install", "-y", "--no-install-recommends", "python3-serial")
    packaged.plug_in()
    assert packaged.press() == hotp(packaged.seed, 0)
    assert not packaged.is_installed("libpam-totp")


def test_after_the_installation_no_service_asks_for_a_code(packaged: Packaged) -> None:
    before = packaged.pam_d()
    packaged.install("/srv/one", "libpam-totp")
    assert packaged.pam_d() == before
    assert packaged.sudo("id -un", None) == (0, "\r\nroot\r\n")
    assert packaged.shell(f"stat -c '%U %a' {STORE}") == "pam_totp 700\n"
    counted = packaged.shell('for e in py pyc; do find /usr/lib/pam_totp -name "*.$e" | wc -l; done').split()
    assert counted[0] == counted[1], "the package contains byte code for every module, since a login writes none"
    assert packaged.does("pam-totp", "--version").split()[-1] == __version__


def test_enrolled_and_enabled_sudo_asks_for_a_code_that_works_once(packaged: Packaged) -> None:
    packaged.as_installed = packaged.pam_d()
    packaged.enrol("alice", packaged.seed)
    first = packaged.talk("pam-totp enable sudo --for-user alice --keep-within=300")
    first.asks("Password: ").says(PASSWORD).asks("One-time code: ").says(packaged.press())
    first.asks("Keep this terminal open.")
    assert packaged.sudo("pam-totp enable sudo --keep", packaged.press())[0] == 0
    assert first.ends()[0] == 0
    code = packaged.press()
    assert packaged.sudo("id -un", code) == (0, "\r\nroot\r\n")
    again = packaged.talk("sudo -k id -un", "alice").asks("alice: ").says(PASSWORD).asks("code: ").fails(code)
    again.asks("try again").asks("alice: ")
    assert again.interrupts()[0] != 0
    assert packaged.does("pam-totp", "doctor", "sudo")


def test_no_right_code_is_refused_while_packages_are_upgraded(packaged: Packaged) -> None:
    for user, key in KEYS.items():
        packaged.enrol(user, key)
    packaged.pam_service("cold", "socket=none")
    packaged.pam_service("warm", "")
    packaged.serve()
    waiting = [packaged.talk(f"pamtester {service} alice authenticate").asks("code: ") for service in ("cold", "warm")]
    whose = {"bob": "cold", "carol": "warm", "dave": "cold"}
    for folder, how in (("two", ()), ("one", ()), ("two", SLOWLY)):
        with packaged.logging_in(whose) as came:
            packaged.does(*how, *packaged.shell(f"echo dpkg -i /srv/{folder}/libpam-totp_*.deb").split())
        assert [(user, logins.refused) for user, logins in came.items() if logins.refused] == []
        assert min(logins.count for logins in came.values()) > 10
    for talk in waiting:
        assert "successfully" in talk.says(packaged.press()).ends()[1], (
            "a prompt from before the upgrade accepts a code after the upgrade"
        )
    assert packaged.does("pam-totp", "--version").split()[-1] == NEXT
    assert packaged.shell("ls /usr/lib/pam_totp") == f"{NEXT}\npam_totp\n", "dpkg removes all files of the old version"
    packaged.install("/srv/two", "token-sim")
    assert packaged.sudo("id -un", packaged.press()) == (0, "\r\nroot\r\n")
    packaged.shell("rm /etc/pam.d/cold /etc/pam.d/warm")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("echo 'auth required pam_totp.so' > /etc/pam.d/vlock", "/etc/pam.d/vlock: names pam_totp.so"),
        ("echo '# site policy' >> /etc/pam.d/sudo", "/etc/pam.d/sudo: edited since 'enable'"),
    ],
    ids=["by-hand", "edited"],
)
def test_a_removal_is_refused_if_a_stack_would_name_a_missing_module(packaged: Packaged, edit: str, says: str) -> None:
    packaged.shell("cp -a /etc/pam.d /srv/pam.d")
    packaged.shell(edit)
    try:
        refused = packaged.tries("apt-get", "remove", "-y", "libpam-totp")
    finally:
        packaged.shell("cp -a /srv/pam.d/. /etc/pam.d/; rm -f /etc/pam.d/vlock; rm -r /srv/pam.d")
    assert (refused.returncode != 0, says in refused.stdout) == (True, True), refused.stdout
    assert packaged.is_installed("libpam-totp")
    assert packaged.sudo("id -un", packaged.press()) == (0, "\r\nroot\r\n")


def test_a_removal_restores_the_original_files_and_keeps_the_secrets(packaged: Packaged) -> None:
    packaged.does("apt-get", "remove", "-y", "libpam-totp")
    assert packaged.pam_d() == packaged.as_installed
    assert packaged.sudo("id -un", None) == (0, "\r\nroot\r\n")
    assert packaged.has(f"{STORE}/alice.record")
    assert packaged.is_installed("token-sim")


def test_a_purge_without_an_answer_keeps_the_secrets_and_reports_this(packaged: Packaged) -> None:
    said = packaged.does("apt-get", "purge", "-y", "libpam-totp")
    assert f"the secrets in {STORE} are kept" in said
    packaged.install("/srv/two", "libpam-totp")
    assert packaged.does("pam-totp", "verify", "alice", packaged.press())


def test_a_purge_answered_with_no_keeps_the_secrets(packaged: Packaged) -> None:
    talk = packaged.talk("DEBIAN_FRONTEND=teletype dpkg --purge libpam-totp")
    talk.asks("Delete the tokens of all users?").asks("[yes/no]").says("no")
    status, said = talk.ends()
    assert (status, f"the secrets in {STORE} are kept" in said) == (0, True), said
    assert packaged.has(f"{STORE}/alice.record")
    packaged.install("/srv/two", "libpam-totp")


def test_a_purge_answered_with_yes_deletes_every_file(packaged: Packaged) -> None:
    packaged.does("debconf-set-selections", stdin=f"{SECRETS_TOO} true\n")
    packaged.does("apt-get", "purge", "-y", "libpam-totp")
    assert not packaged.has(STORE)
    assert packaged.tries("getent", "passwd", "pam_totp").returncode != 0
    left = packaged.shell("find / -xdev -name '*pam?totp*' ! -path '/srv/*' ! -path '/root/*' ! -path '/home/*'")
    of_token_sim = ("/usr/share/token-sim", "/usr/share/doc/token-sim", "/usr/share/bash-completion")
    assert [line for line in left.splitlines() if not line.startswith(of_token_sim)] == []
    assert packaged.does("debconf-show", "libpam-totp") == ""


def test_the_portal_runs_on_the_distributions_flask(packaged: Packaged) -> None:
    packaged.install("/srv/two", "libpam-totp", "pam-totp-portal")
    packaged.enrol("bob", KEY)
    packaged.root.start("pam-totp", "portal")
    assert packaged.sign_in("bob", "wrong") == "Sign in"
    assert packaged.sign_in("bob", PASSWORD) == "Your code"
    assert packaged.sign_in("bob", PASSWORD, hotp(KEY, 0)) == "Your tokens"
    packaged.does("apt-get", "purge", "-y", "pam-totp-portal", "libpam-totp")
    assert not packaged.has("/etc/pam.d/pam_totp-portal")
