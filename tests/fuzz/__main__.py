"""The parsers under a coverage-guided fuzzer (atheris): `make fuzz`, or `make fuzz SECONDS=600`.

python -m tests.fuzz SECONDS [--keep]         all parsers, so long in all; --keep adds what is new to the kept inputs
python -m tests.fuzz SECONDS NAME FOLDER      one, from the inputs in FOLDER, where new ones go too

A crash is written to build/fuzz.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import atheris

from tests.fuzz import corpus

with atheris.instrument_imports(include=["pam_totp"]):
    from tests.fuzz.targets import SEEDS, TARGETS

ARTIFACTS = Path("build/fuzz")


def fuzz(seconds: str, name: str, folder: str) -> None:
    """Does not return."""
    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", "-verbosity=0"]
    options += [f"-artifact_prefix={ARTIFACTS}/{name}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, folder], TARGETS[name])
    atheris.Fuzz()


def fuzz_all(seconds: int, keep: bool) -> int:
    """The number of parsers with a defect."""
    at_once = os.cpu_count() or 1
    each = max(1, seconds * at_once // len(TARGETS))

    def run(name: str) -> bool:
        with tempfile.TemporaryDirectory(prefix="pam_totp-fuzz-") as folder:
            for number, data in enumerate((*SEEDS[name], *corpus.kept(name))):
                Path(folder, f"{number}").write_bytes(data)
            command = [sys.executable, "-m", "tests.fuzz", str(each), name, folder]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if keep:
                corpus.keep(name, (path.read_bytes() for path in Path(folder).iterdir()))
        runs = next((line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed" in line), "?")
        found = "nothing found" if done.returncode == 0 else f"a defect\n{(done.stdout + done.stderr)[-4000:]}"
        print(f"{name}: {runs} runs in {each} s, {found}", flush=True)
        return done.returncode != 0

    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(at_once) as pool:
        return sum(pool.map(run, TARGETS))


if __name__ == "__main__":
    seconds, *rest = sys.argv[1:]
    if len(rest) == 2:
        fuzz(seconds, *rest)
    sys.exit(min(fuzz_all(int(seconds), keep="--keep" in rest), 1))
