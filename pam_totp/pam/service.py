"""The service: `pam-totp serve`, a permanent process that accepts logins from a Unix socket.

Rules:
1. Each login has one thread. Threads share only the store.
2. A client that sends nothing occupies one thread until a time limit of `pam_handle` ends its login.
3. `login_quota` limits how many logins an account may have.
4. When a login ends, its thread waits for the next login. A thread that accepts a login makes sure that another thread
   waits, because starting a thread takes longer than most logins.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from pam_totp.core.settings import SettingsError
from pam_totp.operations import audit_log
from pam_totp.pam.admission import admit, listed, peer_uid
from pam_totp.pam.listening import ServiceError, listening
from pam_totp.pam.log_quota import LogQuota
from pam_totp.pam.login_quota import Account, LoginQuota
from pam_totp.pam.login_session import read_site, serve_one
from pam_totp.pam.module import Host, this_host
from pam_totp.pam.pam_handle import PAM_AUTH_ERR, PAM_AUTHINFO_UNAVAIL, PAM_SERVICE_ERR, Hello
from pam_totp.store import StoreError
from pam_totp.store.file import FileStore

MAX_FILES = 16_384  # descriptors: four for each login, with slack
NO_DESCRIPTOR_PAUSE = 0.05  # seconds before the next attempt if no descriptor is free
MAX_WAITING = 32  # threads that wait for a login; any further thread ends
THREAD_STACK = 256 * 1024  # bytes
_ONE_AT_A_TIME = select.EPOLLIN | select.EPOLLONESHOT  # a login wakes one thread
STOP_WAIT = 5.0  # seconds for the unfinished logins when the service stops


class Service:
    """Accepts logins from `listener` until `stop`. Logins without an argument `store=` use `store`.

    Each of `workers` processes that share the socket allows an equal part of the quota of logins.
    """

    def __init__(
        self, listener: socket.socket, store: str, site_file: str, log: audit_log.Sink, workers: int = 1
    ) -> None:
        self._listener = listener
        self._store = store
        self._site_file = site_file
        self._log = log
        self._log_quota = LogQuota(log)
        self._trusted = {0, os.geteuid()}  # uids whose lines are always logged
        self._login_quota = LoginQuota(workers)
        self.stopping, self._stop = socket.socketpair()  # `stopping` becomes readable when the service has to stop
        self._stop.setblocking(False)
        self._changed = threading.Condition()
        self._threads = 0
        self._waiting = 0  # threads without a login

    def run(self) -> None:
        """Serve until `stop`, then wait for the unfinished logins. Raise ServiceError if no thread can be started."""
        self._listener.setblocking(False)
        self._ready = select.epoll()
        self._ready.register(self._listener, _ONE_AT_A_TIME)
        self._ready.register(self.stopping, select.EPOLLIN)
        try:
            with self._changed:
                self._start_waiting()
        except RuntimeError as e:
            raise ServiceError(f"no login can be served: {e}") from e
        select.select([self.stopping], [], [])
        self._listener.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._threads, timeout=STOP_WAIT)

    def stop(self) -> None:
        """Stop accepting logins, in every process of the service."""
        self._listener.close()
        with suppress(BlockingIOError):  # the buffer is full, so an earlier call has already stopped the service
            self._stop.send(b"x")

    def stop_on(self, *signals: signal.Signals) -> None:
        """Stop when one of the signals arrives.

        The interpreter's handler in C wakes `run` by a byte; a handler in Python would run only after `run` wakes.
        """
        signal.set_wakeup_fd(self._stop.fileno())
        for number in signals:
            signal.signal(number, lambda *_: None)

    def stop_with(self) -> None:
        """Stop when the parent process stops. Signals are ignored, because the parent handles them."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self._stop.close()

    def _start_waiting(self) -> None:
        """Start one more thread, which waits for a login. The caller holds `_changed`."""
        threading.Thread(target=self._work, daemon=True).start()
        self._threads += 1
        self._waiting += 1

    def _work(self) -> None:
        """Accept and serve logins until the service stops, or until enough other threads wait."""
        try:
            while not any(descriptor == self.stopping.fileno() for descriptor, _ in self._ready.poll()):
                client = self._accepted()
                if client is not None:
                    self._leave_others_waiting()
                    with client, suppress(Exception):  # the log failed: the login is denied, the thread continues
                        self._carry(client)
                    if not self._wait_again():
                        break
        finally:
            with self._changed:
                self._threads -= 1
                self._changed.notify_all()

    def _leave_others_waiting(self) -> None:
        with self._changed:
            self._waiting -= 1
            if self._waiting == 0:
                with suppress(RuntimeError):  # no thread can be started: a busy thread will wait again
                    self._start_waiting()

    def _wait_again(self) -> bool:
        with self._changed:
            of_use = self._waiting < MAX_WAITING
            self._waiting += of_use
            return of_use

    def _accepted(self) -> socket.socket | None:
        try:
            return self._listener.accept()[0]
        except (BlockingIOError, ConnectionError):  # another thread accepted it, or the client left
            return None
        except OSError:  # no descriptor is free: pause instead of a busy loop
            select.select([self.stopping], [], [], NO_DESCRIPTOR_PAUSE)
            return None
        finally:
            with suppress(ValueError, OSError):  # the listener is closed: the service is stopping
                self._ready.modify(self._listener, _ONE_AT_A_TIME)

    def _carry(self, client: socket.socket) -> None:
        uid = peer_uid(client)
        log = self._log if uid in self._trusted else self._log_quota.of(uid)
        with self._login_quota.login() as acquire:
            if acquire(uid):
                serve_one(client, log, lambda hello: self._prepare(uid, hello, log, acquire))

    def _prepare(
        self, uid: int, hello: Hello, log: audit_log.Sink, acquire: Callable[[Account], bool]
    ) -> tuple[Hello, Host] | int:
        if uid == 0 and hello.ruser and not acquire(hello.ruser):
            audit_log.write(
                log, hello.service, "refused", user=hello.user, reason="too-many-at-once", ruser=hello.ruser
            )
            return PAM_AUTHINFO_UNAVAIL
        try:
            site = read_site(self._site_file)
        except SettingsError as e:
            audit_log.write(log, hello.service, "error", user=hello.user, problem=str(e))
            return PAM_SERVICE_ERR
        client = uid != 0 and listed(uid, hello, site)
        admitted = admit(uid, hello, client=client)
        if admitted is None:
            audit_log.write(log, hello.service, "refused", user=hello.user, reason="not-yours-to-ask", uid=uid)
            return PAM_AUTH_ERR
        if not any(a.startswith("store=") for a in admitted.arguments):
            admitted = admitted.with_arguments((*admitted.arguments, f"store={self._store}"))
        return admitted, this_host(site, self._log if client else log)


def _raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors: the default is far below the number of simultaneous logins."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    with suppress(OSError, ValueError):  # a service unit may forbid it, and set LimitNOFILE= instead
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))


def serve(path: str | None, store: str, site_file: str, log: audit_log.Sink, workers: int = 1) -> None:
    """Run the service until SIGTERM or SIGINT. Raise ServiceError if it cannot start, or if a worker exits."""
    _raise_descriptor_limit()
    with listening(path) as listener:
        service = Service(listener, store, site_file, log, workers)
        service.stop_on(signal.SIGTERM, signal.SIGINT)
        threading.stack_size(THREAD_STACK)
        try:
            next(FileStore(store).users(), None)
        except StoreError as e:  # start all the same: logins work again once the store is repaired
            audit_log.write(log, "serve", "error", problem=str(e))
        if workers == 1:
            service.run()
        else:
            run_workers(service, workers)


def run_workers(service: Service, count: int) -> None:
    """Run `service` in `count` processes, because one interpreter uses one core. If a worker exits, stop all workers.

    Raise ServiceError if a worker cannot be started, or exits before `stop`.
    """
    children: dict[int, int] = {}  # pidfd -> pid
    try:
        for _ in range(count):
            child = os.fork()
            if child == 0:
                _work(service)
            children[os.pidfd_open(child)] = child
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
