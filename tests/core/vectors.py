"""Published test vectors: CSV files in tests/core/data. Comments in each file name its source."""

from __future__ import annotations

import csv
from pathlib import Path

DATA = Path(__file__).parent / "data"


def table(name: str) -> list[dict[str, str]]:
    """Return the lines of the CSV file `data/name`, each as a dict from column to text."""
    lines = (DATA / name).read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))
