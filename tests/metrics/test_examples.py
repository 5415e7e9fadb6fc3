"""Tests of the alert rules and the dashboard in examples/prometheus: they name metrics that exist, and are valid."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pam_totp.cli import textfile
from pam_totp.metrics.counters import AUTHORITY, REASONS, RESULTS, SERVICE, Metrics
from pam_totp.metrics.exposition import text_of
from pam_totp.metrics.store_statistics import STATES, StoreStatistics
from tests.support.site import PATIENCE, TREE

EXAMPLES = TREE / "examples/prometheus"
RULES, DASHBOARD = EXAMPLES / "pam_totp.rules.yml", EXAMPLES / "grafana-dashboard.json"
OF_NODE_EXPORTER = {"node_textfile_mtime_seconds"}
with_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="requires promtool (Debian package prometheus)"
)


def all_lines() -> list[str]:
    """Return the lines of all metrics, with all results and reasons."""
    metrics = Metrics()
    for result in RESULTS:
        metrics.login("sshd", result)
    for outcome, reasons in REASONS.items():
        for reason in reasons:
            metrics.answer(
                "sshd", outcome, {"by": reason, "reason": reason, "what": reason, "ahead": 1, "drift": 1}, 0.1
            )
    text = textfile.text(
        {role: text_of(metrics.collect(role)) for role in (SERVICE, AUTHORITY)}, StoreStatistics(), is_expected=True
    )
    return [line for line in text.splitlines() if not line.startswith("#")]


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:pam_totp|node)_\w+", re.sub(r'"[^"]*"', '""', expression)))


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """Return all expressions of the dashboard and the rules, each on one line."""
    of_rules = re.findall(r"expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", RULES.read_text())
    of_panels = [target["expr"] for panel in panels() for target in panel["targets"]]
    return [" ".join((block or line).split()) for block, line in of_rules] + of_panels


def test_every_metric_of_the_examples_exists() -> None:
    existing = {re.split(r"[{ ]", line)[0] for line in all_lines()}
    assert len(expressions()) > 20
    for expression in expressions():
        assert names(expression), expression
        assert names(expression) <= existing | OF_NODE_EXPORTER, expression


def test_every_label_value_of_the_examples_exists() -> None:
    existing = set(re.findall(r'(\w+)="([^"]*)"', "\n".join(all_lines())))
    for expression in expressions():
        for label, operator, value in re.findall(r'(\w+)(!=|=~|=)"([^"]*)"', expression):
            if "$" not in value and label != "file":
                for part in value.split("|") if operator == "=~" else [value]:
                    assert (label, part) in existing, f"{label}={part} in {expression}"


def test_the_documentation_names_every_metric() -> None:
    page = (TREE / "docs/metrics.md").read_text()
    for line in text_of([*Metrics().collect(SERVICE), *StoreStatistics().metrics()]).splitlines():
        if line.startswith("# TYPE"):
            assert f"`{line.split()[2]}`" in page
    for name in ("pam_totp_store_up", "pam_totp_service_up", *STATES):
        assert f"`{name}`" in page


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in panels()}) == len(panels())


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@with_promtool
def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)


@with_promtool
def test_promtool_accepts_the_expressions_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": target["expr"].replace("$__rate_interval", "5m")}
        for number, target in enumerate(target for panel in panels() for target in panel["targets"])
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


GUESSED = 'pam_totp_answers_total{role="service",service="sshd",instance="web1",outcome="refused",reason="refused"}'
CASES = {  # alert -> series with their values each minute, and the minute of the alert
    "PamTotpStoreDown": ({'pam_totp_store_up{instance="web1"}': "0x20"}, 15),
    "PamTotpErrors": ({'pam_totp_errors_total{role="service",instance="web1"}': "0x5 1x20"}, 8),
    "PamTotpGuessing": ({GUESSED: "0+20x20"}, 15),
    "PamTotpClocksOff": (
        {
            'pam_totp_totp_drift_steps_bucket{le="-2",instance="web1"}': "0+1x60",
            'pam_totp_totp_drift_steps_bucket{le="1",instance="web1"}': "0+8x60",
            'pam_totp_totp_drift_steps_count{instance="web1"}': "0+10x60",
        },
        50,
    ),
    "PamTotpFewRecoveryCodes": (
        {
            'pam_totp_users_enrolled{instance="web1"}': "10x2000",
            'pam_totp_users_without_recovery_codes{instance="web1"}': "6x2000",
        },
        1500,
    ),
}


@with_promtool
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_for_its_cause_alone(alert: str, tmp_path: Path) -> None:
    series, minute = CASES[alert]
    quiet = dict.fromkeys(series, "0x2000") | (dict.fromkeys(series, "1x2000") if "Down" in alert else {})
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in given.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                    "eval_time": f"{minute}m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if given is series else [],
                }
            ],
        }
        for given in (series, quiet)
    ]
    document = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(json.dumps(document))
    promtool("test", "rules", tmp_path / "tests.yml")
