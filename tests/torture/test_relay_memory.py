"""Tests of the relay's memory: under sanitizers, valgrind and libFuzzer, and over many logins."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import pamconf
from tests.support.relay_kit import INTERPRETER, RELAY, ROOT, Script, Service, in_turn, play
from tests.support.site import codes
from tests.torture.pace import LONG, report, rounds

pytestmark = pytest.mark.bare

HERE = Path(__file__).parent
CORPUS = HERE / "corpus" / "relay"
SANITIZE = ("-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
ACCOUNT = "alice"

# The messages of services: honest (GOOD), defective or hostile (BAD).
GOOD: list[tuple[bytes, ...]] = [
    (b"pOne-time code: ", b"r0"),
    (b"PCode: ", b"itold", b"eerror", b"r0"),
    (b"g", b"spassword", b"r0"),
    (b"p" + b"%s%n" * 1023, b"i" + b"x" * 4095, b"r0"),
]
BAD: list[tuple[bytes, ...]] = [
    (b"pOne-time code: ", b"r7"),
    (b"r25",),
    (b"r00",),
    (b"r0\0",),
    (b"r",),
    (b"x",),
    (b"p\0",),
    (b"p" * 4097,),
    (b"p", b"s"),
    (b"gx",),
    (b"i",) * 65,
    (b"p", b"g", b"p", b"\xff" * 4096),
]


class Account(NamedTuple):
    """The numbers that host.c prints, in the same order."""

    in_: int
    out: int
    grown: int  # bytes
    descriptors: int
    children: int


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pam_totp-test-") as made:
        yield Path(made)


def compiled(folder: Path, *flags: str) -> tuple[Path, Path]:
    """Compile host.c and the relay with `flags`, and return the paths of both."""
    host, relay = folder / "host", folder / "relay.so"
    common = ["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", *flags]
    subprocess.run([*common, "-o", host, HERE / "host.c", "-lpam", "-pthread"], check=True)
    knows = [f'-DINTERPRETER="{INTERPRETER}"', f'-DHELPER="{ROOT}/pam_totp/pam/helper.py"', f"-DBUILDER={os.geteuid()}"]
    source = ROOT / "pam_totp" / "pam" / "relay.c"
    subprocess.run([*common, *knows, "-shared", "-fPIC", "-o", relay, source, "-lpam"], check=True)
    return host, relay


def run(command: list[str | Path], logins: int, threads: int = 1, sigchld: str = "default", **more: str) -> Account:
    done = subprocess.run(
        [*command, str(logins), str(threads), sigchld],
        env={"PATH": "/usr/bin:/bin", **more},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=3600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "runtime error" not in done.stderr
    return Account(*map(int, done.stdout.split()))


def serve(folder: Path, relay: Path, script: Script) -> tuple[Service, str]:
    folder.chmod(0o755)
    service = Service(folder / "socket", script)
    pamconf.service(folder, "demo", f"auth [success=ok default=die] {relay} {service.argument} nodelay")
    return service, "demo"


def spawning(folder: Path, relay: Path) -> str:
    """Write a PAM service that starts a real helper with an empty store. Return the name of the service."""
    store = folder / "store"
    store.mkdir(mode=0o700)
    pamconf.service(folder, "cold", f"auth [success=ok default=die] {relay} socket=none store={store} nodelay")
    return "cold"


def every_kind() -> Script:
    """Return a script that imitates a different service at each login. Honest and hostile services alternate.

    The last services disconnect without a result.
    """
    kinds = [play(*messages) for pair in zip(itertools.cycle(GOOD), BAD, strict=False) for messages in pair]
    kinds += [play(*messages, hang_up=True) for messages in ((), (b"p",), (b"i",))]
    return in_turn(*kinds)


KINDS = 2 * len(BAD) + 3


def test_the_address_and_undefined_behaviour_sanitizers_report_no_error(folder: Path) -> None:
    host, relay = compiled(folder, *SANITIZE)
    service, name = serve(folder, relay, every_kind())
    command: list[str | Path] = [host, folder, name, ACCOUNT, "123456"]
    try:
        account = run(command, 10 * (KINDS // 10), ASAN_OPTIONS="detect_stack_use_after_return=1")
    finally:
        service.close()
    assert account.in_ > 5
    assert account.out > 5
    spawned = run([host, folder, spawning(folder, relay), ACCOUNT, codes(0)], 10)
    assert (spawned.in_, spawned.out) == (0, 10)


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="requires valgrind")
def test_valgrind_reports_no_error_and_no_leak(folder: Path) -> None:
    host, relay = compiled(folder, "-g", "-O1")
    valgrind = ["valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full", "--track-fds=no"]
    service, name = serve(folder, relay, every_kind())
    try:
        account = run([*valgrind, host, folder, name, ACCOUNT, "123456"], 10 * (KINDS // 10))
    finally:
        service.close()
    assert account.in_ > 5
    assert account.out > 5
    if LONG:
        assert run([*valgrind, host, folder, spawning(folder, relay), ACCOUNT, codes(0)], 10).out == 10


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("sigchld", ["default", "ignore", "handle"])
def test_ten_thousand_logins_leak_no_memory_descriptor_or_child(folder: Path, sigchld: str) -> None:
    host, _ = compiled(folder, "-O2")
    service, name = serve(folder, RELAY, play(*GOOD[1]))
    logins = rounds(1000, 10_000) // 100 * 100  # a multiple of 100, so that each thread has the same number of logins
    try:
        warm = run([host, folder, name, ACCOUNT, "123456"], logins, 10, sigchld)
    finally:
        service.close()
    assert (warm.in_, warm.out, warm.descriptors, warm.children) == (logins, 0, 0, 0)
    assert warm.grown < 16 * logins, "the heap grows by less than 16 bytes per login (a leaked block has 32 bytes)"
    logins = rounds(40, 1000) // 40 * 40
    cold = run([host, folder, spawning(folder, RELAY), ACCOUNT, codes(0)], logins, 4, sigchld)
    assert (cold.in_, cold.out, cold.descriptors, cold.children) == (0, logins, 0, 0)
    kept = f"{warm.grown} bytes, {warm.descriptors} descriptors and {warm.children} children remain"
    report(f"relay, SIGCHLD {sigchld}: {warm.in_} logins by socket and {cold.out} by helper, {kept}")


@pytest.mark.timeout(3600)
def test_the_fuzzing_corpus_and_its_mutations_succeed_only_with_r0(folder: Path) -> None:
    """Run the fuzz target on the stored inputs and on mutations of these inputs. replay.c works with any compiler."""
    program = folder / "replay"
    sources = [HERE / "fuzz_relay.c", HERE / "replay.c"]
    subprocess.run(["cc", "-std=c11", "-Wall", "-Wextra", "-Werror", *SANITIZE, "-o", program, *sources], check=True)
    kept, made = sorted(CORPUS.iterdir()), rounds(5_000, 1_000_000)
    done = subprocess.run(
        [program, "1", str(made), *kept], cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) == len(kept) + made >= 5_100
    report(f"relay under sanitizers: {len(kept)} stored inputs and {made} mutations, no error")


@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    shutil.which("clang") is None and not LONG, reason="requires clang and libFuzzer (see NEED_TORTURE in the Makefile)"
)
def test_the_fuzzed_relay_succeeds_only_with_r0(folder: Path) -> None:
    fuzzer = folder / "fuzz"
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", *SANITIZE, "-fsanitize=fuzzer"]
    built = subprocess.run(
        ["clang", *flags, "-o", fuzzer, HERE / "fuzz_relay.c"], capture_output=True, text=True, check=False
    )
    if "libclang_rt" in built.stderr and not LONG:
        pytest.skip("requires clang's run-time library (libclang-rt-dev)")
    assert built.returncode == 0, built.stderr
    found = folder / "found"
    found.mkdir()
    seconds = rounds(4, 300)
    done = subprocess.run(
        [fuzzer, f"-max_total_time={seconds}", "-max_len=8192", "-timeout=10", "-print_final_stats=1", found, CORPUS],
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=2 * seconds + 60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    runs = next(line.split()[-1] for line in done.stderr.splitlines() if "number_of_executed_units" in line)
    report(f"relay under libFuzzer: {runs} inputs in {seconds} s, no error")
