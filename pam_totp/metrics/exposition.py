"""Prometheus' text format 0.0.4: metrics as values, their text, and the merge of several texts.

Rules:
1. A label never contains the name of a user, host or token, or a serial number.
2. A metric appears once in a text, with all its samples below its type.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "pam_totp_"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_NAME = f"({PREFIX}[a-z_]+)"
_LABELS = r'\{[a-z]+="(?:[^"\\]|\\.)*"(?:,[a-z]+="(?:[^"\\]|\\.)*")*\}'
_LINE = re.compile(rf"# (?:HELP|TYPE) {_NAME} .+|{_NAME}(?:{_LABELS})? -?[0-9][0-9.e+-]*")


class Sample(NamedTuple):
    """One value. `suffix` follows the name of the metric: `_bucket`, `_sum` or `_count` of a histogram."""

    labels: Mapping[str, str]
    value: float
    suffix: str = ""


class Metric(NamedTuple):
    """A metric with its samples. `kind` is counter, gauge or histogram."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


def histogram(labels: Mapping[str, str], bounds: Iterable[float], counts: Iterable[int], total: float) -> list[Sample]:
    """Return the samples of a histogram. `counts` has one number for each bucket, and one for all higher values."""
    samples, below = [], 0
    for bound, count in zip((*bounds, None), counts, strict=True):
        below += count
        upper = "+Inf" if bound is None else _number(bound)
        samples.append(Sample({**labels, "le": upper}, below, "_bucket"))
    return [*samples, Sample(labels, total, "_sum"), Sample(labels, below, "_count")]


def text_of(metrics: Iterable[Metric]) -> str:
    """Return the text of metrics with different names."""
    return "".join(line for metric in metrics for line in _lines(metric))


def _lines(metric: Metric) -> Iterator[str]:
    help_text = metric.help.replace("\\", r"\\").replace("\n", r"\n")
    yield f"# HELP {metric.name} {help_text}\n# TYPE {metric.name} {metric.kind}\n"
    for labels, value, suffix in metric.samples:
        inside = ",".join(f'{name}="{text.translate(_ESCAPES)}"' for name, text in labels.items())
        yield f"{metric.name}{suffix}{f'{{{inside}}}' if inside else ''} {_number(value)}\n"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def merged(texts: Iterable[str]) -> str:
    """Return one text with the metrics of several texts. Raise ValueError for a line in another format."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in texts:
        metric, is_new = "", False
        for line in text.splitlines():
            found = _LINE.fullmatch(line)
            if found is None:
                raise ValueError("each line must be a line of pam_totp's metrics")
            if line.startswith("# HELP"):
                metric = found[1]
                is_new = metric not in heads
            if not metric or not (found[1] or found[2]).startswith(metric):
                raise ValueError("each sample must follow the HELP line of its metric")
            if line.startswith("#"):
                if is_new:
                    heads.setdefault(metric, []).append(line)
            else:
                samples.setdefault(metric, []).append(line)
    return "".join(f"{line}\n" for name in heads for line in (*heads[name], *samples.get(name, [])))
