"""The service: `pam-totp serve`, a permanent process that accepts logins from a Unix socket.

Rules:
1. One thread serves all logins (`loop`). Other threads do work that may take long: lookups of names outside
   /etc/passwd, searches for codes in a row, waits for locks and busy disks.
2. The service disconnects a client that is silent until a time limit of `protocol`.
3. `login_quota` limits the logins of an account, before any other work.
4. A slow name service and a held lock delay only the logins that need them. `store_queue` gives the order of the
   decisions.
5. The service counts each login and each answer in memory (`metrics`), after its line in the log.
"""

from __future__ import annotations

import hashlib  # noqa: F401  with json, because logins import these late, and an upgrade can remove their version
import json  # noqa: F401
import os
import resource
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, NoReturn

from pam_totp.core.settings import MemberSettings, SettingsError, Site
from pam_totp.core.verify import Decision, verify
from pam_totp.metrics import counters
from pam_totp.metrics.counters import Metrics
from pam_totp.metrics.endpoint import Endpoint
from pam_totp.operations import audit_log
from pam_totp.operations.conversation import Pause, Waits
from pam_totp.operations.dialogue import Dialogue
from pam_totp.operations.verifier import UseStore
from pam_totp.pam import login
from pam_totp.pam.admission import admit, client_accounts, is_listed, peer_uid
from pam_totp.pam.listening import ServiceError, listening
from pam_totp.pam.log_quota import LogQuota
from pam_totp.pam.login_quota import ROOT, WITHOUT_ENTRY, Account, Caller, LoginQuota, NotLookedUp
from pam_totp.pam.login_session import LookUp, Receive, Session, place_of_bug, read_site
from pam_totp.pam.lookups import Lookups
from pam_totp.pam.loop import Loop, Pool
from pam_totp.pam.names import LocalAccounts, has_passwd_entry, passwd_name
from pam_totp.pam.protocol import (
    MAX_PACKET,
    PAM_AUTH_ERR,
    PAM_AUTHINFO_UNAVAIL,
    PAM_CONV_ERR,
    PAM_IGNORE,
    PAM_SERVICE_ERR,
    PAM_SUCCESS,
    Hello,
    NoMessage,
    ProtocolError,
    receive,
    send,
)
from pam_totp.pam.store_queue import StoreQueue
from pam_totp.store import StoreError
from pam_totp.store.locations import opened

MAX_FILES = 16_384  # descriptors: one for each login, a few for each thread, with slack
MAX_ACCEPTED = 16  # connections to accept before other logins continue
NO_DESCRIPTOR_PAUSE = 0.05  # seconds before the next attempt if no descriptor is free
LIMITS_EVERY = 1.0  # seconds between two checks of the time limits
TYPING = 0.002  # seconds after a prompt: programs answer earlier, and users later
MAX_STORE_USES = 256  # threads that wait for a lock or a disk; many, because a wait may never end
THREAD_STACK = 256 * 1024  # bytes
STOP_WAIT = 5.0  # seconds from a stop to the end of unfinished logins
COUNTED_AS = {  # PAM result -> its name in the metrics
    PAM_SUCCESS: "accepted",
    PAM_AUTH_ERR: "refused",
    PAM_IGNORE: "ignored",
    PAM_AUTHINFO_UNAVAIL: "unavailable",
    PAM_CONV_ERR: "no_answer",
    PAM_SERVICE_ERR: "error",
}


class Service:
    """A server for logins from `listener`, until `stop`. Logins without an argument `store=` use `store`.

    Each of `workers` processes that share the socket allows an equal part of the quota of logins.
    """

    def __init__(
        self,
        listener: socket.socket,
        store: str,
        site_file: str,
        log: audit_log.Sink,
        workers: int = 1,
        *,
        metrics: Metrics | None = None,
    ) -> None:
        self.metrics = metrics or Metrics(workers + 1)
        self._listener = listener
        self._store = store
        self._site_file = site_file
        self._log = log
        self._log_quota = LogQuota(log)
        self._trusted = {0, os.geteuid()}  # uids without a limit for log lines
        self.local_accounts = LocalAccounts()
        self._checks_limits = False  # True while the service has connections
        self.quota = LoginQuota(workers, _descriptor_limit())
        self.stopping, self._stop = socket.socketpair()  # `stopping` becomes readable when the service has to stop
        self._stop.setblocking(False)
        self.connections: set[_Connection] = set()
        self.buffer = bytearray(MAX_PACKET + 1)

    def run(self) -> None:
        """Serve until `stop`, then wait for the unfinished logins. Raise ServiceError if no thread can be started."""
        self.loop = Loop(self._log_bug)
        try:
            self.lookups = Lookups(self.loop)
            self.store_queue = StoreQueue(self.loop, Pool(MAX_STORE_USES))
        except RuntimeError as e:
            raise ServiceError(f"cannot serve logins: {e}") from e
        self._listener.setblocking(False)
        self._listen()
        self.loop.watch(self.stopping.fileno(), self._end)
        self.loop.run()

    def stop(self) -> None:
        """Stop accepting logins, in every process of the service."""
        with suppress(BlockingIOError):  # the buffer is full: an earlier call has already stopped the service
            self._stop.send(b"x")

    def stop_on(self, *signals: signal.Signals) -> None:
        """Stop when one of the signals arrives.

        The interpreter's handler in C wakes `run` by a byte; a handler in Python would run only after `run` wakes.
        """
        signal.set_wakeup_fd(self._stop.fileno())
        for number in signals:
            signal.signal(number, lambda *_: None)

    def stop_with(self) -> None:
        """Stop when the parent process stops. Ignore signals, because the parent handles them."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self._stop.close()

    def leave_listening_to_workers(self) -> None:
        """Close the listener in this process. Otherwise clients would wait for this process when the workers have
        ended."""
        self._listener.close()

    def _log_bug(self, bug: Exception) -> None:
        with suppress(Exception):  # the log failed
            audit_log.write(self._log, "serve", "error", problem=place_of_bug(bug))

    def _listen(self) -> None:
        if self._listener.fileno() >= 0:
            self.loop.watch(self._listener.fileno(), self._accept, always=True)

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED):
            try:
                client = self._listener.accept()[0]
            except BlockingIOError:
                return
            except ConnectionError:  # the client has closed the connection
                continue
            except OSError:  # either the service has closed the listener, or no descriptor is free
                if self._listener.fileno() >= 0:
                    self.loop.unwatch(self._listener.fileno())
                    self.loop.call_later(NO_DESCRIPTOR_PAUSE, self._listen)
                return
            uid = peer_uid(client)
            connection = _Connection(self, client, uid, self._log if uid in self._trusted else self._log_quota.of(uid))
            self.connections.add(connection)
            if not self._checks_limits:
                self._checks_limits = True
                self.loop.call_later(LIMITS_EVERY, self._check_limits)
            if not self.loop.is_busy:
                connection.resume()
                return
            self.loop.call_next(connection.resume)

    def _check_limits(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.check_limit(now)
        self._checks_limits = bool(self.connections)
        if self._checks_limits:
            self.loop.call_later(LIMITS_EVERY, self._check_limits)

    def _end(self) -> None:
        """Accept no more logins. Stop when the unfinished logins have ended, at the latest after STOP_WAIT."""
        if self._listener.fileno() >= 0:
            self.loop.unwatch(self._listener.fileno())
            self._listener.close()
        self.loop.call_later(STOP_WAIT, self.loop.stop)
        self._stop_if_unused()

    def _stop_if_unused(self) -> None:
        if not self.connections and self._listener.fileno() < 0:
            self.loop.stop()

    def remove(self, connection: _Connection) -> None:
        self.connections.discard(connection)
        self._stop_if_unused()

    def _search(self, *arguments: Any, **options: Any) -> Decision:
        """Verify an answer that needs a long search. Then end the turn, so that another search can begin while this
        login writes."""
        try:
            return verify(*arguments, **options)
        finally:
            self.store_queue.search_turns.end()

    def begin(self, connection: _Connection, hello: Hello) -> Dialogue | LookUp | int | None:
        """Return the dialogue of a login, the lookup that begins this dialogue, or the PAM result of the login.

        Return None if root programs have too many logins. Raise SettingsError or StoreError.
        """
        uid, log = connection.uid, connection.log
        connection.service_name = hello.service
        if uid == ROOT:  # only for root, because other accounts could choose a new asker for each login
            connection.asker = uid, hello.ruser, hello.rhost
        if uid == ROOT and hello.ruser not in (None, "", "root") and not connection.acquire(Caller(*connection.asker)):
            reason = "too-many-at-once"
            audit_log.write(log, hello.service, "refused", user=hello.user, reason=reason, ruser=hello.ruser)
            connection.count("refused", {"reason": reason})
            return PAM_AUTHINFO_UNAVAIL
        if uid == ROOT and self.quota.is_full:
            problem = "too many logins at once: root starts helpers"
            audit_log.write(log, hello.service, "error", user=hello.user, problem=problem)
            return None
        site = read_site(self._site_file)
        accounts = [hello.user, *(a.removeprefix("user=") for a in hello.arguments if a.startswith("user="))]
        if uid != ROOT:
            accounts += client_accounts(hello, site)
        if self.local_accounts.have(*accounts):  # the name in the passwd entry is the given name
            return self._admit_and_begin(connection, hello, site, str)
        return LookUp(partial(self._admit_and_begin, connection, hello, site, passwd_name))

    def _admit_and_begin(
        self, connection: _Connection, hello: Hello, site: Site, passwd_name: Callable[[str], str]
    ) -> Dialogue | int:
        """Return the dialogue of a login, or the PAM result of the login. Raise SettingsError or StoreError."""
        uid, log = connection.uid, connection.log
        client = uid != ROOT and is_listed(uid, hello, site)
        if client:
            log = connection.log = self._log  # lines about listed clients have no limit
            connection.may_name = True
        admitted = admit(uid, hello, client=client)
        if admitted is None:
            reason = "not-yours-to-ask"
            audit_log.write(log, hello.service, "refused", user=hello.user, reason=reason, uid=uid)
            connection.count("refused", {"reason": reason})
            return PAM_AUTH_ERR
        if site.member is None and not any(a.startswith("store=") for a in admitted.arguments):
            admitted = admitted.with_arguments((*admitted.arguments, f"store={self._store}"))
        host = login.Host(
            site=site,
            store=self._store,
            log=log,
            passwd_name=passwd_name,
            name_of_uid=self.local_accounts.name_of_uid,
            search=self._search,
            count=connection.count,
        )
        return login.begin(admitted, host)


class _Connection:
    """One login: its channel, its session, and its share of the quotas."""

    def __init__(self, service: Service, client: socket.socket, uid: int, log: audit_log.Sink) -> None:
        self._service, self._client = service, client
        self.uid, self.log = uid, log
        self.asker: tuple[int, str | None, str | None] = uid, None, None  # uid, ruser and rhost
        self._accounts: list[Account] = []
        self._waits = self._run()
        self._packet_wait: Receive | None = None  # the current wait, if it is for a packet
        self._limit = 0.0  # the end of `_packet_wait`, in monotonic seconds
        self._packet_time = 0.0  # the arrival of the last packet, in monotonic seconds
        self.service_name: str | None = None  # None until the hello has arrived
        self.may_name = uid == ROOT  # True if the client may add its service's name to the metrics
        self._result = "unfinished"  # in the metrics

    def acquire(self, account: Account) -> bool:
        """Count the login for `account`, until the login ends. Return False if a quota is used up."""
        acquired = self._service.quota.acquire(account)
        if acquired:
            self._accounts.append(account)
        return acquired

    def _run(self) -> Waits[None]:
        is_root = self.uid == ROOT
        account: Account = self.uid
        if not is_root and not self._service.local_accounts.have(self.uid):
            if not self.acquire(NotLookedUp(self.uid)):
                return
            account = self.uid if (yield LookUp(partial(has_passwd_entry, self.uid))) else WITHOUT_ENTRY
            self._release()
        if not self.acquire(account):
            return
        begin = partial(self._service.begin, self)
        yield from Session(self._send, self._write_log, begin, names_rhost=is_root).run()

    def _release(self) -> None:
        while self._accounts:
            self._service.quota.release(self._accounts.pop())

    def _send(self, kind: bytes, body: bytes | memoryview = b"") -> None:
        send(self._client, kind, body)
        if kind == b"f":
            self._result = "full"
        elif kind == b"r":
            self._result = COUNTED_AS.get(int(bytes(body)), "error")

    def count(self, verb: str, fields: Mapping[str, object]) -> None:
        """Count an answer after the reply, by the `verb` and the `fields` of the answer's line in the log."""
        seconds, service = time.monotonic() - self._packet_time, self._service
        count = partial(service.metrics.answer, self.service_name or "", verb, fields, seconds, may_name=self.may_name)
        service.loop.call_next(count)

    def _write_log(self, priority: int, line: str) -> None:
        self.log(priority, line)  # `Service._admit_and_begin` may change `self.log`

    def resume(self, reply: object = None, error: Exception | None = None) -> None:
        """Continue the session until its next wait or its end."""
        loop = self._service.loop
        self._packet_wait = None
        try:
            wait = self._waits.send(reply) if error is None else self._waits.throw(error)
        except Exception:  # the session has ended; or the log failed, which denies the login
            self._close()
            return
        if isinstance(wait, Receive):
            self._packet_wait, self._limit = wait, time.monotonic() + wait.seconds
            if wait.meanwhile is not None and not (wait.meanwhile.is_slow or wait.meanwhile.is_remote):
                loop.call_later(TYPING, partial(self._do_meanwhile, wait))
            self._watch()
        elif isinstance(wait, Pause):
            loop.call_later(self._packet_time + wait.seconds - time.monotonic(), self.resume)
        elif isinstance(wait, UseStore):
            self._service.store_queue.use(self.asker, wait, self.resume)
        else:
            self._service.lookups.look_up(self.uid, wait, self.resume)

    def _do_meanwhile(self, wait: Receive) -> None:
        """Run `meanwhile` of `wait`, unless the packet has arrived."""
        if self._packet_wait is wait and wait.meanwhile is not None:
            wait.meanwhile.job(0.0)

    def _watch(self) -> None:
        """Continue when a packet arrives."""
        self._service.loop.watch(self._client.fileno(), self._receive)

    def _receive(self) -> None:
        """Continue with the packet that has arrived. The delay of a refusal begins at the time of the poll that found
        the packet. Otherwise, among many logins, the delay would show the processing time of other answers.
        """
        if self._packet_wait is None:
            return  # the time limit has passed
        try:
            packet = receive(self._client, self._service.buffer)
        except ProtocolError as e:
            self.resume(error=e)
            return
        if packet is None:
            self._watch()
        else:
            self._packet_time = self._service.loop.poll_time
            self.resume(packet)

    def check_limit(self, now: float) -> None:
        """End the login if the client has exceeded the time limit at `now` (monotonic seconds)."""
        if self._packet_wait is not None and self._limit <= now:
            self.resume(error=NoMessage(self._packet_wait.seconds))

    def _close(self) -> None:
        self._service.loop.unwatch(self._client.fileno())
        self._client.close()
        self._release()
        if self.service_name is not None:
            self._service.metrics.login(self.service_name, self._result, may_name=self.may_name)
        self._service.remove(self)


def _descriptor_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if soft == resource.RLIM_INFINITY else soft


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors, because the default is far below the number of simultaneous logins."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    with suppress(OSError, ValueError):  # a service unit may forbid the change, and set LimitNOFILE= instead
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))


def serve(
    path: str | None,
    store: str,
    site_file: str,
    log: audit_log.Sink,
    workers: int = 1,
    *,
    metrics_path: str | None = None,
) -> None:
    """Run the service until SIGTERM or SIGINT. Raise ServiceError if the service cannot start, or if a worker exits.

    The socket `metrics_path` serves the metrics of all workers. A `metrics_path` of None disables this socket.
    """
    _raise_descriptor_limit()
    metrics = Metrics(workers + 1)  # of the parent process, and of each worker
    log = metrics.sink(log)
    with ExitStack() as stack:
        listener = stack.enter_context(listening(path))
        service = Service(listener, store, site_file, log, workers, metrics=metrics)
        service.stop_on(signal.SIGTERM, signal.SIGINT)
        threading.stack_size(THREAD_STACK)
        try:
            next(opened(store).users(), None)
        except StoreError as e:  # start nevertheless: logins will work when the store is repaired
            audit_log.write(log, "serve", "error", problem=str(e))
        renew = _renewal(site_file, log)

        def start_threads() -> None:
            renew()
            if metrics_path is not None:
                endpoint = Endpoint(metrics_path, metrics, counters.SERVICE, partial(_log_error, log))
                endpoint.open()
                stack.callback(endpoint.close)

        if workers == 1:
            start_threads()
            service.run()
        else:
            run_workers(service, workers, start_threads)


def _log_error(log: audit_log.Sink, problem: str) -> None:
    with suppress(Exception):  # the log failed
        audit_log.write(log, "serve", "error", problem=problem)


def _renewal(site_file: str, log: audit_log.Sink) -> Callable[[], None]:
    """Return a function that starts the renewal of a member's certificate. On other hosts, this function does
    nothing."""

    def member() -> MemberSettings | None:
        return read_site(site_file).member

    try:
        is_member = member() is not None
    except SettingsError:  # logins will report this error
        is_member = False
    if not is_member:
        return lambda: None
    # Import the modules now, because an upgrade can remove this version of the package.
    from pam_totp.member import decisions, joining, renewal  # noqa: F401

    return partial(renewal.watch, member, partial(audit_log.write, log, renewal.SERVICE))


def run_workers(service: Service, count: int, then: Callable[[], None] = lambda: None) -> None:
    """Run `service` in `count` processes, because one interpreter uses one core. Stop all workers if a worker exits.

    Call `then`, which may start threads, when all workers run.
    Raise ServiceError if a worker cannot be started, or exits before `stop`.
    """
    children: dict[int, int] = {}  # pidfd -> pid
    try:
        for number in range(count):
            child = os.fork()
            if child == 0:
                service.metrics.use_region(number + 1)
                _work(service)
            children[os.pidfd_open(child)] = child
        service.leave_listening_to_workers()
        then()
        stopping = service.stopping.fileno()
        ready, _, _ = select.select([stopping, *children], [], [])
        if stopping not in ready:
            raise ServiceError(f"worker {children[ready[0]]} exited unexpectedly")
    except OSError as e:
        raise ServiceError(f"cannot start a worker: {e.strerror}") from e
    finally:
        service.stop()
        for pidfd, child in children.items():
            os.waitpid(child, 0)
            os.close(pidfd)


def _work(service: Service) -> NoReturn:
    status = 1
    try:
        service.stop_with()
        service.run()
        status = 0
    finally:
        os._exit(status)
