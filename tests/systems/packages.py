"""A bare root for two versions of the Debian packages, and the actions of tests and users in that root.

Rules:
- The tests build both versions in the root, from the current commit. A process that loads parts of both versions fails.
- Dialogues run on a terminal of the root. Logins use the real sudo, or pamtester with the real libpam.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pexpect

from pam_totp import __version__
from pam_totp.core.oath import hotp
from tests.services.terminal import Talk
from tests.support.site import PATIENCE, until
from tests.systems.roots import Root, System, bare_clone

PASSWORD = "correct horse"
STORE = "/var/lib/pam_totp"
NEXT = "0.1.1"
RENAMED = "UserRecord"  # a class used in core/, which dpkg replaces first, and in store/, which it replaces later
MOST_LOGINS = 5000  # the maximum number of logins of one user during one upgrade
PACKAGES = ("libpam-totp", "pam-totp-portal", "token-sim")
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
TOOLS = ("lintian", "faketime", "pamtester", "sudo", "debconf-utils", "strace")
# This script logs in once for each code on standard input, one login after the other, until the file `stop` exists.
LOGINS = r"""
import json, os, subprocess, sys, time
service, user, stop = sys.argv[1:]
logins, refused, slowest = 0, [], 0.0
for code in sys.stdin:
    if os.path.exists(stop):
        break
    begun = time.monotonic()
    words = ["pamtester", service, user, "authenticate"]
    done = subprocess.run(words, input=code, capture_output=True, text=True)
    slowest = max(slowest, time.monotonic() - begun)
    logins += 1
    if done.returncode != 0:
        refused.append([logins, done.stdout + done.stderr])
    if logins == 1:
        print("begun", flush=True)
print(json.dumps({"count": logins, "refused": refused, "slowest": slowest}))
"""


# This script signs in to the portal as USER with PASSWORD and an optional CODE, and prints the last page's heading.
SIGN_IN = r"""
import html, http.cookiejar, re, sys, time, urllib.error, urllib.parse, urllib.request
user, password, *code = sys.argv[1:]
browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
where, page = "http://127.0.0.1:8443", ""

def go(path, **fields):
    if fields:
        fields["csrf_token"] = re.search(r'name="csrf_token"[^>]* value="([^"]*)"', page)[1]
    data = urllib.parse.urlencode(fields).encode() if fields else None
    request = urllib.request.Request(where + path, data, {"Origin": where, "Referer": where + "/"})
    for _ in range(600):
        try:
            return browser.open(request, timeout=30).read().decode()
        except urllib.error.HTTPError as e:
            return e.read().decode()
        except urllib.error.URLError:
            time.sleep(0.1)  # the portal does not listen yet

def action():
    return [a for a in re.findall(r'<form method="post" action="([^"]*)"', page) if a != "/sign-out"][0]

page = go("/sign-in")
page = go(action(), user=user, password=password)
if code:
    page = go(action(), proof=code[0])
print(html.unescape(re.search(r"<h1>(.*?)</h1>", page, re.S)[1]))
"""


@dataclass(frozen=True)
class Logins:
    """The results of one user's logins."""

    count: int
    refused: list[object]
    slowest: float  # seconds


class Packaged:
    """A root with packages of two versions: a context manager that removes the root at its end."""

    def __init__(self, system: System, tools: Sequence[str] = TOOLS) -> None:
        self.root = Root(system)
        self._tools = tools
        self._scratch = tempfile.TemporaryDirectory(prefix="pam_totp-clone-")
        self._repository = bare_clone(Path(self._scratch.name))
        self.first: dict[str, str] = {}  # SHA-256 of each package of the first version
        self.as_installed = ""  # the result of `pam_d` before the first `enable`
        self.seed = b""  # the key of the simulated token
        self._keys: dict[str, bytes] = {}
        self._counters: dict[str, int] = {}
        self._talks: list[Talk] = []
        self._stops = 0

    def __enter__(self) -> Packaged:
        self.root.install(*self._tools)
        for name in ("alice", "bob", "carol", "dave"):
            self.root.add_account(name)
            self.does("chpasswd", stdin=f"{name}:{PASSWORD}\n")
        self.shell("mkdir -p /etc/sudoers.d")
        self.write("/etc/sudoers.d/tests", "Defaults lecture=never\nalice ALL=(ALL:ALL) ALL\n", 0o440)
        return self

    def __exit__(self, *_: object) -> None:
        for talk in self._talks:
            talk.hangs_up()
        self.root.close()
        self._scratch.cleanup()

    # Files and commands

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root.path(path)
        file.write_text(text)
        file.chmod(mode)

    def has(self, path: str) -> bool:
        return self.tries("test", "-e", path).returncode == 0

    def tries(self, *words: str, user: str = "root", stdin: str = "") -> subprocess.CompletedProcess[str]:
        return self.root.run(*words, user=user, stdin=stdin, env=QUIET)

    def does(self, *words: str, user: str = "root", stdin: str = "") -> str:
        """Run the command `words`, which must succeed. Return the output."""
        done = self.tries(*words, user=user, stdin=stdin)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def shell(self, text: str, user: str = "root") -> str:
        return self.does("sh", "-ec", text, user=user)

    def pam_d(self) -> str:
        """Return the names, modes, times and hashes of all files in /etc/pam.d."""
        return self.shell(
            "cd /etc/pam.d; find . -printf '%p %y %M %u %t\n' | grep -v '^[.] ' | sort; sha256sum * | sort"
        )

    # Packages

    def clone(self, user: str = "root", name: str = "pam_totp") -> str:
        return self.root.clone(self._repository, user, name)

    def build(self, tree: str, into: str, user: str = "root", before: str = "") -> dict[str, str]:
        """Run `make deb` in `tree` after the shell command `before`, and copy the packages to `into`.

        Return the SHA-256 of each package by name.
        """
        make = f"cd {shlex.quote(tree)} && {before} make --no-print-directory deb"
        self.shell(make, user=user)
        self.shell(f"rm -rf {into}; mkdir {into}; cp {tree}/build/deb/*.deb {into}/")
        lines = self.shell(f"cd {into}; sha256sum *.deb").splitlines()
        return {line.split()[1]: line.split()[0] for line in lines}

    def build_both(self) -> None:
        """Build both versions, in /srv/one and /srv/two.

        The second version renames a class that several packages import. A process that loads parts of both
        versions therefore fails.
        """
        tree = self.clone()
        self.first = self.build(tree, "/srv/one")
        self.shell(
            f"cd {tree}; sed -i 's/{__version__}/{NEXT}/' pam_totp/__init__.py;"
            f"sed -i '1s/{__version__}/{NEXT}/' packaging/debian/changelog;"
            f"for file in core/record store/file; do grep -qw {RENAMED} pam_totp/$file.py; done;"
            f"grep -rlw {RENAMED} --include=*.py pam_totp | xargs sed -i 's/\\b{RENAMED}\\b/{RENAMED}OfTwo/g'"
        )
        self.build(tree, "/srv/two")

    def is_installed(self, package: str) -> bool:
        return self.tries("dpkg-query", "-Wf", "${db:Status-Status}", package).stdout == "installed"

    def install(self, folder: str, *packages: str) -> str:
        files = self.shell(f"ls {' '.join(f'{folder}/{name}_*.deb' for name in packages)}").split()
        return self.does("apt-get", "install", "-y", "--no-install-recommends", *files)

    # Dialogues

    def talk(self, words: str, user: str = "root") -> Talk:
        """Start the shell command `words` on a terminal of the root, and return the dialogue."""
        program, *arguments = self.root.command("script", "-qefc", words, "/dev/null", user=user)
        talk = Talk(pexpect.spawn(program, arguments, timeout=PATIENCE, echo=False, dimensions=(24, 1000)))
        self._talks.append(talk)
        return talk

    def sudo(self, words: str, code: str | None) -> tuple[int, str]:
        """Run sudo as alice with her password and, if given, a code. Return the exit status and the output."""
        talk = self.talk(f"sudo -k {words}", user="alice").asks("alice: ").says(PASSWORD)
        if code is not None:
            talk.asks("code: ").says(code)
        return talk.ends()

    def plug_in(self) -> None:
        """Create a token in the simulated factory, and run it on a pseudo-serial port."""
        self.does("token-sim", "factory", "--count", "1", "--out", "/root/box")
        seeds = self.shell("cat /root/box/seeds.csv").splitlines()
        self.seed = bytes.fromhex(seeds[-1].split(",")[1])
        file = self.shell("echo /root/box/*.token").strip()
        self.root.start("token-sim", "run", file, "--link", "/run/token")
        until(self.root.path("/run/token").is_symlink, "the simulator creates its port")

    def press(self) -> str:
        return self.does("token-sim", "press", "--port", "/run/token", "--wait", "10").strip()

    # Logins

    def enrol(self, user: str, key: bytes) -> None:
        words = ("pam-totp", "enroll", user, "--type", "hotp", "--name", "fob", "--secret-stdin", "--yes")
        self.does(*words, stdin=f"hex:{key.hex()}\n")
        self._keys[user], self._counters[user] = key, 0

    def pam_service(self, name: str, arguments: str) -> None:
        auth = f"auth required pam_totp.so nodelay {arguments}".rstrip()
        self.write(f"/etc/pam.d/{name}", f"{auth}\naccount required pam_permit.so\n")

    def serve(self) -> None:
        """Start the service by its command, because the root lacks systemd."""
        self.shell("install -d -o pam_totp /run/pam_totp")
        self.root.start("pam-totp", "serve", "--socket", "/run/pam_totp/socket", user="pam_totp", cwd="/")
        until(self.root.path("/run/pam_totp/socket").exists, "the service creates its socket")

    def sign_in(self, *answers: str) -> str:
        """Sign in to the portal with a user name, a password and, if given, a code. Return the next page's heading."""
        return self.does("/usr/bin/python3", "-I", "-c", SIGN_IN, *answers).strip()

    @contextmanager
    def logging_in(self, whose: dict[str, str]) -> Iterator[dict[str, Logins]]:
        """Log in each user at the PAM service `whose[user]` while the block runs, one login after the other.

        Yield a dict, which contains the results by user name after the block.
        """
        self._stops += 1
        stop = f"/run/stop-{self._stops}"
        came: dict[str, Logins] = {}
        running = {}
        for user, service in whose.items():
            process = self.root.start("/usr/bin/python3", "-I", "-c", LOGINS, service, user, stop)
            assert process.stdin is not None
            first = self._counters[user]
            process.stdin.write("".join(f"{hotp(self._keys[user], first + i)}\n" for i in range(MOST_LOGINS)))
            process.stdin.close()
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            running[user] = process
        try:
            yield came
        finally:
            self.write(stop, "")
            for user, process in running.items():
                assert process.stdout is not None
                came[user] = Logins(**json.loads(process.stdout.read()))
                self._counters[user] += came[user].count
                process.wait()
