"""Tests of the factory: a thousand tokens, their seed files, and the files' permissions."""

from __future__ import annotations

import io
import resource
import stat
from pathlib import Path

import pytest
from pskc import PSKC

from pam_totp.core.oath import hotp
from tests.token_sim.tokens import COMMAND, token_sim
from token_sim.run.token_file import TokenFile


def hexadecimal(secret: bytes | None) -> str:
    assert secret is not None
    return secret.hex()


def test_1000_tokens_with_all_seed_files_take_under_5_processor_seconds(tmp_path: Path) -> None:
    forms = [word for form in ("csv", "pskc", "pskc-aes") for word in ("--seeds", form)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = token_sim("factory", "--count", "1000", "--profile", "c100", "--out", tmp_path / "batch", *forms)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5, (
        "the factory must take less than 5 s of processor time"
    )
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1000 + 4
    files = list((tmp_path / "batch").iterdir())
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "batch").stat().st_mode) == 0o700
    lines = (tmp_path / "batch" / "seeds.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines]
    assert len({row[0] for row in rows}) == len({row[1] for row in rows}) == 1000
    assert rows[0][0] == "SMC100000001" and rows[-1][0] == "SMC100001000"
    assert {tuple(row[2:]) for row in rows} == {("hotp", "6", "0")}
    secret = bytes.fromhex((tmp_path / "batch" / "transport-key.txt").read_text())
    for name, transport_key in (("seeds.pskc.xml", None), ("seeds.aes.pskc.xml", secret)):
        document = PSKC(io.BytesIO((tmp_path / "batch" / name).read_bytes()))
        if transport_key is not None:
            document.encryption.key = transport_key
        assert [(key.serial, hexadecimal(key.secret), key.counter) for key in document.keys] == [
            (r[0], r[1], 0) for r in rows
        ]
        assert all(key.check() is not False for key in document.keys)


def test_no_seed_is_readable_in_the_encrypted_file(tmp_path: Path) -> None:
    key = "00112233445566778899aabbccddeeff"
    words = ["factory", "--count", "3", "--out", str(tmp_path), "--seeds", "csv", "--seeds", "pskc-aes", "--key-stdin"]
    assert token_sim(*words, stdin=key + "\n").returncode == 0
    assert not (tmp_path / "transport-key.txt").exists()
    encrypted = (tmp_path / "seeds.aes.pskc.xml").read_bytes()
    assert b"PlainValue>" in encrypted and encrypted.count(b"EncryptedValue>") == 6
    document = PSKC(io.BytesIO(encrypted))
    document.encryption.key = bytes.fromhex(key)
    seeds = [line.split(",")[1] for line in (tmp_path / "seeds.csv").read_text().splitlines()]
    assert [hexadecimal(key.secret) for key in document.keys] == seeds
    assert not any(seed.encode() in encrypted or bytes.fromhex(seed) in encrypted for seed in seeds)


def test_a_token_of_the_factory_shows_the_codes_of_its_seed(tmp_path: Path) -> None:
    assert token_sim("factory", "--out", tmp_path, "--profile", "etoken-pass", "--first", "77").returncode == 0
    serial, seed, *_ = (tmp_path / "seeds.csv").read_text().split(",")
    assert serial == "SMEP00000077"
    done = token_sim("run", tmp_path / f"{serial}.token", "--speed", "20", "--", *COMMAND, "press", "-n", "2")
    assert done.stdout.split() == [hotp(bytes.fromhex(seed), 0), hotp(bytes.fromhex(seed), 1)]


@pytest.mark.parametrize(
    ("options", "row", "urn", "period"),
    [
        (["--profile", "c200"], "totp,6,60", "totp", 60),
        (["--type", "totp", "--digits", "8", "--algorithm", "SHA512"], "totp,8,30,SHA512", "totp", 30),
    ],
)
def test_time_based_tokens_have_their_period_in_every_seed_file(
    tmp_path: Path, options: list[str], row: str, urn: str, period: int
) -> None:
    assert token_sim("factory", "--out", tmp_path, "--seeds", "csv", "--seeds", "pskc", *options).returncode == 0
    assert (tmp_path / "seeds.csv").read_text().strip().split(",", 2)[2] == row
    (key,) = PSKC(io.BytesIO((tmp_path / "seeds.pskc.xml").read_bytes())).keys
    assert key.algorithm == f"urn:ietf:params:xml:ns:keyprov:pskc:{urn}" and key.time_interval == period


def test_a_batch_never_overwrites_a_token(tmp_path: Path) -> None:
    assert token_sim("factory", "--count", "3", "--out", tmp_path).returncode == 0
    seeds = (tmp_path / "seeds.csv").read_text()
    done = token_sim("factory", "--out", tmp_path, "--first", "2")
    assert done.returncode == 1 and "already exists" in done.stderr
    assert (tmp_path / "seeds.csv").read_text() == seeds


def test_reading_and_writing_a_token_file_preserves_its_text(tmp_path: Path) -> None:
    assert token_sim("factory", "--out", tmp_path).returncode == 0
    path = str(tmp_path / "SMGN00000001.token")
    token = TokenFile.open(path)
    try:
        assert token.text() == Path(path).read_text()
    finally:
        token.close()
