"""Tests of the counters of a service, and of Prometheus' text format."""

from __future__ import annotations

import os
import random
import re
import threading
from typing import Any

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.core.verify import Decision, Outcome
from pam_totp.metrics.counters import FIELDS, MAX_SERVICES, OTHER, REASONS, SECONDS, SERVICE, Metrics
from pam_totp.metrics.exposition import Metric, Sample, merged, text_of
from pam_totp.operations.authenticate import facts


def lines(metrics: Metrics, **options: Any) -> set[str]:
    text = text_of(metrics.collect(SERVICE, **options))
    return {line.replace('role="service",', "").replace('{role="service"}', "") for line in text.splitlines()}


def answered(metrics: Metrics, verb: str, service: str = "sshd", seconds: float = 0.004, **fields: Any) -> None:
    metrics.answer(service, verb, fields, seconds)


def test_answers_are_counted_by_service_outcome_and_reason() -> None:
    metrics = Metrics()
    for _ in range(2):
        answered(metrics, "accepted", by="code", user="alice", token="blue")
    answered(metrics, "refused", "sudo", reason="wrong", user="bob", rhost="192.0.2.7")
    metrics.login("sshd", "accepted")
    text = "\n".join(lines(metrics))
    assert 'pam_totp_answers_total{service="sshd",outcome="accepted",reason="code"} 2' in lines(metrics)
    assert 'pam_totp_answers_total{service="sudo",outcome="refused",reason="wrong"} 1' in lines(metrics)
    assert 'pam_totp_logins_total{service="sshd",result="accepted"} 1' in lines(metrics)
    assert not re.search("alice|bob|blue|192", text), "a label contains no user name"


def test_every_outcome_of_an_answer_has_its_own_reason() -> None:
    for outcome in Outcome:
        verb, fields = facts(Decision(outcome=outcome, record=UserRecord(user="alice")))
        assert fields[FIELDS[verb]] in REASONS[verb]


def test_an_unknown_reason_counts_as_other() -> None:
    metrics = Metrics()
    answered(metrics, "accepted", by="new")
    answered(metrics, "refused", reason=None)
    assert 'pam_totp_answers_total{service="sshd",outcome="accepted",reason="other"} 1' in lines(metrics)
    assert 'pam_totp_answers_total{service="sshd",outcome="refused",reason="other"} 1' in lines(metrics)


def test_the_number_of_services_is_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_SERVICES + 20):
        metrics.login(f"service{number}", "refused")
    found = {line for line in lines(metrics) if line.startswith("pam_totp_logins_total")}
    assert len(found) == MAX_SERVICES + 1
    assert f'pam_totp_logins_total{{service="{OTHER}",result="refused"}} 20' in found


@pytest.mark.parametrize("name", ["", "s" * 33, "a\nb", "ssh\u00e9", "\udcff"])
def test_a_name_that_no_service_has_counts_as_other(name: str) -> None:
    metrics = Metrics()
    metrics.login(name, "refused")
    assert f'pam_totp_logins_total{{service="{OTHER}",result="refused"}} 1' in lines(metrics)


def test_an_untrusted_account_adds_no_name() -> None:
    metrics = Metrics()
    metrics.login("sshd", "refused", may_name=False)
    metrics.login("sshd", "accepted")
    metrics.login("sshd", "refused", may_name=False)
    found = lines(metrics)
    assert f'pam_totp_logins_total{{service="{OTHER}",result="refused"}} 1' in found
    assert 'pam_totp_logins_total{service="sshd",result="refused"} 1' in found, "the service name is already known"


def test_times_and_distances_are_histograms() -> None:
    metrics = Metrics()
    answered(metrics, "accepted", seconds=0.004, by="code", ahead=3)
    answered(metrics, "accepted", seconds=0.6, by="row", ahead=5000)
    answered(metrics, "accepted", seconds=99.0, by="code", drift=-2)
    found = lines(metrics)
    for bound, count in (("0.0025", 0), ("0.005", 1), ("0.5", 1), ("1", 2), ("10", 2), ("+Inf", 3)):
        assert f'pam_totp_decision_seconds_bucket{{outcome="accepted",le="{bound}"}} {count}' in found
    assert 'pam_totp_decision_seconds_sum{outcome="accepted"} 99.604' in found
    assert 'pam_totp_decision_seconds_count{outcome="accepted"} 3' in found
    assert {'pam_totp_hotp_ahead_counters_bucket{le="2"} 0', 'pam_totp_hotp_ahead_counters_bucket{le="3"} 1'} <= found
    assert "pam_totp_hotp_ahead_counters_sum 5003" in found
    assert {'pam_totp_totp_drift_steps_bucket{le="-3"} 0', 'pam_totp_totp_drift_steps_bucket{le="-2"} 1'} <= found
    assert "pam_totp_totp_drift_steps_sum -2" in found


@pytest.mark.parametrize("reason", ["grace", "no-answer", "not-yours-to-ask"])
def test_a_line_without_a_decision_adds_no_time(reason: str) -> None:
    metrics = Metrics()
    answered(metrics, "accepted" if reason == "grace" else "refused", by=reason, reason=reason)
    for outcome in ("accepted", "refused"):
        assert f'pam_totp_decision_seconds_count{{outcome="{outcome}"}} 0' in lines(metrics)


def test_without_reasons_all_refusals_are_alike() -> None:
    shown = set()
    for reason in [reason for reason in REASONS["refused"] if reason not in ("no-answer", "not-yours-to-ask")]:
        if reason != "too-many-at-once":
            metrics = Metrics(now=lambda: 0)
            answered(metrics, "refused", seconds=random.random(), reason=reason)
            shown.add(text_of(metrics.collect(SERVICE, reasons=False)))
    assert len(shown) == 1
    assert 'outcome="refused",reason="refused"} 1' in shown.pop()


def test_an_error_line_is_counted_and_passed_on() -> None:
    metrics, passed = Metrics(), list[str]()
    sink = metrics.sink(lambda priority, line: passed.append(line))
    sink(3, "an error")
    sink(6, "a login")
    assert passed == ["an error", "a login"]
    assert "pam_totp_errors_total 1" in lines(metrics)


def test_processes_add_up() -> None:
    metrics = Metrics(processes=3)
    for number in range(3):
        child = os.fork()
        if child == 0:
            metrics.use_region(number)
            for service in ("sshd", "sudo")[:: 1 if number else -1]:
                metrics.login(service, "accepted")
            metrics.error()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    found = lines(metrics)
    assert 'pam_totp_logins_total{service="sshd",result="accepted"} 3' in found
    assert 'pam_totp_logins_total{service="sudo",result="accepted"} 3' in found
    assert "pam_totp_errors_total 3" in found


def test_threads_lose_no_count() -> None:
    metrics = Metrics()

    def count() -> None:
        for _ in range(5000):
            answered(metrics, "accepted", by="code", ahead=1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "pam_totp_hotp_ahead_counters_sum 20000" in lines(metrics)


def test_a_fault_of_the_counters_reaches_no_caller() -> None:
    metrics = Metrics()
    metrics._cells.release()
    metrics._own.release()
    metrics.login("sshd", "accepted")
    metrics.answer("sshd", "refused", {"reason": "wrong"}, 0.1)
    metrics.answer("sshd", "accepted", {"by": "code", "ahead": 1 << 80}, float("nan"))
    metrics.error()
    with pytest.raises(ValueError, match="released"):
        metrics.collect(SERVICE)


def test_label_values_are_escaped() -> None:
    metric = Metric("pam_totp_x", "gauge", "a\nb", (Sample({"version": 'a"b\\c\nd'}, 1.5),))
    assert text_of([metric]) == (
        '# HELP pam_totp_x a\\nb\n# TYPE pam_totp_x gauge\npam_totp_x{version="a\\"b\\\\c\\nd"} 1.5\n'
    )


def test_merged_texts_have_each_metric_once() -> None:
    metrics = Metrics()
    answered(metrics, "accepted", by="code")
    texts = [text_of(metrics.collect(role)) for role in ("service", "authority")]
    text = merged(texts)
    assert merged(texts[:1]) == texts[0]
    assert text.count("# TYPE pam_totp_answers_total counter") == 1
    assert text.count("pam_totp_answers_total{") == 2
    assert text.count(f'le="{SECONDS[0]}"') == 4
    head = text.index("# HELP pam_totp_decision_seconds ")
    assert "# HELP" not in text[head:].partition('role="authority"')[0].replace("# HELP", "", 1)


@pytest.mark.parametrize(
    "text",
    ["node_load1 5\n", "# HELP pam_totp_x x\nnode_load1 5\n", "pam_totp_x 1\n", "# HELP pam_totp_x x\npam_totp_y 1\n"],
)
def test_lines_of_other_metrics_are_not_merged(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        merged([text])
