"""The counters of a service: logins, answers, times of decisions, distances of accepted codes, errors.

Rules:
1. Counting is no part of a decision: it only writes to memory, and its errors are discarded.
2. The number of counters is fixed. Services beyond MAX_SERVICES, and names that an untrusted account chooses, count as
   `OTHER`.
3. A counter never contains the name of a user, host or token, or a serial number.
4. Several processes count in one shared memory, each in its own region. `collect` adds the regions up, without
   waiting for a process.
5. The reason of a refusal is secret (law 9). `collect` can leave out all facts that distinguish refusals: their
   reasons, and the times of their decisions.
"""

from __future__ import annotations

import mmap
import sys
import syslog
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from pam_totp import __version__
from pam_totp.metrics.exposition import Metric, Sample, histogram

SERVICE, AUTHORITY = "service", "authority"  # roles
OTHER = "other"
MAX_SERVICES = 32
RESULTS = ("accepted", "refused", "ignored", "unavailable", "no_answer", "error", "full", "unfinished")
# The outcomes of an answer: verbs of the log.
ACCEPTED, REFUSED, IGNORED, PRESENTED = "accepted", "refused", "ignored", "presented"
FIELDS = {ACCEPTED: "by", REFUSED: "reason", IGNORED: "reason", PRESENTED: "what"}  # outcome -> field with its reason
REASONS = {  # the values of these fields
    ACCEPTED: ("code", "row", "recovery", "temporary", "ticket", "grace", "break-glass", OTHER),
    REFUSED: (
        "wrong",
        "replayed",
        "codes-in-a-row-needed",
        "repeated",
        "locked",
        "malformed",
        "not-enrolled",
        "not-confirmed",
        "ticket-ended",
        "no-answer",
        "refused",
        "not-this-member",
        "not-a-member",
        "member-budget",
        "not-yours-to-ask",
        "too-many-at-once",
        OTHER,
    ),
    IGNORED: ("not-enrolled", OTHER),
    PRESENTED: ("ticket", OTHER),
}
# The reasons of answers without a decision.
NO_DECISION = {"grace", "no-answer", "not-yours-to-ask", "too-many-at-once", "not-this-member"}
OPEN_REASONS = {"no-answer", "not-yours-to-ask", "too-many-at-once"}  # reasons of refusals that the user may see
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
AHEAD = (0, 1, 2, 3, 5, 7, 10, 20, 50, 100, 1000)  # counters
DRIFT = (-10, -5, -3, -2, -1, 0, 1, 2, 3, 5, 10)  # steps
_MICRO = 1_000_000
_CELL = 8  # bytes: a signed number of 64 bits
_NAME = 32  # bytes: the longest name of a service

_ANSWERS = [(outcome, reason) for outcome, reasons in REASONS.items() for reason in reasons]
_ANSWER = {pair: i for i, pair in enumerate(_ANSWERS)}
_RESULT = {result: i for i, result in enumerate(RESULTS)}
_OF_SERVICE = len(RESULTS) + len(_ANSWERS)  # cells for each service
_NAMES = 1  # the cell of the first name; cell 0 has the number of names
_SERVICES = _NAMES + MAX_SERVICES * _NAME // _CELL
_ERRORS = _SERVICES + (MAX_SERVICES + 1) * _OF_SERVICE
_DECISION = {ACCEPTED: _ERRORS + 1, REFUSED: _ERRORS + 1 + len(SECONDS) + 2}  # cells of buckets, then of the sum
_AHEAD = _DECISION[REFUSED] + len(SECONDS) + 2
_DRIFT = _AHEAD + len(AHEAD) + 2
_REGION = _DRIFT + len(DRIFT) + 2  # cells


class Metrics:
    """The counters of `processes` processes. Each of several processes calls `use_region` after its fork."""

    def __init__(self, processes: int = 1, *, now: Callable[[], float] = time.time) -> None:
        self._cells = memoryview(mmap.mmap(-1, processes * _REGION * _CELL)).cast("q")
        self._started = now()
        self._lock = threading.Lock()
        self.use_region(0)

    def use_region(self, number: int) -> None:
        """Count in the region `number`."""
        self._own = self._cells[number * _REGION : (number + 1) * _REGION]
        self._services: dict[str, int] = {}  # name -> cell of its first counter

    # ---- counting

    def login(self, service: str, result: str, *, may_name: bool = True) -> None:
        """Count a login by its result. `may_name` is True if the name of the service is trusted."""
        with suppress(Exception), self._lock:  # rule 1
            self._own[self._cell_of(service, may_name) + _RESULT[result]] += 1

    def answer(
        self,
        service: str,
        verb: str,
        fields: Mapping[str, object],
        seconds: float,
        *,
        may_name: bool = True,
    ) -> None:
        """Count an answer by the verb and the fields of its line in the log. `seconds` is the time of the decision."""
        if verb not in REASONS:
            return
        with suppress(Exception), self._lock:  # rule 1
            reason = str(fields.get(FIELDS[verb]))
            number = _ANSWER.get((verb, reason), _ANSWER[verb, OTHER])
            self._own[self._cell_of(service, may_name) + len(RESULTS) + number] += 1
            if verb in _DECISION and reason not in NO_DECISION:
                self._observe(_DECISION[verb], SECONDS, seconds, round(seconds * _MICRO))
            for name, first, bounds in (("ahead", _AHEAD, AHEAD), ("drift", _DRIFT, DRIFT)):
                distance = fields.get(name)
                if isinstance(distance, int):
                    self._observe(first, bounds, distance, distance)

    def error(self) -> None:
        """Count an error."""
        with suppress(Exception), self._lock:  # rule 1
            self._own[_ERRORS] += 1

    def sink(self, log: Callable[[int, str], None]) -> Callable[[int, str], None]:
        """Return a sink that counts the errors among the lines, and passes all lines to `log`."""

        def write(priority: int, line: str) -> None:
            if priority <= syslog.LOG_ERR:
                self.error()
            log(priority, line)

        return write

    def _observe(self, first: int, bounds: tuple[float, ...], value: float, amount: int) -> None:
        self._own[first + bisect_left(bounds, value)] += 1
        self._own[first + len(bounds) + 1] += amount

    def _cell_of(self, service: str, may_name: bool) -> int:
        """Return the cell of the first counter of a service."""
        cell = self._services.get(service)
        if cell is not None:
            return cell
        count, name = self._own[0], service.encode("utf-8", "replace")
        if not (may_name and count < MAX_SERVICES and 0 < len(name) <= _NAME and _is_plain(service)):
            return _SERVICES + MAX_SERVICES * _OF_SERVICE
        cells = memoryview(name.ljust(_NAME, b"\0")).cast("q")
        begin = _NAMES + count * len(cells)
        self._own[begin : begin + len(cells)] = cells
        self._own[0] = count + 1
        self._services[service] = cell = _SERVICES + count * _OF_SERVICE
        return cell

    # ---- reading

    def collect(self, role: str, *, reasons: bool = True) -> list[Metric]:
        """Return all metrics. Omit the facts that distinguish refusals if `reasons` is False (rule 5)."""
        total = [sum(values) for values in zip(*self._regions(), strict=True)]
        labels = {"role": role}

        def metric(name: str, kind: str, text: str, samples: list[Sample]) -> Metric:
            return Metric(f"pam_totp_{name}", kind, text, tuple(samples))

        def cells(first: int, bounds: tuple[float, ...]) -> list[int]:
            return total[first : first + len(bounds) + 1]

        times = [
            sample
            for outcome, first in _DECISION.items()
            if reasons or outcome == ACCEPTED
            for sample in histogram(
                labels | {"outcome": outcome}, SECONDS, cells(first, SECONDS), total[first + len(SECONDS) + 1] / _MICRO
            )
        ]
        ahead = histogram(labels, AHEAD, cells(_AHEAD, AHEAD), total[_AHEAD + len(AHEAD) + 1])
        drift = histogram(labels, DRIFT, cells(_DRIFT, DRIFT), total[_DRIFT + len(DRIFT) + 1])
        logins, answers = self._by_service(labels, reasons=reasons)
        return [
            metric("build_info", "gauge", "Version of the program.", [Sample(labels | {"version": __version__}, 1)]),
            metric(
                "start_time_seconds", "gauge", "Start of the counters, in Unix time.", [Sample(labels, self._started)]
            ),
            *([metric("logins_total", "counter", "Logins by result.", logins)] if role == SERVICE else []),
            metric("answers_total", "counter", "Answers by outcome and reason.", answers),
            metric("decision_seconds", "histogram", "Time from an answer to the decision.", times),
            metric("hotp_ahead_counters", "histogram", "Counters of a key fob skipped before an accepted code.", ahead),
            metric(
                "totp_drift_steps",
                "histogram",
                "Clock of a token minus the host's, at accepted codes, in steps.",
                drift,
            ),
            metric("errors_total", "counter", "Errors in the log.", [Sample(labels, total[_ERRORS])]),
        ]

    def _regions(self) -> list[list[int]]:
        """Return a copy of each region."""
        cells = self._cells.tolist()
        return [cells[i : i + _REGION] for i in range(0, len(cells), _REGION)]

    def _by_service(self, labels: Mapping[str, str], *, reasons: bool) -> tuple[list[Sample], list[Sample]]:
        """Return the samples of logins and of answers. Omit the samples of answers that did not occur."""
        total: dict[str, list[int]] = {}
        for region in self._regions():
            for name, first in _services_in(region):
                counts = total.setdefault(name, [0] * _OF_SERVICE)
                total[name] = [a + b for a, b in zip(counts, region[first : first + _OF_SERVICE], strict=True)]
        logins, answers = [], []
        for service, counts in sorted(total.items()):
            of_service = {**labels, "service": service}
            logins += [
                Sample(of_service | {"result": result}, n) for result, n in zip(RESULTS, counts, strict=False) if n
            ]
            shown: dict[tuple[str, str], int] = {}
            for (outcome, reason), n in zip(_ANSWERS, counts[len(RESULTS) :], strict=True):
                is_secret = outcome == REFUSED and not reasons and reason not in OPEN_REASONS
                key = outcome, REFUSED if is_secret else reason
                shown[key] = shown.get(key, 0) + n
            answers += [
                Sample(of_service | {"outcome": outcome, "reason": reason}, n)
                for (outcome, reason), n in shown.items()
                if n
            ]
        return logins, answers


def _is_plain(name: str) -> bool:
    return name.isascii() and name.isprintable()


def _services_in(region: list[int]) -> Iterator[tuple[str, int]]:
    """Yield each service of a region, and the cell of its first counter."""
    size = _NAME // _CELL
    for i in range(region[0]):
        cells = region[_NAMES + i * size : _NAMES + (i + 1) * size]
        name = b"".join(cell.to_bytes(_CELL, sys.byteorder, signed=True) for cell in cells).rstrip(b"\0")
        yield name.decode("ascii"), _SERVICES + i * _OF_SERVICE
    yield OTHER, _SERVICES + MAX_SERVICES * _OF_SERVICE
