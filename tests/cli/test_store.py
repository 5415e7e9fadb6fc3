"""Tests of a store in a database through the commands, the service and the portal, and of `pam-totp store`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pam_totp.core.record import UserRecord
from pam_totp.pam.helper_main import NEEDS_SERVICE
from pam_totp.store.file import FileStore
from pam_totp.store.postgres import PostgresStore
from pam_totp.system.enrolled import find_enrolled
from tests.conftest import with_mounts
from tests.support.cluster import Server, with_postgresql
from tests.support.pamconf import Result
from tests.support.site import ME, PATIENCE, TREE, Site, codes, fob, phone, without_log_warning

pytestmark = with_postgresql
SITE_FILE = Path("/etc/pam_totp.toml")


def run(*words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pam_totp.cli", *words]
    done = subprocess.run(
        command, cwd=TREE, input=stdin, text=True, capture_output=True, check=False, timeout=3 * PATIENCE
    )
    done.stderr = without_log_warning(done.stderr)
    return done


def run_json(*words: str | Path, stdin: str = "") -> object:
    done = run(words[0], "--json", *words[1:], stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def put(url: str, user: str = ME) -> None:
    record = UserRecord(user=user, tokens=(fob(),))
    PostgresStore(url, wait=PATIENCE).update(user, lambda _: (record, None), create=True)


@pytest.fixture
def site_file(database: str) -> Iterator[str]:
    """Write the URL of the database to the site file of this mount namespace, and yield the URL."""
    SITE_FILE.write_text(f'[store]\nurl = "{database}"\nwait = 30\n')
    yield database
    SITE_FILE.unlink()


# ---- the commands


def test_commands_use_the_database_of_store(database: str) -> None:
    store = ("--store", database)
    key = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ\n"
    done = run(
        "enroll", ME, "--type", "hotp", "--name", "fob", "--secret-stdin", "--yes", "--output", "-", *store, stdin=key
    )
    assert done.returncode == 0, done.stderr
    assert run("verify", ME, codes(0), *store).stdout == "accepted: code of fob\n"
    assert run("verify", ME, codes(0), *store).returncode == 1
    assert run("resync", ME, codes(50, 2), *store).returncode == 0
    assert run("rename", ME, "fob", "key", *store).returncode == 0
    assert run("recovery", ME, "--output", "-", *store).returncode == 0
    record = PostgresStore(database).read(ME)
    assert [(token.name, token.next_factor) for token in record.tokens] == [("key", 52)]
    assert len(record.recovery) > 0
    assert f"\n{ME} " in run("list", *store).stdout
    assert run("remove", ME, "key", "--yes", *store).returncode == 0
    assert run_json("list", *store) == []


def test_the_statistics_are_those_of_the_database(database: str, tmp_path: Path) -> None:
    put(database)
    put(database, "bob")
    line = f"pam_totp(sshd:auth): accepted user={ME} by=code token=fob created=0 next=4 ahead=3"
    (tmp_path / "log").write_text(f"{line}\n")
    drawn = run("stats", "--store", database, "--log", tmp_path / "log")
    assert drawn.returncode == 0, drawn.stderr
    assert "TOKENS of 2 users" in drawn.stdout
    path = tmp_path / "pam_totp.prom"
    path.parent.chmod(0o755)
    assert run("stats", "--store", database, "--textfile", path).returncode == 0
    assert 'pam_totp_tokens{type="hotp",state="never_used"} 2\n' in path.read_text()
    assert run("stats", "--store", f"{database}_missing", "--textfile", path).returncode == 3
    assert "pam_totp_store_up 0\n" in path.read_text()


@pytest.mark.parametrize("words", [("store", "init"), ("store", "copy", "folder"), ("list", "--store")])
def test_a_missing_file_of_the_url_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "folder").mkdir(0o700)
    given = [str(tmp_path / word) if word == "folder" else word for word in words]
    done = run(*given, "postgresql://owner@db1/otp?sslkey=none.key", *(["--yes"] if "copy" in words else []))
    remedy = "give absolute paths in the URL, of files that the account pam_totp can read"
    assert (done.returncode, done.stderr) == (3, f"pam-totp: none.key: no such file or directory ({remedy})\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_an_import_is_one_transaction(database: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    uri = "otpauth://hotp/{0}?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJ{1}&counter=0"
    file.write_text("".join(f"{uri.format('fob', digit)}\n" for digit in "ABC"))
    done = run("import", "otpauth", file, "--user", ME, "--store", database)
    assert done.returncode == 0, done.stderr
    assert len(PostgresStore(database).read(ME).tokens) == 3


@with_mounts
def test_the_site_file_names_the_default_store(site_file: str) -> None:
    put(site_file)
    assert run("verify", ME, codes(0)).stdout == "accepted: code of fob\n"
    assert run("verify", ME, codes(0)).returncode == 1


def test_a_database_out_of_reach_is_reported_in_one_line(tmp_path: Path) -> None:
    done = run("list", "--store", f"postgresql:///x?host={tmp_path}")
    assert done.returncode == 3
    assert done.stderr.startswith("pam-totp: the database is out of reach: ")
    assert done.stderr.count("\n") == 1


def test_a_serial_number_is_found_in_a_database_without_other_records(postgresql: Server, database: str) -> None:
    put(database)
    record = UserRecord(user="bob", tokens=(fob(serial="SN1"),))
    PostgresStore(database, wait=PATIENCE).update("bob", lambda _: (record, None), create=True)
    postgresql.sql("UPDATE pam_totp.record SET version = version + 1, body = '{}' WHERE name <> 'bob'")
    found = run("list", "--serial", "SN1", "--store", database)
    assert found.returncode == 0, found.stderr
    assert "bob" in found.stdout
    missing = run("list", "--serial", "SN2", "--store", database)
    assert missing.returncode in (0, 1), missing.stderr


def test_doctor_finds_the_enrolled_users_in_a_database(database: str, tmp_path: Path) -> None:
    put(database)
    put(database, "zoe")
    assert find_enrolled(database, {ME, "unknown"}).users == {ME}
    missing = find_enrolled(f"postgresql:///x?host={tmp_path}", {ME})
    assert missing.users == frozenset()
    assert "out of reach" in missing.broken[0]


# ---- logins


@pytest.mark.parametrize("how", ["option", "site file"])
def test_logins_through_the_service_use_the_database(site: Site, database: str, how: str) -> None:
    put(database)
    site.configure("demo", way="socket")
    stack = site.confdir / "demo"
    stack.write_text(stack.read_text().replace(f"store={site.store}", ""))
    if how == "option":
        service = site.start("--store", database)
    else:
        site.config.write_text(f'[store]\nurl = "{database}"\npool = 2\n')
        service = site.start("--store", "/var/lib/pam_totp")
    assert site.login(codes(0)).result is Result.SUCCESS
    assert site.login(codes(0)).result is Result.AUTH_ERR
    assert site.login("000000", codes(1)).result is Result.SUCCESS
    assert site.login(codes(7, 2)).result is Result.SUCCESS
    assert "libpq" in Path(f"/proc/{service.pid}/maps").read_text()


def test_a_service_with_a_folder_loads_no_library_for_databases(site: Site) -> None:
    site.enrol()
    site.configure("demo", way="socket")
    service = site.start()
    assert site.login(codes(0)).result is Result.SUCCESS
    maps = Path(f"/proc/{service.pid}/maps").read_text()
    assert "python" in maps
    assert "libpq" not in maps
    assert "psycopg" not in maps


def test_the_service_of_several_workers_uses_the_database(site: Site, database: str) -> None:
    put(database)
    site.configure("demo", way="socket")
    stack = site.confdir / "demo"
    stack.write_text(stack.read_text().replace(f"store={site.store}", ""))
    site.start("--store", database, "--workers", "2")
    assert [site.login(codes(n)).result for n in range(4)] == [Result.SUCCESS] * 4


def test_while_the_database_is_out_of_reach_logins_are_unavailable(site: Site, tmp_path: Path) -> None:
    site.configure("demo", way="socket")
    stack = site.confdir / "demo"
    stack.write_text(stack.read_text().replace(f"store={site.store}", ""))
    site.start("--store", f"postgresql:///x?host={tmp_path}")
    assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL
    assert site.log.has("demo", "error", "the database is out of reach")


def test_a_helper_refuses_a_store_in_a_database(site: Site, database: str) -> None:
    put(database)
    site.configure("demo")
    stack = site.confdir / "demo"
    stack.write_text(stack.read_text().replace(str(site.store), database))
    assert site.login(codes(0)).result is Result.AUTHINFO_UNAVAIL
    assert "service" in NEEDS_SERVICE


# ---- pam-totp store


def test_init_prepares_a_database_and_grants_the_tables(postgresql: Server, database: str) -> None:
    postgresql.sql("DROP SCHEMA pam_totp CASCADE", "DROP ROLE IF EXISTS authority", "CREATE ROLE authority LOGIN")
    assert run_json("store", "init", database, "--grant", "authority") == {
        "url": database,
        "replication": "synchronous",
    }
    done = run("store", "init", database, "--replication", "none", "--grant", "authority")
    assert done.stdout == f"{database}: the tables are ready; required replication: none\n"
    assert run_json("store", "init", database) == {"url": database, "replication": "none"}
    role = database.replace("owner@", "authority@")
    put(role)
    assert postgresql.sql("SELECT count(*) FROM pam_totp.decoy") == "64"
    seeds = f"T-1,{'ab' * 20}\n"
    assert run("stock", "import", "csv", "-", "--store", role, stdin=seeds).returncode == 0
    assert run("assign", "T-1", ME, "--store", role).returncode == 0
    assert run("unassign", "T-1", "--store", role).returncode == 0
    assert run("stock", "remove", "T-1", "--yes", "--store", role).returncode == 0


def test_a_copied_store_is_used_and_the_old_one_refused(site: Site, database: str) -> None:
    site.enrol()
    site.enrol(fob(), phone(), user="zoe")
    if os.geteuid() == 0:
        site.give_to(12345)
        site.folder.chmod(0o755)
    done = run("store", "copy", site.store, database, "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [
        f"2 records copied to {database}",
        f"{site.store} refuses all logins from now on; its records are kept in {site.store}.copied",
    ]
    assert run("verify", ME, codes(0), "--store", database).returncode == 0
    for command in (["list"], ["enroll", "new", "--yes", "--output", "-"], ["verify", ME, codes(1)]):
        refused = run(*command, "--store", site.store)
        assert refused.returncode == 3
        assert refused.stderr == (
            f"pam-totp: {site.store}: the records of this store were copied to {database}"
            " (name that store with --store)\n"
        )
    site.configure("demo", way="spawn", arguments="nullok")
    assert site.login(codes(1)).result is Result.AUTHINFO_UNAVAIL
    back = run_json("store", "copy", database, site.store, "--yes")
    assert back == {"from": database, "to": str(site.store), "records": 2, "old": "pam_totp.copied_record"}
    assert run("verify", ME, codes(0), "--store", site.store).returncode == 1
    assert run("verify", ME, codes(1), "--store", site.store).returncode == 0
    assert run("verify", ME, codes(2), "--store", database).returncode == 3
    assert FileStore(str(site.store)).read("zoe").tokens == (fob(), phone())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init"], "the following arguments are required"),
        (["init", "/var/lib/x"], "store init requires a URL that begins with postgresql://"),
        (["copy", "/x"], "wrong number of arguments: must be 'pam-totp store copy FROM TO'"),
        (["copy", "/x", "/y"], "one of FROM and TO must be a database, and the other a folder"),
        (["copy", "/x", "postgresql:///y", "--grant", "z"], "are options of 'pam-totp store init'"),
    ],
)
def test_wrong_arguments_of_store_are_explained(words: list[str], message: str) -> None:
    done = run("store", *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_copy_needs_a_confirmation(site: Site, database: str) -> None:
    site.enrol()
    done = run("store", "copy", site.store, database, stdin="n\n")
    assert done.returncode == 1
    assert site.path().exists()
    assert list(PostgresStore(database).users()) == []
