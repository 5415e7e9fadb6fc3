"""Tests of docs/api.md: the page lists every public name with its signature, and the examples of the page work.

Rules:
- A Python block of definitions is a stub. Tests compare the names, arguments, types and defaults of a stub with
  the code.
- Every other Python block is an example, which a test executes.
- A module's `__all__` is the list of its public names. A class's public names begin without an underscore.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from pam_totp import client
from pam_totp.core.oath import hotp
from tests.support.site import ME, TREE, Site, codes

if TYPE_CHECKING:
    from token_sim.testing.live_token import LiveToken

PAGE = (TREE / "docs" / "api.md").read_text()
# The module that each section of the page documents, by the section's heading.
MODULES = {
    "pam_totp.client": "pam_totp.client",
    "pam_totp.django": "pam_totp.django",
    "token_sim.client": "token_sim.client",
    "The pytest plugin": "token_sim.testing.live_token",
    "token:// URLs": "token_sim.testing.inprocess",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef


def section(heading: str) -> str:
    """Return the text of a section, by its second-level heading."""
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def blocks(heading: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", section(heading), re.DOTALL)


def is_stub(block: str) -> bool:
    """Return True if a block has only definitions: constants, and functions and classes with the body `...`."""
    body = ast.parse(block).body
    return all(is_constant(node) or (isinstance(node, Definition) and is_empty(node)) for node in body)


def is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


def is_empty(node: Definition) -> bool:
    return all(
        isinstance(inner, ast.AnnAssign)
        or is_constant(inner)
        or (isinstance(inner, Function) and is_empty(inner))
        or (isinstance(inner, ast.Expr) and isinstance(inner.value, ast.Constant) and inner.value.value is Ellipsis)
        for inner in node.body
    )


def examples(heading: str) -> list[str]:
    return [block for block in blocks(heading) if not is_stub(block)]


def stubs(heading: str) -> dict[str, ast.stmt]:
    """Return the stub definitions of a section, by name."""
    found: dict[str, ast.stmt] = {}
    for node in (node for block in blocks(heading) if is_stub(block) for node in ast.parse(block).body):
        defined = node.targets[0] if isinstance(node, ast.Assign) else node
        assert isinstance(defined, ast.Name | Definition)
        name = defined.id if isinstance(defined, ast.Name) else defined.name
        assert name not in found, f"{name} is documented twice"
        found[name] = node
    return found


def parameters(node: Function) -> inspect.Signature:
    """Return the signature of a stub, with types as text."""
    code = f"from __future__ import annotations\ndef {node.name}({ast.unparse(node.args)})"
    code += f" -> {ast.unparse(node.returns)}: ..." if node.returns else ": ..."
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  the signature is from docs/api.md
    return inspect.signature(names[node.name])


def same_signature(node: Function, function: Callable[..., Any]) -> None:
    assert parameters(node) == inspect.signature(function), node.name
    assert isinstance(node, ast.AsyncFunctionDef) == bool(function.__code__.co_flags & inspect.CO_COROUTINE), node.name


def public_names(thing: type) -> set[str]:
    """Return the public names that a class defines: methods, properties, fields, attributes of instances."""
    names = {name for name in vars(thing) if not name.startswith("_")}
    if dataclasses.is_dataclass(thing):
        names |= {field.name for field in dataclasses.fields(thing)}
    elif "__init__" in vars(thing):
        names |= attributes_set_by(vars(thing)["__init__"])
    return names


def attributes_set_by(method: Callable[..., None]) -> set[str]:
    """Return the public attributes that a method assigns to `self`."""
    tree = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(method))))
    stored = (node for node in tree if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return {node.attr for node in stored if ast.unparse(node.value) == "self" and not node.attr.startswith("_")}


def same_class(node: ast.ClassDef, thing: type, *, names: set[str] | None = None) -> None:
    """Compare a class with its stub: bases, attributes, properties, methods. `names` overrides the public names."""
    bases = [base.__name__ for base in thing.__bases__ if base is not object]
    assert [ast.unparse(base).rpartition(".")[2] for base in node.bases] == bases, node.name
    documented: set[str] = set()
    for inner in node.body:
        if isinstance(inner, Function):
            documented.add(inner.name)
            same_member(inner, vars(thing)[inner.name])
        elif isinstance(inner, ast.AnnAssign):
            assert isinstance(inner.target, ast.Name)
            documented.add(inner.target.id)
            same_attribute(inner, thing)
        elif isinstance(inner, ast.Assign):
            assert isinstance(inner.targets[0], ast.Name) and issubclass(thing, enum.Enum)
            documented.add(inner.targets[0].id)
            assert thing[inner.targets[0].id].value == ast.literal_eval(inner.value)
    public = public_names(thing) if names is None else names
    assert {name for name in documented if not name.startswith("_")} == public, node.name


def same_member(node: Function, member: Any) -> None:
    is_property = [ast.unparse(decorator) for decorator in node.decorator_list] == ["property"]
    assert isinstance(member, property) == is_property, node.name
    same_signature(node, member.fget if is_property else member)


def same_attribute(node: ast.AnnAssign, thing: type) -> None:
    """Compare the type and default of a dataclass field. In other classes, check that `__init__` sets the attribute."""
    assert isinstance(node.target, ast.Name)
    if not dataclasses.is_dataclass(thing):
        assert node.target.id in public_names(thing)
        return
    field = {field.name: field for field in dataclasses.fields(thing)}[node.target.id]
    assert field.type == ast.unparse(node.annotation)
    default = dataclasses.MISSING if node.value is None else ast.literal_eval(node.value)
    assert field.default == default


def same_names(heading: str, module: ModuleType) -> None:
    """Compare every stub of a section with `module`, and the list of names with the module's `__all__`."""
    documented = stubs(heading)
    assert set(documented) == set(module.__all__)
    for name, node in documented.items():
        value = getattr(module, name)
        if isinstance(node, ast.ClassDef):
            same_class(node, value)
        elif isinstance(node, Function):
            same_signature(node, value)
        else:
            assert isinstance(node, ast.Assign)
            assert value == ast.literal_eval(node.value), name


@pytest.fixture(scope="module")
def _django() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.django.settings")
    import django

    django.setup()


@pytest.mark.parametrize("heading", [heading for heading in MODULES if heading != "pam_totp.django"])
def test_the_page_and_the_module_have_the_same_names_and_signatures(heading: str) -> None:
    same_names(heading, importlib.import_module(MODULES[heading]))


def test_every_section_of_the_page_is_checked() -> None:
    assert re.findall(r"^## (.*)$", PAGE, re.MULTILINE) == list(MODULES)


def test_the_page_and_the_code_have_the_same_django_classes(_django: None) -> None:
    from pam_totp.django.backends import PamBackend
    from pam_totp.django.middleware import RequestMiddleware
    from pam_totp.django.models import HostDevice
    from pam_totp.django.sites import HostAdminSite
    from pam_totp.django.views import CodeView

    things = (PamBackend, HostDevice, CodeView, HostAdminSite, RequestMiddleware)
    documented = stubs("pam_totp.django")
    assert list(documented) == [thing.__name__ for thing in things]
    for thing in things:
        node = documented[thing.__name__]
        assert isinstance(node, ast.ClassDef)
        same_class(node, thing, names=own_methods(thing))
        assert f"### {thing.__module__}.{thing.__name__}\n" in PAGE


def own_methods(thing: type) -> set[str]:
    """Return the names of the public methods that pam_totp itself defines in a class for Django."""
    functions = [value for value in vars(thing).values() if inspect.isfunction(value)]
    return {f.__name__ for f in functions if f.__module__ == thing.__module__ and not f.__name__.startswith("_")}


def test_the_page_and_the_code_have_the_same_django_settings(_django: None) -> None:
    from pam_totp.django.conf import DEFAULTS

    rows = re.findall(r"^\| `(PAM_TOTP_\w+)` \| `(.*?)` \|", section("pam_totp.django"), re.MULTILINE)
    assert {name: ast.literal_eval(default) for name, default in rows} == DEFAULTS


def test_the_page_and_the_code_have_the_same_django_checks() -> None:
    source = (TREE / "pam_totp" / "django" / "checks.py").read_text()
    rows = re.findall(r"^\| `(pam_totp\.[EW]\d+)` \|", section("pam_totp.django"), re.MULTILINE)
    assert rows == re.findall(r'id="(pam_totp\.[EW]\d+)"', source)


def test_the_page_and_the_plugin_have_the_same_fixtures_and_marker() -> None:
    source = (TREE / "token_sim" / "pytest_plugin.py").read_text()
    fixtures = set(re.findall(r"^@pytest\.fixture.*\ndef (\w+)", source, re.MULTILINE))
    rows = re.findall(r"^\| `(\w+)` \| fixture:", section("The pytest plugin"), re.MULTILINE)
    assert (set(rows), len(rows)) == (fixtures, len(fixtures))
    assert re.findall(r"^\| `@pytest\.mark\.(\w+)\(", section("The pytest plugin"), re.MULTILINE) == ["token_sim"]


def test_every_link_of_the_page_leads_to_a_heading() -> None:
    for file, anchor in re.findall(r"\]\(([\w./]*)(?:#([\w-]+))?\)", PAGE):
        text = ((TREE / "docs" / file) if file else TREE / "docs" / "api.md").read_text()
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, (file, anchor)


# The examples


def only_example(heading: str) -> str:
    (example,) = examples(heading)
    return example


def test_the_client_example_accepts_a_code_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = client.verify.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "path", str(site.socket))
    names: dict[str, Any] = {}
    exec(only_example("pam_totp.client"), names)  # noqa: S102
    site.start()
    site.enrol()
    assert names["log_in"](ME, codes(0), "192.0.2.7") is True
    assert names["log_in"](ME, codes(0), "192.0.2.7") is False


def test_the_client_example_denies_without_a_service(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = client.verify.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "path", str(site.socket))
    names: dict[str, Any] = {}
    exec(only_example("pam_totp.client"), names)  # noqa: S102
    assert names["log_in"](ME, codes(0), "192.0.2.7") is False
    assert "(start 'pam-totp serve')" in capsys.readouterr().out


def test_the_django_example_names_what_can_be_imported(_django: None) -> None:
    from django.utils.module_loading import import_string

    names: dict[str, Any] = {"INSTALLED_APPS": [], "MIDDLEWARE": []}
    exec(only_example("pam_totp.django"), names)  # noqa: S102
    for name in (*names["MIDDLEWARE"], *names["AUTHENTICATION_BACKENDS"]):
        assert inspect.isclass(import_string(name))
    assert [importlib.import_module(name).__name__ for name in names["INSTALLED_APPS"]] == names["INSTALLED_APPS"]


def test_the_token_client_example_reads_a_code(token_sim: LiveToken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["example.py", token_sim.port])
    names: dict[str, Any] = {}
    exec(only_example("token_sim.client"), names)  # noqa: S102
    assert names["code"] == hotp(token_sim.key, 0)


def test_the_plugin_example_passes(tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(only_example("The pytest plugin"))
    command = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout


def test_the_token_url_example_reads_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(TREE))
    command = [sys.executable, "-m", "token_sim.cli", "new", "fob.token"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    names: dict[str, Any] = {}
    exec(only_example("token:// URLs"), names)  # noqa: S102
    seed = printed.split(",")[1]
    assert names["code"] == hotp(bytes.fromhex(seed), 0)
