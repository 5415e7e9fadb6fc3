"""A run of the parsers under a coverage-guided fuzzer (atheris): `make fuzz`, or `make fuzz SECONDS=600 KEEP=1`.

python -m tests.fuzz SECONDS [--keep]         all parsers in this time; --keep adds new inputs to tests/fuzz/corpus
python -m tests.fuzz SECONDS NAME FOLDER      one parser, with the inputs in FOLDER; new inputs are added to FOLDER

The fuzzer saves in build/fuzz each input that causes a crash.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import atheris

from tests.fuzz import corpus
from tests.torture.pace import report

with atheris.instrument_imports(include=["pam_totp"]):
    from tests.fuzz.targets import SEEDS, TARGETS

ARTIFACTS = Path("build/fuzz")


def fuzz(seconds: str, name: str, folder: str) -> None:
    """Run the fuzzer on one parser. The call does not return, because the fuzzer exits the process."""
    options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=4096", "-verbosity=0"]
    options += [f"-artifact_prefix={ARTIFACTS}/{name}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, folder], TARGETS[name])
    atheris.Fuzz()


def fuzz_all(seconds: int, keep: bool) -> int:
    """Run the fuzzer on all parsers, one process each. Return the number of parsers with a defect."""
    at_once = os.cpu_count() or 1
    each = max(1, seconds * at_once // len(TARGETS))
    running: list[subprocess.Popen[str]] = []
    over = False

    def run(name: str) -> bool:
        with tempfile.TemporaryDirectory(prefix="pam_totp-fuzz-") as folder:
            for number, data in enumerate((*SEEDS[name], *corpus.kept(name))):
                Path(folder, f"{number}").write_bytes(data)
            command = [sys.executable, "-m", "tests.fuzz", str(each), name, folder]
            with subprocess.Popen(
                command, text=True, errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                running.append(process)
                out, err = process.communicate()
            if keep:
                corpus.keep(name, (path.read_bytes() for path in Path(folder).iterdir()))
        runs = next((line.split()[-1] for line in err.splitlines() if "number_of_executed" in line), "?")
        if process.returncode != 0 and not over:
            print((out + err)[-4000:], flush=True)
        found = "nothing found" if process.returncode == 0 else "ended early" if over else "a defect"
        report(f"{name}: {runs} inputs in {each} s, {found}")
        return process.returncode != 0

    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(at_once) as pool:
        try:
            return sum(pool.map(run, TARGETS))
        except KeyboardInterrupt:
            over = True
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                process.terminate()
            raise


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore SIGINT
    seconds, *rest = sys.argv[1:]
    if len(rest) == 2:
        fuzz(seconds, *rest)
    sys.exit(min(fuzz_all(int(seconds), keep="--keep" in rest), 1))
