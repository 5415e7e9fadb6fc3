"""The importers under a coverage-guided fuzzer (atheris): `make fuzz`, or `make fuzz SECONDS=600`.

The first byte chooses the format, so that one corpus serves all. A crash is written to build/fuzz.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pam_totp.formats"]):
    from tests.formats.samples import SAMPLES, check

NAMES = sorted(SAMPLES)


def one_input(data: bytes) -> None:
    if data:
        check(NAMES[data[0] % len(NAMES)], data[1:])


def main(seconds: str) -> None:
    with tempfile.TemporaryDirectory() as corpus:
        for number, name in enumerate(NAMES):
            for i, sample in enumerate(SAMPLES[name]):
                Path(corpus, f"{name}-{i}").write_bytes(bytes([number]) + sample)
        artifacts = Path("build/fuzz")
        artifacts.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", f"-artifact_prefix={artifacts}/"]
        atheris.Setup([sys.argv[0], *options, "-max_len=8192", corpus], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1])
