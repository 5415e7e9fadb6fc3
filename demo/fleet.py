"""A demonstration of a fleet on one machine: `make fleet-demo`.

- Two members, two authorities, and a PostgreSQL primary with a synchronous standby, each in its own namespaces.
- The demo runs the commands that docs/fleet.md lists. All logins use the real libpam and the real module. Some logins
  also use the real sshd.
- The demo needs root for the namespaces. The demo removes its processes, files and networks at its end, and after
  Ctrl-C.
- The exit status is 0 if every step had the expected result, else 1. The exit status is 2 if the demo cannot run on
  this machine.
"""

from __future__ import annotations

import io
import signal
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from demo.fleet_scene import (
    ADDRESSES,
    AUTHORITIES,
    DOMAIN,
    ETC,
    MEMBERS,
    OWNER,
    ROLE,
    SERVE,
    SOCKET,
    USER,
    Attempt,
    Fleet,
    missing,
)
from demo.hosts import HostError, Process
from demo.scene import PluggedToken, make_token, plugged_in, wait_until
from demo.screen import WIDTH, Screen

PATIENCE, LIMIT = 1.5, 5.0  # seconds until a member asks another authority; maximum seconds of a question
BUSY = 3.0  # additional seconds for a login in the demo, because this machine can be busy
SITE = f"""\
[store]
url = "{{url}}"

[authority]
addresses = ["otp1.{DOMAIN}:8443", "otp2.{DOMAIN}:8443"]
"""
UNREACHED, NOT_A_MEMBER = "no authority answered", "not-a-member"  # reasons in the log of a member


def url(role: str, certificate: str) -> str:
    tls = f"sslmode=verify-full&sslrootcert={ETC}/ca.crt&sslcert={certificate}.crt&sslkey={certificate}.key"
    return f"postgresql://{role}@db1,db2/otp?{tls}"


def main() -> int:
    if (reason := missing()) is not None:
        print(f"make fleet-demo: {reason}", file=sys.stderr)
        return 2
    begun = time.monotonic()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # print ? for a missing block character
    for number in (signal.SIGTERM, signal.SIGHUP):  # stop the hosts after these signals, as after Ctrl-C
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    screen = Screen()
    screen.title("pam_totp: a fleet of hosts with one set of tokens")
    screen.text("Just watch: the demo types all commands and answers, each on the host before the prompt.")
    with tempfile.TemporaryDirectory(prefix="pam_totp-fleet-") as folder:
        try:
            fleet = Fleet(Path(folder))
        except HostError as e:
            print(f"make fleet-demo: this machine forbids namespaces: {e}", file=sys.stderr)
            return 2
        try:
            Demo(fleet, screen).show(Path(folder))
        except HostError as e:
            print(f"make fleet-demo: this machine cannot create the hosts: {e}", file=sys.stderr)
            return 2
        finally:
            fleet.close()
    screen.table()
    took = f"{time.monotonic() - begun:.0f} s"
    verdict = "A step had an unexpected result" if screen.failed else "Every step had the expected result"
    print(f"\n{verdict} ({took}).")
    return int(screen.failed)


class Demo:
    """The steps of the demo, in order."""

    def __init__(self, fleet: Fleet, screen: Screen) -> None:
        self._fleet, self._screen = fleet, screen
        self._authorities: dict[str, Process] = {}
        self._token: PluggedToken

    def show(self, folder: Path) -> None:
        self._hosts()
        self._database()
        for name in AUTHORITIES:
            self._authority(name)
        for name in MEMBERS:
            self._member(name)
        made = make_token(folder)
        with plugged_in(made.file, folder / "token") as self._token:
            self._enrol(made.serial, made.seed, made.counter)
            self._logins()
            self._race()
            self._killed_authority()
            self._cut_off_from_one()
            self._cut_off_from_all()
            self._failover()
            self._revoke()
        self._logs()

    # ---- set-up

    def _hosts(self) -> None:
        self._screen.step("Install pam_totp, and start seven hosts in namespaces of this machine")
        self._fleet.begin()
        what = {"laptop": f"of {USER}", "web": "a member", "otp": "an authority", "db": "PostgreSQL"}
        lines = [f"{name:8}{address:14}{what[name.rstrip('12')]}" for name, address in ADDRESSES.items()]
        self._screen.lines(lines)

    def _database(self) -> None:
        self._screen.step("Set up the database: the primary db1, its synchronous standby db2, and certificates")
        self._screen.text("An administrator does this step with the commands in docs/fleet.md.")
        self._fleet.make_database()
        self._type("otp1", "store", "init", url(OWNER, f"{ETC}/{OWNER}"), "--grant", ROLE)
        path = f"{ETC}/{OWNER}.key"
        self._prompt("otp1", "rm", path)
        self._fleet["otp1"].path(path).unlink()

    def _authority(self, name: str) -> None:
        self._screen.step(f"Set up the authority {name}")
        host, site = self._fleet[name], SITE.format(url=url(ROLE, f"{ETC}/client"))
        self._write(name, "/etc/pam_totp.toml", site)
        first = AUTHORITIES[0]
        if name != first:
            self._prompt(first, "scp", f"{ETC}/authority/ca.*", f"{name}:{ETC}/authority/")
            for file, mode in (("ca.pem", 0o644), ("ca.key", 0o600)):
                path = f"{ETC}/authority/{file}"
                host.write(path, self._fleet[first].path(path).read_text(), mode)
        self._type(name, "authority", "init")
        if name != first:
            self._give_seal(first, name)
        self._start_authority(name)

    def _give_seal(self, first: str, name: str) -> None:
        """Copy the sealing key to another authority. Secrets are sealed if python3-cryptography is installed."""
        copy = "/root/seal"
        if not self._fleet[first].path(f"{ETC}/seal").exists():
            return
        self._type(first, "seal", "export", copy, "--yes")
        self._prompt(first, "scp", "-p", copy, f"{name}:{copy}")
        self._fleet[name].write(copy, self._fleet[first].path(copy).read_text(), 0o600)
        self._type(name, "seal", "init", "--key", copy, "--yes")
        for host in (first, name):
            self._prompt(host, "rm", copy)
            self._fleet[host].path(copy).unlink()

    def _start_authority(self, name: str) -> None:
        words = ("pam-totp", "authority", "serve")
        self._prompt(name, *words, "&")
        self._authorities[name] = self._fleet.start(name, *words, ready="listens on")
        self._screen.text(self._fleet[name].log("listens on")[-1])

    def _member(self, name: str) -> None:
        self._screen.step(f"Make {name} a member of the fleet")
        host, authority = self._fleet[name], AUTHORITIES[MEMBERS.index(name)]
        if name == MEMBERS[0]:
            self._type(authority, "member", "groups", "web", "--allow", "all")
        begun = time.monotonic()
        line = self._type(authority, "member", "add", f"{name}.{DOMAIN}", "--group", "web").splitlines()[0]
        self._type(name, "join", stdin=f"{line}\n")
        seconds = time.monotonic() - begun
        here = "[member]" in host.path("/etc/pam_totp.toml").read_text()
        self._result(f"{name} joins the fleet by two commands", f"joined in {seconds:.1f} s", right=here)
        self._screen.text("systemd would start the service. Here, the administrator starts the service:")
        self._prompt(name, *SERVE, "&")
        process = host.start(*SERVE)
        wait_until(lambda: host.path(SOCKET).exists() or process.has_ended, f"the service of {name}")

    def _enrol(self, serial: str, seed: str, counter: str) -> None:
        self._screen.step(f"Enrol {USER}, once for all hosts")
        (code,) = self._token.press()
        words = ("enroll", USER, "--type", "hotp", "--name", "fob", "--serial", serial, "--counter", counter)
        self._type("otp1", *words, "--secret-stdin", stdin=f"hex:{seed}\n{code}\n")

    # ---- logins

    def _logins(self) -> None:
        self._screen.step("Log in at both members: through libpam, and with ssh from the laptop")
        for name in MEMBERS:
            self._log_in(f"{name} accepts a code", name, self._press())
            code = self._press()
            self._screen.text(f"{USER}@laptop$ ssh {name}.{DOMAIN}", "36")
            attempt = self._fleet.ssh(name, code)
            self._screen.text(f"One-time code: {code}")
            self._verdict(f"sshd of {name} accepts a key and a code", attempt)

    def _race(self) -> None:
        self._screen.step("Type one code at both members at the same time: one login must succeed")
        code = self._press()
        with ThreadPoolExecutor(4) as pool:
            attempts = list(pool.map(lambda name: self._fleet.rehearse(name, code), MEMBERS * 2))
        accepted = sum(attempt.accepted for attempt in attempts)
        happened = f"accepted {accepted} of {len(attempts)} times"
        self._result("one code, four logins at two members: accepted once", happened, right=accepted == 1)

    def _killed_authority(self) -> None:
        name = self._asked()
        self._screen.step(f"Kill the process of the authority that web1 asks ({name}): logins must still succeed")
        self._authorities[name].kill()
        for member in MEMBERS:
            self._log_in(f"an authority is killed, and {member} accepts a code", member, self._press())
        self._start_authority(name)

    def _cut_off_from_one(self) -> None:
        name = self._asked()
        self._screen.step(f"Drop all packets between web1 and its authority ({name}): only one login must be delayed")
        self._fleet.cut("web1", name)
        first = self._log_in("web1 is cut off from its authority, and accepts a code", "web1", self._press())
        again = self._log_in("web1 accepts the next code without delay", "web1", self._press())
        right = PATIENCE <= first.seconds < LIMIT and again.seconds < first.seconds
        happened = f"{first.seconds:.1f} s, then {again.seconds:.1f} s"
        self._result(f"an unreachable authority delays one login by {PATIENCE} s", happened, right=right)
        self._fleet.heal()

    def _cut_off_from_all(self) -> None:
        self._screen.step("Cut web1 off from all authorities: web1 must refuse all codes except its recovery codes")
        codes = self._type("web1", "member", "break-glass", USER, "--count", "2", "--output", "-")
        recovery = next(line.split()[1] for line in codes.splitlines() if line.startswith(f"{USER} "))
        self._fleet.cut("web1", *AUTHORITIES)
        code = self._press()
        promise = "web1 is cut off from all authorities, and refuses a code"
        attempt = self._log_in(promise, "web1", code, accepted=False)
        promise = f"a member without authorities refuses within {LIMIT:.0f} s"
        self._result(promise, f"{attempt.seconds:.1f} s", right=attempt.seconds < LIMIT + BUSY)
        self._show_log("web1", UNREACHED)
        self._log_in("web2 accepts the same code", "web2", code)
        self._log_in("web1 refuses a recovery code without break-glass", "web1", recovery, accepted=False)
        self._write("web1", "/etc/pam_totp.toml", 'centre_down = "break-glass"\n', add=True)
        self._log_in("web1 accepts a recovery code with break-glass", "web1", recovery)
        self._log_in("web1 refuses a used recovery code", "web1", recovery, accepted=False)
        self._fleet.heal()
        self._log_in("web1 reaches the authorities, and accepts a code", "web1", self._press())

    def _failover(self) -> None:
        self._screen.step("Cut the power of the primary, and promote the standby: a used code must be refused")
        used = self._press()
        self._log_in("web2 accepts a code just before the primary is lost", "web2", used)
        self._screen.text("db1 loses its power. Patroni would promote db2. Here, an administrator promotes db2:")
        begun = time.monotonic()
        self._fleet["db1"].end()
        self._prompt("db2", "pg_ctl promote")
        self._fleet.promote("db2")
        self._log_in("the new primary has no standby, and web1 refuses a code", "web1", self._press(), accepted=False)
        self._screen.text("db1 starts again, with an empty disk. pg_basebackup makes it the standby of db2:")
        self._prompt("db1", "pg_basebackup --write-recovery-conf ...")
        self._fleet.return_database("db1")
        self._fleet.make_standby("db1", "db2")
        for member in MEMBERS:
            self._log_in(f"the new primary has a standby, and {member} accepts a code", member, self._press())
        self._screen.text(f"The failover took {time.monotonic() - begun:.1f} s, with a new standby.")
        for member in MEMBERS:
            promise = f"{member} refuses a code that was used before the failover"
            self._log_in(promise, member, used, accepted=False)

    def _revoke(self) -> None:
        self._screen.step("Revoke web2: its logins must be refused, also on its open connections")
        self._type("otp1", "member", "revoke", f"web2.{DOMAIN}", "--yes")
        code = self._press()
        self._log_in("a member is revoked, and its next login is refused", "web2", code, accepted=False)
        self._show_log("web2", NOT_A_MEMBER)
        self._log_in("web1 accepts the same code", "web1", code)
        self._type("otp1", "member", "list")

    def _logs(self) -> None:
        self._screen.step("Read the logs: one line for each answer, at the member and at the authority")
        for name in (MEMBERS[0], *AUTHORITIES):
            self._screen.text(f"{name}:")
            self._show_log(name, f"user={USER}", count=2)

    # ---- parts of a step

    def _press(self) -> str:
        (code,) = self._token.press()
        return code

    def _asked(self) -> str:
        """Return the authority that web1 asked last."""
        lines = self._fleet["web1"].log("accepted", "authority=")
        return lines[-1].partition("authority=")[2].partition(".")[0] if lines else AUTHORITIES[0]

    def _log_in(self, promise: str, name: str, answer: str, *, accepted: bool = True) -> Attempt:
        """Log in through libpam, and record whether the result was as expected. Return the attempt."""
        self._prompt(name, "pam-totp", "rehearse", "sshd", USER)
        attempt = self._fleet.rehearse(name, answer)
        texts = [text + (answer if number == 0 else "") for number, text in enumerate(attempt.texts)]
        self._screen.text("\n".join([*texts, attempt.error]))
        self._verdict(promise, attempt, accepted=accepted)
        return attempt

    def _verdict(self, promise: str, attempt: Attempt, *, accepted: bool = True) -> None:
        happened = f"{'accepted' if attempt.accepted else 'refused'} after {attempt.seconds:.1f} s"
        self._result(promise, happened, right=attempt.accepted == accepted)

    def _result(self, promise: str, happened: str, *, right: bool) -> None:
        self._screen.result(promise, happened, right=right)

    def _type(self, name: str, *words: str, stdin: str = "") -> str:
        """Run a pam-totp command on a host. Return the standard output. Exit with a message if the command fails."""
        self._prompt(name, "pam-totp", *(f"'{word}'" if "&" in word else word for word in words))
        done = self._fleet[name].run("pam-totp", *words, stdin=stdin)
        self._screen.text(done.stdout + done.stderr)
        if done.returncode != 0:
            raise SystemExit(f"demo failed: pam-totp {' '.join(words[:2])}: exit status {done.returncode}")
        return done.stdout

    def _prompt(self, name: str, *words: str) -> None:
        """Print a command line with root's prompt on a host."""
        self._screen.text(f"{name}# {' '.join(words)}", "36")

    def _show_log(self, name: str, *words: str, count: int = 1) -> None:
        """Print the last `count` lines of a host's log that contain all `words`."""
        self._screen.text("\n".join(self._fleet[name].log(*words)[-count:]))

    def _write(self, name: str, path: str, text: str, *, add: bool = False) -> None:
        """Write a file on a host, or append to the file. Print the command and the text."""
        self._prompt(name, "cat", ">>" if add else ">", path)
        self._screen.lines([f"    {part}" for line in text.splitlines() for part in textwrap.wrap(line, WIDTH) or [""]])
        old = self._fleet[name].path(path).read_text() if add else ""
        self._fleet[name].write(path, old + text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ndemo interrupted by Ctrl-C (all hosts were removed)", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
