"""The HTTPS server of an authority.

Rules:
1. The server looks up the certificate of each request in the database. `/v1/ca` and `/v1/join` need no certificate.
2. A reply has a status and one short JSON object. The reason of a refusal is in the log.
3. A request that the authority cannot decide gets 503, so that the member asks another authority.
4. The server delays a refusal, so that the time of the reply does not show the work for the answer
   (`Answers.refusal_delay`). The server also delays the reply that a user needs a code, and the refusal of a ticket
   (ASK_DELAY).
5. A stop ends kept connections, but completes the requests that were received.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import TypeVar

from aiohttp import web

from pam_totp import __version__
from pam_totp.authority import certificates, radius
from pam_totp.authority.answers import REVOKED, Answers, NotAMember, NotPermitted
from pam_totp.authority.certificates import MEMBER_DAYS, BadRequest, CertificateError, Issuer
from pam_totp.authority.connections import Connection, Connections, Seldom, tls_context
from pam_totp.authority.workers import Busy, Workers
from pam_totp.core.address import host_and_port
from pam_totp.core.settings import AuthoritySettings, SettingsError
from pam_totp.member import wire
from pam_totp.operations import audit_log
from pam_totp.store import LockBusy, StoreError

SERVICE = "authority"  # the service name of lines about no login
STOP = 5.0  # seconds for the requests that were received before a stop
ASK_DELAY = 0.02  # seconds from the question whether a user needs a code to the reply that asks for one
BUSY_DELAY = 0.5  # seconds before the reply `busy`, because a member asks again immediately after a reply
JOIN_DELAY = 0.5  # seconds between a join and its refusal
THREADS_PER_CONNECTION = 4  # threads for each connection to the database
MAX_LINE, MAX_FIELD = 1024, 4096  # bytes of a request line and of a header field
DAY = 86_400  # seconds
_RENEWAL = object()  # all renewals wait for the same turn: openssl uses a whole core for a certificate
NO_CERTIFICATE = "a certificate of a member is required"
BAD_TOKEN = "the join token is unknown, used or expired (run 'pam-totp member add' again on an authority)"

M = TypeVar("M", bound=wire.Message)
R = TypeVar("R")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# The server discards the log of aiohttp, because any host could fill this log.
_aiohttp = logging.getLogger("pam_totp.authority.aiohttp")
_aiohttp.addHandler(logging.NullHandler())
_aiohttp.propagate = False


class Server:
    """The server of an authority, with `pool` connections to the database."""

    def __init__(self, settings: AuthoritySettings, answers: Answers, sink: audit_log.Sink, pool: int) -> None:
        self._settings, self._answers, self._sink = settings, answers, sink
        self._tls, self._ca = tls_context(settings), certificates.read(settings.ca)
        self._states = radius.states_of(settings.ca_key)
        self._workers = Workers(THREADS_PER_CONNECTION * pool)
        self._refused = Seldom(self._log_refused)
        self._stopped = asyncio.Event()
        self._connections: Connections

    async def run(self, ready: Callable[[list[str]], None]) -> None:
        """Serve until a signal. Call `ready` with the addresses. Raise OSError for an address that cannot be used."""
        app = web.Application(client_max_size=wire.MAX_BODY, middlewares=[self._reply])
        app.add_routes(
            [
                web.post(wire.ANSWER_PATH, self._answer),
                web.post(wire.BEGIN_PATH, self._begin),
                web.post(wire.REDEEM_PATH, self._redeem),
                web.post(wire.RADIUS_PATH, self._radius),
                web.post(wire.JOIN_PATH, self._join),
                web.post(wire.RENEW_PATH, self._renew),
                web.get(wire.CA_PATH, self._send_ca),
                web.get(wire.HEALTH_PATH, self._health),
            ]
        )
        runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            logger=_aiohttp,
            keepalive_timeout=float(self._settings.idle),
            max_line_size=MAX_LINE,
            max_field_size=MAX_FIELD,
            auto_decompress=False,
            lingering_time=0.0,
        )
        await runner.setup()
        assert runner.server is not None
        self._connections = Connections(self._tls, runner.server, self._log_refused)
        listeners: list[asyncio.Server] = []
        try:
            for text in self._settings.listen:
                host, port = host_and_port(text) or ("", 0)
                listeners.append(await self._connections.listen(host, port))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stopped.set)
            loop.add_signal_handler(signal.SIGHUP, self._read_certificates)
            ready([_text(s.getsockname()) for listener in listeners for s in listener.sockets])
            await self._stopped.wait()
        finally:
            for listener in listeners:
                listener.close()
            await self._workers.finish(STOP)
            await asyncio.sleep(0)  # the handlers write their replies
            self._connections.close()
            await runner.cleanup()

    def _read_certificates(self) -> None:
        """Read the files of the certificates again, for new connections."""
        try:
            self._connections.tls, self._ca = tls_context(self._settings), certificates.read(self._settings.ca)
            self._states = radius.states_of(self._settings.ca_key)
        except CertificateError as e:
            self._log("error", problem=str(e))

    # ---- replies

    @web.middleware
    async def _reply(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Return the reply to a request. Close the connection after status 401, without a client certificate, or after
        a stop.
        """
        connection = self._connection(request)
        try:
            response = await self._outcome(request, handler, connection)
        finally:
            connection.answered()
        if response.status == 401 or connection.fingerprint is None or self._stopped.is_set():
            response.force_close()
        return response

    async def _outcome(self, request: web.Request, handler: Handler, connection: Connection) -> web.StreamResponse:
        """Return the reply of a handler, or the reply with the status for its exception."""
        try:
            response = await handler(request)
        except NotAMember as e:
            self._refused.note(_named(e, connection), connection.peer)
            return _failure(401, str(e))
        except NotPermitted as e:
            response = _failure(403, str(e))
        except (wire.WireError, BadRequest) as e:
            response = _failure(400, str(e))
        except web.HTTPException as e:
            response = _failure(400 if e.status == 413 else e.status, e.reason)
        except Busy as e:
            self._refused.note(_named(e, connection), connection.peer)
            await self._wait_until(asyncio.get_running_loop().time() + BUSY_DELAY)
            response = _failure(503, "busy")
        except (StoreError, SettingsError, CertificateError) as e:
            self._log("error", problem=str(e), member=connection.name)
            what = next(text for kind, text in _UNAVAILABLE.items() if isinstance(e, kind))
            response = _failure(503, what)
        except Exception as e:  # a bug: deny
            self._log("error", problem=f"{type(e).__name__} in {request.path}", member=connection.name)
            response = _failure(500, "internal error")
        return response

    def _connection(self, request: web.Request) -> Connection:
        transport = request.transport
        if transport is None or transport not in self._connections.known:
            raise ConnectionResetError
        return self._connections.known[transport]

    async def _message(self, request: web.Request, kind: type[M]) -> M:
        """Read the body of a request, and return the message in it."""
        body = await request.read()
        self._connection(request).received()
        return kind.from_json(body)

    def _fingerprint(self, request: web.Request) -> bytes:
        fingerprint = self._connection(request).fingerprint
        if fingerprint is None:
            raise NotAMember(NO_CERTIFICATE)
        return fingerprint

    async def _run(self, request: web.Request, work: Callable[[], R], user: Hashable = None) -> R:
        """Call `work`, which looks up the member, in a thread. Return the result of `work`."""
        connection = self._connection(request)
        result = await self._workers.run(work, member=connection.fingerprint or connection.networks, user=user)
        if connection.fingerprint is not None:
            connection.becomes_known()
        return result

    # ---- requests

    async def _answer(self, request: web.Request) -> web.Response:
        fingerprint, question = self._fingerprint(request), await self._message(request, wire.Question)
        begun = asyncio.get_running_loop().time()
        verdict, delay = await self._run(request, partial(self._answer_now, fingerprint, question), question.user)
        await self._wait_until(begun + delay)
        return _response(verdict)

    def _answer_now(self, fingerprint: bytes, question: wire.Question) -> tuple[wire.Verdict, float]:
        """Return the verdict, and the seconds from the question to its reply."""
        verdict = self._answers.answer(fingerprint, question)
        return verdict, 0.0 if verdict.accepted else self._answers.refusal_delay(question.service)

    async def _begin(self, request: web.Request) -> web.Response:
        fingerprint, begun = self._fingerprint(request), await self._message(request, wire.Begin)
        end = asyncio.get_running_loop().time() + ASK_DELAY
        verdict = await self._run(request, partial(self._answers.begin, fingerprint, begun), begun.user)
        if verdict.verdict == wire.ASK:
            await self._wait_until(end)
        return _response(verdict)

    async def _redeem(self, request: web.Request) -> web.Response:
        fingerprint, asked = self._fingerprint(request), await self._message(request, wire.Redeem)
        end = asyncio.get_running_loop().time() + ASK_DELAY
        verdict = await self._run(request, partial(self._answers.redeem, fingerprint, asked), asked.user)
        if verdict.verdict == wire.REFUSED:
            await self._wait_until(end)
        return _response(verdict)

    async def _radius(self, request: web.Request) -> web.Response:
        fingerprint, asked = self._fingerprint(request), await self._message(request, radius.RadiusQuestion)
        begun = asyncio.get_running_loop().time()
        reply, delay = await self._run(request, partial(self._radius_now, fingerprint, asked), asked.user)
        await self._wait_until(begun + delay)
        return _response(reply)

    def _radius_now(self, fingerprint: bytes, asked: radius.RadiusQuestion) -> tuple[radius.RadiusReply, float]:
        """Return the reply to FreeRADIUS, and the seconds from the question to the reply."""
        reply = radius.answer(self._answers, self._states, fingerprint, asked)
        return reply, 0.0 if reply.accepted else self._answers.refusal_delay(asked.service)

    async def _wait_until(self, end: float) -> None:
        """Wait until the loop's time is `end`, or the server stops."""
        if end > asyncio.get_running_loop().time():
            with suppress(TimeoutError):
                async with asyncio.timeout_at(end):
                    await self._stopped.wait()

    async def _send_ca(self, request: web.Request) -> web.Response:
        self._connection(request).received()
        return _response(wire.Authority(ca=self._ca))

    async def _join(self, request: web.Request) -> web.Response:
        begun = asyncio.get_running_loop().time()
        asked = await self._message(request, wire.Join)
        joined = await self._run(request, partial(self._join_now, asked))
        if joined is None:
            self._refused.note("wrong join token", self._connection(request).peer)
            await asyncio.sleep(begun + JOIN_DELAY - asyncio.get_running_loop().time())
            raise NotPermitted(BAD_TOKEN)
        return _response(joined)

    def _join_now(self, asked: wire.Join) -> wire.Joined | None:
        """Sign the certificate of a new member, and use the token up. Return None for a wrong token, else the reply."""
        token = sha256(bytes.fromhex(asked.token)).digest()
        name = self._answers.members.joining(token)
        if name is None:
            return None
        signed = self._issuer().sign_member(asked.csr, name)
        fingerprint = certificates.fingerprint(signed)
        if self._answers.members.join(token, fingerprint, MEMBER_DAYS) is None:  # used meanwhile
            return None
        self._log("changed", what="member-join", member=name, fingerprint=fingerprint.hex(), at=int(time.time()))
        return wire.Joined(name=name, certificate=signed, ca=self._ca, authorities=self._settings.addresses)

    async def _renew(self, request: web.Request) -> web.Response:
        fingerprint, asked = self._fingerprint(request), await self._message(request, wire.Renew)
        return _response(await self._run(request, partial(self._renew_now, fingerprint, asked), _RENEWAL))

    def _renew_now(self, fingerprint: bytes, asked: wire.Renew) -> wire.Renewed:
        """Sign the next certificate of a member, and return it."""
        name = self._answers.member(fingerprint).name
        signed = self._issuer().sign_member(asked.csr, name)
        following = certificates.fingerprint(signed)
        if not self._answers.members.renew(fingerprint, following, MEMBER_DAYS):  # revoked meanwhile
            raise NotAMember(REVOKED)
        self._log("changed", what="member-renew", member=name, fingerprint=following.hex(), at=int(time.time()))
        return wire.Renewed(certificate=signed)

    def _issuer(self) -> Issuer:
        """Return the CA. Raise CertificateError if this authority does not sign."""
        if not os.path.exists(self._settings.ca_key):
            raise CertificateError(f"cannot sign certificates: {self._settings.ca_key}: not found")
        if not self._settings.addresses:
            raise CertificateError("authority.addresses in the site file must have an address")
        return Issuer(self._settings.ca, self._settings.ca_key)

    async def _health(self, request: web.Request) -> web.Response:
        fingerprint, connection = self._fingerprint(request), self._connection(request)
        connection.received()
        return _response(await self._run(request, partial(self._health_now, fingerprint, connection.not_after)))

    def _health_now(self, fingerprint: bytes, not_after: int) -> wire.Health:
        found, problem = self._answers.member(fingerprint), self._answers.members.problem()
        return wire.Health(
            time=found.now,
            version=__version__,
            member=found.name,
            certificate_days=(not_after - found.now) // DAY,
            store="ok" if problem is None else problem,
        )

    # ---- the log

    def _log(self, verb: str, **fields: str | int | None) -> None:
        audit_log.write(self._sink, SERVICE, verb, **fields)

    def _log_refused(self, reason: str, peer: str, count: int) -> None:
        self._log("error", problem=f"refused: {reason}", rhost=peer, count=None if count == 1 else count)


_UNAVAILABLE: dict[type[Exception], str] = {
    LockBusy: "busy: too many answers for this user",
    StoreError: "the database is out of reach",
    SettingsError: "the site file of the authority is invalid",
    CertificateError: "this authority cannot sign certificates",
}


def _response(message: wire.Message, status: int = 200) -> web.Response:
    return web.Response(body=message.to_json(), status=status, content_type="application/json")


def _named(error: Exception, connection: Connection) -> str:
    """Return the reason of a refusal, with the name in the certificate of the peer."""
    return f"{error} (its name is {connection.name})" if connection.name else str(error)


def _failure(status: int, reason: str) -> web.Response:
    return _response(wire.Failure(error=reason), status)


def _text(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
