"""A package index in a folder, with wheels that the tests build. pip reads the index from a file: URL.

A stub wheel has a name, a version and dependencies, but installs no module.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

NOWHERE = "http://127.0.0.1:9"  # a proxy for all other hosts: no process listens there, so connections fail at once


def normal(name: str) -> str:
    """Return the normalised name of a package (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Index:
    """A package index in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._pages = folder / "simple"
        self._files.mkdir(parents=True)
        self._pages.mkdir()

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment for a pip that uses only this index, and ignores the host's settings."""
        kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(("PIP_", "PYTHON"))}
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE)
        settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": self._pages.as_uri(), "PIP_RETRIES": "0"}
        return kept | proxies | settings

    def stub(self, name: str, version: str, metadata: Iterable[str] = ()) -> str:
        """Add a stub wheel, with `metadata` as additional lines of its metadata. Return the wheel's SHA-256."""
        return self._add(
            name, version, {}, ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata]
        )

    def like_installed(self, name: str, version: str) -> str:
        """Add a stub wheel with the dependencies of the installed package. Return the wheel's SHA-256."""
        header = (importlib.metadata.distribution(name).read_text("METADATA") or "").split("\n\n")[0].splitlines()
        kept = [line for line in header if line.startswith(("Requires-Dist:", "Provides-Extra:"))]
        return self.stub(name, version, kept)

    def installed(self, name: str) -> str:
        """Add a wheel with the modules and the metadata of the installed package. Return the wheel's SHA-256."""
        found = importlib.metadata.distribution(name)
        inside = [file for file in found.files or () if ".." not in file.parts and file.suffix != ".pyc"]
        info = f"{normal(name).replace('-', '_')}-{found.version}.dist-info"
        content = {str(file): file.read_binary() for file in inside if file.parts[0] != info}
        content[f"{info}/entry_points.txt"] = (found.read_text("entry_points.txt") or "").encode()
        return self._add(name, found.version, content, (found.read_text("METADATA") or "").splitlines())

    def _add(self, name: str, version: str, content: dict[str, bytes], metadata: list[str]) -> str:
        escaped = f"{normal(name).replace('-', '_')}-{version}"
        info = f"{escaped}.dist-info"
        made = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        content = content | {
            f"{info}/METADATA": ("\n".join(metadata) + "\n").encode(),
            f"{info}/WHEEL": made.encode(),
        }
        record = [f"{path},{_digest(data)},{len(data)}" for path, data in content.items()]
        content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
        wheel = self._files / f"{escaped}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, data in content.items():
                archive.writestr(path, data)
        self._page(name, wheel)
        return hashlib.sha256(wheel.read_bytes()).hexdigest()

    def _page(self, name: str, wheel: Path) -> None:
        folder = self._pages / normal(name)
        folder.mkdir(exist_ok=True)
        with open(folder / "index.html", "a") as page:
            page.write(f'<a href="../../files/{wheel.name}">{wheel.name}</a>\n')


def _digest(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
