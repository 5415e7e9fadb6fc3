"""Tests of imports: the allowed imports of each package, the pure core, and the modules that a login loads."""

from __future__ import annotations

import ast
import configparser
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The packages and modules that each package can import besides itself. The longest matching key applies to a module.
PACKAGES = {
    "pam_totp.core": set(),
    "pam_totp.store": {"pam_totp.core"},
    "pam_totp.formats": {"pam_totp.core"},
    "pam_totp.operations": {"pam_totp.core", "pam_totp.store", "pam_totp.formats"},
    "pam_totp.member": {"pam_totp.core", "pam_totp.store", "pam_totp.operations"},
    "pam_totp.metrics": {"pam_totp.core"},
    "pam_totp.authority": {f"pam_totp.{package}" for package in ("core", "store", "operations", "member", "metrics")},
    "pam_totp.pam": {f"pam_totp.{package}" for package in ("core", "store", "operations", "member", "metrics")},
    "pam_totp.client": {"pam_totp.core", "pam_totp.pam"},
    "pam_totp.system.pamd": set(),
    "pam_totp.system": {
        f"pam_totp.{package}" for package in ("core", "store", "operations", "member", "pam", "system.pamd")
    },
    "pam_totp.system.enable": {"pam_totp.core", "pam_totp.system", "pam_totp.system.pamd"},
    "pam_totp.system.doctor": {
        f"pam_totp.{package}" for package in ("core", "pam", "system", "system.pamd", "system.enable")
    },
    "pam_totp.django": {f"pam_totp.{package}" for package in ("core", "pam", "client", "system")},
    "pam_totp.web": {
        f"pam_totp.{package}" for package in ("core", "store", "formats", "operations", "pam", "client", "system")
    },
    "pam_totp.cli": {"pam_totp"},
    "token_sim.device": {"pam_totp.core.oath"},
    "token_sim.wire": {"token_sim.device"},
    "token_sim.run": {"token_sim.device", "token_sim.wire"},
    "token_sim.factory": {"token_sim.device", "token_sim.run", "token_sim.extras"},
    "token_sim.testing": {f"token_sim.{package}" for package in ("device", "wire", "run", "factory")},
    "token_sim.client": {"token_sim.extras"},
    "token_sim.cli": {"token_sim"},
}
# The packages of the login path, which depend only on the standard library.
STANDARD_LIBRARY_ONLY = {
    f"pam_totp.{package}" for package in ("core", "store", "operations", "member", "metrics", "pam", "client")
}
# A login loads these modules only if its store is in a database. Of these modules, only `_connection` imports psycopg.
DATABASE_PARTS = ("", "_bulk", "_connection", "_copy", "_fence", "_members", "_state", "_stock")
DATABASE = {f"pam_totp.store.postgres{part}" for part in DATABASE_PARTS}
# A login loads this module only if a store is sealed. Only this module of the login path may import cryptography.
SEAL = {"pam_totp.store.seal"}
# The modules of the standard library that pure modules can use: without clock, randomness, files or processes.
PURE_LIBRARY = {"__future__", "collections", "enum", "functools", "typing"}
PURE_LIBRARY |= {"binascii", "contextlib", "hashlib", "ipaddress", "json", "struct", "tomllib"}
HASHES = {"_sha1", "_sha2", "_sha256", "_sha512"}  # each version of Python has some of these modules
PURE_LIBRARY |= HASHES | {"_functools", "_json", "_struct"}
IMPURE_NAMES = {"open", "print", "input", "exec", "eval", "compile", "__import__", "breakpoint"}


def modules(package: str) -> dict[str, Path]:
    """Return the modules of a package by name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = path
    return found


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text("utf-8"))))


def imports(name: str, path: Path) -> Iterator[str]:
    """Yield each module that a file imports. `from a import b` yields a, and also a.b if a.b is a module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in EVERYTHING)


EVERYTHING = modules("pam_totp") | modules("token_sim")


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


PATH = [name for name in modules("pam_totp") if within(name, STANDARD_LIBRARY_ONLY) and name not in DATABASE | SEAL]
PURE = [name for name in modules("pam_totp") if within(name, {"pam_totp.core"})]


def package_of(name: str) -> str | None:
    """Return the entry of PACKAGES for a module, or None for a module outside these packages."""
    return max((package for package in PACKAGES if within(name, {package})), key=len, default=None)


def test_every_package_folder_exists() -> None:
    assert {package for name in EVERYTHING if (package := package_of(name)) is not None} == set(PACKAGES)


@pytest.mark.parametrize("name", [name for name in EVERYTHING if package_of(name) is not None])
def test_a_module_imports_only_modules_that_its_folder_may_import(name: str) -> None:
    package = package_of(name)
    assert package is not None
    for imported in imports(name, EVERYTHING[name]):
        if imported in EVERYTHING and imported not in {"pam_totp", "token_sim"}:
            target = package_of(imported) or imported
            allowed = target == package or bool(PACKAGES[package] & {target, imported, imported.split(".")[0]})
            assert allowed, f"{name} imports {imported}: {package} may not import {target}"


@pytest.mark.bare
@pytest.mark.parametrize("name", PATH)
def test_the_login_path_imports_only_the_standard_library(name: str) -> None:
    for imported in imports(name, EVERYTHING[name]):
        top = imported.split(".")[0]
        assert top == "pam_totp" or top in sys.stdlib_module_names | HASHES, imported


def test_only_the_code_for_databases_imports_psycopg() -> None:
    users = {name for name, path in modules("pam_totp").items() if "psycopg" in set(imports(name, path))}
    assert users == {"pam_totp.store.postgres_connection"}


def test_no_module_of_the_login_path_loads_the_code_for_databases_early() -> None:
    """Imports at the beginning of a module run in every login. Imports in a function run when it is called."""
    for name in PATH:
        tree = ast.parse(EVERYTHING[name].read_text("utf-8"))
        early = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        sources = {
            f"{node.module}.{alias.name}"
            for node in early.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        } | {node.module for node in early.body if isinstance(node, ast.ImportFrom)}
        assert not sources & DATABASE, name


@pytest.mark.parametrize("name", PURE)
def test_a_core_module_uses_no_clock_randomness_or_files(name: str) -> None:
    for imported in imports(name, EVERYTHING[name]):
        assert imported in {*PURE, "pam_totp"} or imported.split(".")[0] in PURE_LIBRARY, imported
    used = {node.id for node in nodes(EVERYTHING[name]) if isinstance(node, ast.Name)}
    assert not used & IMPURE_NAMES


@pytest.mark.parametrize("name", modules("token_sim"))
def test_the_simulator_imports_only_the_oath_codes_of_pam_totp(name: str) -> None:
    ours = {imported for imported in imports(name, EVERYTHING[name]) if imported.split(".")[0] == "pam_totp"}
    assert ours <= {"pam_totp.core", "pam_totp.core.oath"}


@pytest.mark.parametrize("name", modules("pam_totp"))
def test_the_service_and_the_command_line_do_not_need_the_simulator(name: str) -> None:
    assert "token_sim" not in {imported.split(".")[0] for imported in imports(name, EVERYTHING[name])}


@pytest.mark.bare
@pytest.mark.parametrize("entry", ["pam_totp.pam.helper_main", "pam_totp.pam.service"])
def test_a_login_loads_only_the_core_and_the_standard_library(entry: str) -> None:
    """Check the distribution's interpreter with the options that the relay passes to it."""
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); before = set(sys.modules); import {entry}; "
    script += "import json; print(json.dumps({n: getattr(m, '__file__', None) for n, m in sys.modules.items()}))"
    done = subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    loaded: dict[str, str | None] = json.loads(done.stdout)
    assert entry in loaded
    for name, file in loaded.items():
        top = name.split(".")[0]
        assert name == "__main__" or top in sys.stdlib_module_names or name in PATH or name == "pam_totp", name
        assert file is None or (top == "pam_totp") == file.startswith(f"{ROOT}/"), (name, file)
        assert "site-packages" not in (file or "")
        assert "dist-packages" not in (file or "")


@pytest.mark.bare
@pytest.mark.parametrize("entry", ["pam_totp.pam.helper_main", "pam_totp.pam.module"])
def test_a_login_without_a_seal_loads_nothing_of_it(entry: str) -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {entry}\n"
    script += "from pam_totp.store import seal_key\nassert seal_key.codec_of('/var/lib/pam_totp') is None\n"
    script += (
        "print([n for n in ('pam_totp.store.seal', 'pam_totp.store.keyring', 'cryptography') if n in sys.modules])"
    )
    done = subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.bare
@pytest.mark.parametrize("command", ["list", "verify", "enable-token"])
def test_a_command_loads_no_module_of_another_command(command: str) -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pam_totp.cli import COMMANDS, main\n"
    script += f"try:\n    main([{command!r}, '--help'])\nexcept SystemExit:\n"
    script += "    print([name for name, module in COMMANDS.items() if f'pam_totp.cli.{module}' in sys.modules])"
    done = subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str([command])


@pytest.mark.bare
def test_doctor_loads_nothing_of_a_fleet_on_a_host_without_one() -> None:
    """These modules would take a quarter of the command's time."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pam_totp.cli import main
main(["doctor"])
unused = ("ssl", "http.client", "pam_totp.member.client", "pam_totp.operations.desk")
print([name for name in unused if name in sys.modules])
"""
    done = subprocess.run(["/usr/bin/python3", "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_package_has_no_required_dependencies() -> None:
    setup = configparser.RawConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    assert setup["options"]["install_requires"].strip() == ""


def test_names_of_tests_have_at_most_70_characters() -> None:
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    names = [name for path in files for name in re.findall(r"^ *def (test_\w+)", path.read_text("utf-8"), re.M)]
    assert names
    assert [name for name in names if len(name) > 70] == []
