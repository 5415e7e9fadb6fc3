"""Tests of the suite's isolation: the suite passes on hosts with settings that affect the tested programs.

`run` starts a separate pytest in a private mount namespace, which imitates such a host.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import with_mounts
from tests.support import isolation
from tests.support.site import TREE

# Tests with real services, an installation, logins through libpam in the test process, and other accounts.
SOME = (
    "services/test_ssh.py::test_password_then_code",
    "services/test_sudo_su.py::test_su_to_root_asks_for_a_code",
    "services/test_policy.py::test_policy_reads_the_arguments_in_the_service_file",
    "install/test_install.py::test_installing_again_keeps_secrets_and_replaces_the_whole_folder",
    "install/test_doctor.py::test_a_correct_installation_has_no_findings",
    "install/test_doctor.py::test_without_root_rehearse_asks_for_the_users_own_password",
    "logins/test_login.py::test_a_code_is_accepted_once",
    "logins/test_hosts.py::test_pamtester_logs_in_once_with_a_code",
    "test_relay_process.py::test_without_an_argument_the_socket_is_in_run",
    "web/test_client.py::test_an_unlisted_account_gets_an_error_that_names_the_list",
    "token_sim/test_control.py::test_another_uid_gets_no_answer_even_with_permission_to_connect",
)
# Tests that together use every kind of mount.
MOUNTS = (
    "services/test_ssh.py::test_password_then_code",
    "services/test_sudo_su.py::test_sudo_asks_for_a_code",
    "install/test_doctor.py::test_a_correct_installation_has_no_findings",
    "logins/test_hosts.py::test_pamtester_logs_in_once_with_a_code",
    "cli/test_full_disk.py::test_the_old_state_is_intact_and_the_message_names_the_remedy[full]",
    "torture/test_full.py::test_a_read_only_store_refuses_all_users_alike_and_loses_no_data[spawn]",
    "test_relay_process.py::test_without_an_argument_the_socket_is_in_run",
)
# Environment variables that change the behaviour of programs, libraries, make and pip.
ENVIRONMENT = {
    **{"HOME": "/nonexistent", "TMPDIR": "/root", "LANG": "tr_TR.UTF-8", "LC_ALL": "C", "TZ": "Asia/Tokyo"},
    **{"NO_COLOR": "1", "COLUMNS": "20", "MAKEFLAGS": "-n", "GIT_DIR": "/nonexistent", "OPENSSL_CONF": "/nonexistent"},
    **{"PIP_TARGET": "/nonexistent", "PIP_REQUIRE_VIRTUALENV": "1", "PAM_TOTP_SOCKET": "/nonexistent", "CDPATH": "/"},
}
# The start of each host's script. $1 is an empty folder, $2 is this tree, and the other words are the command. The
# script copies the folders on which the suite mounts overlays, because the kernel stacks at most two overlays.
COPIED = r"""
folder=$1 tree=$2
shift 2
mount -t tmpfs -o mode=0755 private "$folder"
mkdir -p "$folder/lib/dpkg/info" "$folder/lib/dpkg/updates"
cp -a /etc "$folder/etc"
cp -a /var/lib/dpkg/status "$folder/lib/dpkg"
mount --bind "$folder/etc" /etc
mount --bind "$folder/lib" /var/lib
"""
# A host that uses pam_totp. The clone is in a folder that only root can enter.
USED = r"""
mkdir "$folder/security" "$folder/work" "$folder/closed"
modules=$(dirname "$(ls -d /usr/lib/*/security/pam_permit.so)")
mount -t overlay -o "lowerdir=$modules,upperdir=$folder/security,workdir=$folder/work" private "$modules"
mount -t tmpfs -o mode=0755 private /usr/local
mount -t tmpfs -o mode=0755 private /run
above=$(dirname "$tree")
case $above in
/ | /tmp | /var/tmp | /dev/shm) ;;
*)
    mount -t tmpfs -o mode=0700 private "$folder/closed"
    mkdir "$folder/closed/$(basename "$tree")"
    mount --bind "$tree" "$folder/closed/$(basename "$tree")"
    mount --move "$folder/closed" "$above"
    cd "$tree"
    ;;
esac

umask 077
echo 'alice:x:1234:1234:of the host:/home/alice:/bin/bash' >>/etc/passwd
echo 'pam_totp:x:990:990::/nonexistent:/usr/sbin/nologin' >>/etc/passwd
printf '%s\n' alice:x:1234: pam_totp:x:990: >>/etc/group
echo 'alice:!:19000:0:99999:7:::' >>/etc/shadow
echo 'alice ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers
echo 'auth required pam_totp.so look_ahead=none' >/etc/pam.d/vlock
sed -i '1i auth required pam_totp.so' /etc/pam.d/common-auth
mkdir -p /etc/security /etc/ssh
echo '* hard nofile 100' >/etc/security/limits.conf
echo 'ProxyCommand /bin/false' >/etc/ssh/ssh_config
echo 'ForceCommand /bin/false' >/etc/ssh/sshd_config
printf '[policy]\nprompt = "Here: "\nlook_ahead = 0\nlock_after = 1\n' >/etc/pam_totp.toml
chmod 644 /etc/pam_totp.toml
mkdir -p /var/lib/pam_totp/kept /var/lib/pam_totp_enabled /run/pam_totp /usr/local/lib/pam_totp /usr/local/bin
for user in root alice bob nobody; do echo {} >/var/lib/pam_totp/$user.json; done
echo {} >/var/lib/pam_totp_enabled/sudo.json
chown -R 990:990 /var/lib/pam_totp /run/pam_totp
cp -a "$tree/pam_totp" /usr/local/lib/pam_totp/
cp "$tree/build/pam_totp.so" "$modules"
printf '#!/bin/false\n' >/usr/local/bin/pam-totp
chmod 755 /usr/local/bin/pam-totp
mkfifo "$folder/listens"
/usr/bin/python3 - >"$folder/listens" <<'END' &
import socket
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind("/run/pam_totp/socket")
listener.listen()
print("ready", flush=True)
listener.accept()
END
listens=$!
read -r ready <"$folder/listens"
listed() { find /etc /var/lib /usr/local /run "$modules" -printf '%p %M %U %G %s %T@ %C@\n' | sort; }
listed >"$folder/before"
status=0
"$@" || status=$?
listed >"$folder/after"
kill "$listens" || echo 'the host: the suite connected to its service'
diff "$folder/before" "$folder/after" && echo 'the host: unchanged'
exit $status
"""
# The host's system in a chroot, inside a mount with shared propagation.
CHROOT = r"""
root=$folder/root
mkdir "$root"
mount -t tmpfs -o mode=0755 shared "$root"
mount --make-shared "$root"
root=$root/plain
mkdir -p "$root/tmp"
chmod 1777 "$root/tmp"
for place in /*; do
    if [ -L "$place" ]; then
        cp -P "$place" "$root"
    elif [ -d "$place" ] && [ "$place" != /tmp ]; then
        mkdir "$root$place"
        mount --rbind "$place" "$root$place"
    fi
done
if ! [ -d "$root$tree" ]; then
    mkdir -p "$root$tree"
    mount --bind "$tree" "$root$tree"
fi
cp /proc/self/mountinfo "$folder/before"
status=0
chroot "$root" sh -c 'cd "$0" && exec "$@"' "$tree" "$@" || status=$?
cp /proc/self/mountinfo "$folder/after"
diff "$folder/before" "$folder/after" && echo 'the host: unchanged'
exit $status
"""


def run(folder: Path, host: str, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script `host`, which runs the command `words`, in a private mount namespace with the empty `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "unchanged", "sh", "-euc", COPIED + host, "sh", folder, TREE, *words],
        cwd=TREE,
        env=kept | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def pytest_of(*words: str) -> list[str]:
    """Return the command of a pytest that does not write to this tree."""
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *words]


@with_mounts
@pytest.mark.parametrize(
    ("host", "tests", "environment"), [(USED, SOME, ENVIRONMENT), (CHROOT, MOUNTS, {})], ids=["used", "chroot"]
)
def test_the_suite_passes_on_such_a_host_and_does_not_change_it(
    tmp_path: Path, host: str, tests: tuple[str, ...], environment: dict[str, str]
) -> None:
    done = run(tmp_path, host, *pytest_of(*(f"tests/{test}" for test in tests)), **environment)
    assert done.returncode == 0, done.stdout
    passed = re.search(r" (\d+) passed[ ,]", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= len(tests)
    assert done.stdout.endswith("the host: unchanged\n"), done.stdout


TWO_WRITERS = """
import os
from pathlib import Path

FILES = [Path("/etc/pam_totp.toml"), Path("/var/lib/pam_totp-two"), Path.home() / "two"]

def test_both_write(worker_id):
    here, other = (Path(os.environ["PYTEST_FIFOS"], name) for name in sorted(("gw0", "gw1"), key=worker_id.__ne__))
    for file in FILES:
        file.write_text(worker_id)
    if worker_id == "gw0":  # open() of a FIFO waits for the other worker
        here.open("w").close(), other.open().close()
    else:
        other.open().close(), here.open("w").close()
    assert [file.read_text() for file in FILES] == [worker_id] * 3
"""


@with_mounts
def test_each_worker_has_its_own_files_of_the_system(tmp_path: Path) -> None:
    for name in ("gw0", "gw1"):
        os.mkfifo(tmp_path / name)
    test = tmp_path / "test_two.py"
    test.write_text(TWO_WRITERS)
    words = ("-p", "no:cacheprovider", "-p", "tests.conftest", "--rootdir", TREE, "--tx", "2*popen", "--dist", "each")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, test],
        cwd=TREE,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        | {"PYTEST_FIFOS": str(tmp_path)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert " 2 passed" in done.stdout, done.stdout


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("_NEEDED", ("/dev/null", "/dev/absent"), "^/dev/absent: not found .mount /proc"),
        ("_SITE_FILE", Path("/dev/null"), "^/dev/null applies to every login here .run the tests as root"),
        ("_has_account", lambda uid: False, r"^uid \d+ has no account"),
    ],
)
def test_a_host_that_would_change_tests_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: object, reason: str
) -> None:
    before = dict(os.environ)
    monkeypatch.setattr(isolation, "MAY_MOUNT", False)
    monkeypatch.setattr(isolation, name, value)
    with pytest.raises(isolation.IsolationError, match=reason):
        isolation.isolate(tmp_path)
    assert os.environ == before


@pytest.mark.parametrize(("name", "value"), [("_PHYSICAL", 1 << 30), ("_TREE", Path("/media/disk/tree"))])
def test_temporary_files_stay_on_disk_if_need_be(monkeypatch: pytest.MonkeyPatch, name: str, value: object) -> None:
    monkeypatch.setattr(isolation, "_PHYSICAL", 8 << 30)
    assert isolation._may_use_memory()
    monkeypatch.setattr(isolation, name, value)
    assert not isolation._may_use_memory()


def test_an_interpreter_that_removes_assertions_is_refused() -> None:
    command = [sys.executable, "-O", *pytest_of("--collect-only", "tests/test_layout.py")[1:]]
    done = subprocess.run(command, cwd=TREE, text=True, capture_output=True, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "the tests cannot run here: python -O removes the assertions" in done.stderr
