"""Tests of the parts of `make systems` that run outside a root: mirrors, settings, arguments, and the table."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import as_root
from tests.support.site import TREE
from tests.systems import __main__ as command
from tests.systems import host, journey, roots
from tests.systems.report import Results, Row, failed_and_skipped, line, read_junit, table

URIS = """\
'http://mirror.example/debian/dists/bookworm/InRelease' mirror.example_debian_dists_bookworm_InRelease 0
'http://mirror.example/debian/dists/bookworm-updates/InRelease' mirror.example_debian_dists_bookworm-updates_InRelease 0
'http://mirror.example/debian-security/dists/bookworm-security/InRelease' mirror.example_debian-security_dists_x 0
'https://vendor.example/linux/debian/dists/bookworm/InRelease' vendor.example_linux_debian_dists_bookworm_InRelease 0
'file:/srv/local/dists/bookworm/InRelease' _srv_local_dists_bookworm_InRelease 0
"""
# The origin in the Release file, by archive and suite.
ARCHIVES = {
    ("http://mirror.example/debian", "bookworm"): "Debian",
    ("http://mirror.example/debian", "trixie"): "Debian",
    ("http://mirror.example/debian-security", "bookworm-security"): "Debian",
    ("http://mirror.example/debian-security", "trixie-security"): "Debian",
    ("https://vendor.example/linux/debian", "bookworm"): "Vendor",
    ("https://vendor.example/linux/debian", "noble"): "Vendor",
    ("http://default.example/ubuntu", "noble"): "Ubuntu",
    ("http://default.example/ubuntu", "noble-security"): "Ubuntu",
}
NEIGHBOUR = {
    ("http://mirror.example/ubuntu", "noble"): "Ubuntu",
    ("http://mirror.example/ubuntu", "noble-security"): "Ubuntu",
}


@pytest.fixture
def archives(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[tuple[str, str], str]:
    """Fake the archives of apt and debootstrap. Return the origins of the archives that `fetch` finds."""
    there = dict(ARCHIVES)

    def fetch(url: str) -> str | None:
        archive, _, rest = url.partition("/dists/")
        origin = there.get((archive, rest.partition("/")[0]))
        return origin and f"Archive: stable\nOrigin: {origin}\nComponent: main\n"

    (tmp_path / "sid").write_text("default_mirror http://default.example/debian\n")
    (tmp_path / "gutsy").write_text("  amd64)\n\tdefault_mirror http://default.example/ubuntu\n  ;;\n")
    monkeypatch.setattr(host, "_SCRIPTS", tmp_path)
    monkeypatch.setattr(host, "apt_update_uris", lambda: URIS)
    monkeypatch.setattr(host, "fetch", fetch)
    for name in list(os.environ):
        if name.startswith("SYSTEMS_"):
            monkeypatch.delenv(name)
    return there


def test_debian_comes_from_the_archive_that_apt_uses(archives: dict[tuple[str, str], str]) -> None:
    for suite in ("bookworm", "trixie"):
        assert host.mirrors(suite, "Debian") == (
            "http://mirror.example/debian",
            "http://mirror.example/debian-security",
        )


def test_ubuntu_comes_from_the_same_server_if_it_has_it(archives: dict[tuple[str, str], str]) -> None:
    archives |= NEIGHBOUR
    assert host.mirrors("noble", "Ubuntu") == ("http://mirror.example/ubuntu",) * 2


def test_otherwise_ubuntu_comes_from_debootstraps_default_mirror(archives: dict[tuple[str, str], str]) -> None:
    assert host.mirrors("noble", "Ubuntu") == ("http://default.example/ubuntu",) * 2


def test_an_archive_of_another_origin_is_not_used(archives: dict[tuple[str, str], str]) -> None:
    del archives["http://default.example/ubuntu", "noble"]
    with pytest.raises(host.NoMirror, match="SYSTEMS_UBUNTU_MIRROR"):
        host.mirrors("noble", "Ubuntu")


def test_a_mirror_in_the_environment_takes_precedence(
    archives: dict[tuple[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSTEMS_DEBIAN_MIRROR", "http://own.example/d")
    monkeypatch.setenv("SYSTEMS_DEBIAN_SECURITY_MIRROR", "http://own.example/s")
    assert host.mirrors("trixie", "Debian") == ("http://own.example/d", "http://own.example/s")


def test_pips_settings_are_copied_without_indexes_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("PIP_", "XDG_")):
            monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://index.example/simple\n"
        "extra-index-url = file:///srv/wheels https://more.example/simple\nuser = yes\nfind-links = /srv/wheels\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_TRUSTED_HOST", "index.example")
    found = host.pip_settings()
    assert found["index-url"] == "https://index.example/simple"
    assert found["extra-index-url"] == "https://more.example/simple"
    assert found["trusted-host"] == "index.example"
    assert not {"user", "find-links"} & set(found)


def test_a_root_without_indexes_resolves_only_its_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc/apt").mkdir(parents=True)
    (tmp_path / "etc/apt/sources.list").write_text("deb http://archive/debian bookworm main\n")
    (tmp_path / "etc/nsswitch.conf").write_text("passwd: files\nhosts: files dns\nservices: files\n")
    monkeypatch.setattr(host, "proxies", lambda: {"http_proxy": "http://proxy:3128", "no_proxy": "localhost"})
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("192.0.2.1", 0))])
    host.copy_settings(tmp_path, indexes=False)
    assert not (tmp_path / "etc/pip.conf").exists()
    assert (tmp_path / "etc/resolv.conf").read_text() == ""
    assert (tmp_path / "etc/nsswitch.conf").read_text() == "passwd: files\nservices: files\nhosts: files\n"
    known = re.findall(r"^192\.0\.2\.1 (.*)$", (tmp_path / "etc/hosts").read_text(), re.MULTILINE)
    assert known == ["archive", "proxy"]
    assert 'Acquire::http::Proxy "http://proxy:3128";' in (tmp_path / "etc/apt/apt.conf.d/90host").read_text()
    host.copy_settings(tmp_path, indexes=True)
    assert (tmp_path / "etc/pip.conf").exists()
    assert (tmp_path / "etc/resolv.conf").read_text() == Path("/etc/resolv.conf").read_text()
    assert "archive" not in (tmp_path / "etc/hosts").read_text()
    host.remove_settings(tmp_path)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"nsswitch.conf", "sources.list"}


def test_a_link_in_the_root_does_not_lead_out_of_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    (tmp_path / "root" / "etc" / "resolv.conf").symlink_to(outside)
    host.copy_settings(tmp_path / "root", indexes=True)
    assert outside.read_text() == "untouched"
    assert not (tmp_path / "root" / "etc" / "resolv.conf").is_symlink()


@as_root
def test_a_shallow_clone_of_another_owner_can_be_cloned(tmp_path: Path) -> None:
    """Build services use shallow clones with a detached HEAD."""
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@a.example", "-c", "safe.directory=*")

    def run(*words: str | Path, cwd: Path = tmp_path) -> str:
        return subprocess.run([*git, *words], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()

    run("init", "--quiet", "one")
    for message in ("first", "second"):
        run("commit", "--quiet", "--allow-empty", "--message", message, cwd=tmp_path / "one")
    run("clone", "--quiet", "--depth=1", f"file://{tmp_path}/one", "two")
    run("checkout", "--quiet", "--detach", cwd=tmp_path / "two")
    for path in ("two", "two/.git"):
        os.chown(tmp_path / path, 65534, 65534)
    made = roots.bare_clone(tmp_path, tmp_path / "two")
    run("clone", "--quiet", f"file://{made}", "three")
    assert run("rev-parse", "HEAD", cwd=tmp_path / "three") == run("rev-parse", "HEAD", cwd=tmp_path / "one")


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("make: missing:\n    sudo apt-get install -y sudo git\nmake: *** Error 1\n", "apt-get install -y sudo git"),
        ("  sudo apt-get update && sudo apt-get install -y gcc\n", "apt-get update && apt-get install -y gcc"),
        ("installing: gcc\n", None),
    ],
)
def test_root_runs_exactly_the_printed_line(said: str, wanted: str | None) -> None:
    assert journey.apt_line(said) == wanted


# A shortened report of pytest.
JUNIT = """\
<testsuites><testsuite name="pytest" errors="1" failures="1" skipped="2" tests="6">
<testcase classname="tests.core.test_oath" name="test_a" />
<testcase classname="tests.core.test_oath" name="test_b[x]"><failure message="assert 1 == 2">…</failure></testcase>
<testcase classname="tests.logins.test_login" name="test_c"><error message="failed on setup">…</error></testcase>
<testcase classname="tests.web.test_x" name="test_d"><skipped type="pytest.skip" message="no browser" /></testcase>
<testcase classname="tests.web.test_x" name="test_e"><skipped type="pytest.skip" message="no browser" /></testcase>
<testcase classname="tests.web.test_x" name="test_f"><properties /></testcase>
</testsuite></testsuites>
"""
SYSTEM = "Debian 12"


def test_the_results_in_pytests_report_are_counted(tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT)
    assert read_junit(tmp_path / "junit.xml") == Results(
        2,
        ("tests/core/test_oath.py::test_b[x]", "tests/logins/test_login.py::test_c"),
        ("no browser", "no browser"),
    )


def test_the_table_has_a_line_for_each_step() -> None:
    rows = [
        Row(SYSTEM, "root", "make demo", True, 0, 9.6, 31),
        Row(SYSTEM, "newcomer", "make test", False, 2, 312.2, 120, Results(1999, ("a.py::b",), ("no browser",) * 3)),
    ]
    assert table(rows).splitlines() == [
        "system     user      step               exit  seconds  packages  passed  failed  skipped",
        "Debian 12  root      make demo  ok         0       10        31",
        "Debian 12  newcomer  make test  FAILED     2      312       120    1999       1        3",
    ]
    assert failed_and_skipped(rows).splitlines() == [
        "Debian 12, newcomer: failed: a.py::b",
        "Debian 12, newcomer: 3 skipped: no browser",
    ]
    assert line(rows[1]).endswith("make test: FAILED, exit 2, 312 s, 120 packages; 1999 passed, 1 failed, 3 skipped")


def test_without_arguments_all_steps_run_on_all_systems() -> None:
    everything = command.parser().parse_args([])
    assert (everything.systems, everything.users, everything.steps) == (
        ["bookworm", "trixie", "noble"],
        ["root", "newcomer"],
        ["demo", "again", "offline", "test"],
    )
    words = ["--systems", "noble", "--users", "root", "--steps", "demo", "test", "--tests", "tests/core"]
    some = command.parser().parse_args(words)
    assert (some.systems, some.users, some.steps, some.tests) == (["noble"], ["root"], ["demo", "test"], "tests/core")


def test_an_unknown_system_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        command.main(["--systems", "potato"])
    assert left.value.code == 2
    assert "bookworm" in capsys.readouterr().err


@pytest.mark.parametrize(("good", "status"), [((True, True), 0), ((True, False), 1), ((False, True), 1)])
def test_one_failed_step_makes_the_run_fail(
    good: tuple[bool, ...], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def visit(systems: object, users: object, wish: object, rows: list[Row]) -> None:
        rows.extend(Row(SYSTEM, "root", "make demo", is_good, 0, 1, 0) for is_good in good)

    monkeypatch.setattr(command, "visit", visit)
    monkeypatch.setattr(command, "require_namespaces", lambda: None)
    monkeypatch.setattr(command, "base", lambda system, say: Path())
    assert command.main([]) == status
    assert capsys.readouterr().out.count("make demo") == 2


@pytest.mark.parametrize("uid", [1000, 0])
def test_a_machine_that_cannot_make_roots_fails_and_names_the_reason(
    uid: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The exit status is 3 for an ordinary user, and for root if the kernel forbids namespaces."""
    (tmp_path / "unshare").write_text("#!/bin/sh\necho unshare failed: Operation not permitted >&2\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    for name in ("debootstrap", "git"):
        (tmp_path / name).symlink_to("/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert command.main([]) == 3
    assert ("require root" if uid else "namespaces") in capsys.readouterr().err


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Fake base roots as empty temporary folders. Return a list that gets the name of each new base root."""
    names: list[str] = []

    def make(system: roots.System, folder: Path, say: object) -> None:
        names.append(system.name)
        folder.mkdir()
        if system.name == "noble":
            raise roots.Unusable("debootstrap failed")

    monkeypatch.setattr(roots, "FOLDER", tmp_path)
    monkeypatch.setattr(roots, "require_namespaces", lambda: None)
    monkeypatch.setattr(roots, "_make", make)
    return names


def test_a_base_root_is_made_only_once(made: list[str], tmp_path: Path) -> None:
    trixie = roots.SYSTEMS["trixie"]
    assert roots.base(trixie) == roots.base(trixie) == tmp_path / "trixie" / "root"
    assert made == ["trixie"]
    roots.remove_base(trixie)
    assert roots.base(trixie).exists()
    assert made == ["trixie"] * 2


def test_a_base_root_of_another_recipe_is_made_again(made: list[str]) -> None:
    trixie = roots.SYSTEMS["trixie"]
    roots.base(trixie)
    (roots.base(trixie._replace(components="main,contrib")) / "new").touch()
    assert made == ["trixie"] * 2
    assert (roots.base(trixie._replace(components="main,contrib")) / "new").exists()


def test_a_base_root_that_fails_leaves_no_folder(made: list[str], tmp_path: Path) -> None:
    with pytest.raises(roots.Unusable):
        roots.base(roots.SYSTEMS["noble"])
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_the_systems_are_those_that_the_readme_names() -> None:
    readme = (TREE / "README.md").read_text()
    assert "On Debian 12 or 13, or Ubuntu 24.04, with git, make and python3" in readme
    assert {system.title for system in roots.SYSTEMS.values()} == {"Debian 12", "Debian 13", "Ubuntu 24.04"}
