"""The settings that a bare root copies from this machine: the mirror, the network, and certificates.

Rules:
- The mirror is an archive that apt uses here, another archive on the same server, or debootstrap's default. The
  mirror's Release file must name the distribution as its origin.
- SYSTEMS_DEBIAN_MIRROR, SYSTEMS_DEBIAN_SECURITY_MIRROR, SYSTEMS_UBUNTU_MIRROR and SYSTEMS_UBUNTU_SECURITY_MIRROR take
  precedence.
- The copied settings are name servers, proxies, certificates, pip's indexes, and apt's settings for archives. The
  suite copies no accounts and no keys. A URL of a proxy or an index can contain a password.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

# The last path components of archive URLs. Many mirrors offer several of these archives under one parent path.
_KINDS = ("debian", "debian-security", "ubuntu", "ubuntu-ports")
_SCRIPTS = Path("/usr/share/debootstrap/scripts")
_APT_SETTINGS = r"Acquire::(https?::Proxy|ftp::Proxy|Check-Valid-Until|Check-Date|Retries|ForceIPv[46])\b"
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_LOCAL_CERTIFICATES = "usr/local/share/ca-certificates"
_PIP_CERTIFICATES = "etc/ssl/pip.pem"
KNOWN_HOSTS_ONLY = "hosts: files\n"  # a line of nsswitch.conf: programs look up host names only in /etc/hosts
NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}


class NoMirror(Exception):
    """The error if no archive is found for a suite."""


# Mirrors


def mirrors(suite: str, origin: str) -> tuple[str, str]:
    """Return the archive of a suite and that of its security updates."""
    name = origin.upper()
    candidates = [*offered(apt_update_uris()), *debootstrap_mirrors(origin)]
    main = os.environ.get(f"SYSTEMS_{name}_MIRROR") or choose(candidates, suite, origin, fetch)
    security = os.environ.get(f"SYSTEMS_{name}_SECURITY_MIRROR") or choose(
        [main, *candidates], f"{suite}-security", origin, fetch
    )
    return main, security


def apt_update_uris() -> str:
    """Return the URIs that `apt-get update` would fetch. apt-get prints them to any user."""
    command = ["apt-get", "--print-uris", "update"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def offered(uris: str) -> Iterator[str]:
    """Yield the archives that apt uses, then other archives on the same servers."""
    archives = list(dict.fromkeys(re.findall(r"^'(https?://\S+?)/+dists/\S+'", uris, re.MULTILINE)))
    yield from archives
    for archive in archives:
        above, _, last = archive.rpartition("/")
        if last in _KINDS:
            yield from (f"{above}/{kind}" for kind in _KINDS if kind != last)


def debootstrap_mirrors(origin: str) -> list[str]:
    """Return the archives that debootstrap's own scripts name for a distribution."""
    script = _SCRIPTS / {"Debian": "sid", "Ubuntu": "gutsy"}[origin]
    text = script.read_text() if script.exists() else ""
    return re.findall(r"^\s*default_mirror\s+(http\S+)", text, re.MULTILINE)


def choose(archives: Iterable[str], suite: str, origin: str, fetch: Callable[[str], str | None]) -> str:
    """Return the first archive that has the suite for this architecture. `fetch` returns the text at a URL, or None."""
    for archive in dict.fromkeys(archives):
        text = fetch(f"{archive}/dists/{suite}/main/binary-{architecture()}/Release")
        if text is not None and f"Origin: {origin}" in text.splitlines():
            return archive
    raise NoMirror(
        f"archive of {suite} not found on the mirrors of apt and debootstrap (set SYSTEMS_{origin.upper()}_MIRROR=URL)"
    )


def fetch(url: str) -> str | None:
    """Return the text at a URL, or None if the request fails."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url), timeout=30) as reply:  # noqa: S310  # http or https
            return str(reply.read().decode(errors="replace"))
    except OSError:
        return None


def architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True, check=True).stdout.strip()


# Network settings


def proxies() -> dict[str, str]:
    """Return this machine's proxies, including apt's, as environment variables."""
    found = {name: os.environ[name] for name in _PROXIES if name in os.environ}
    for line in apt_settings():
        match = re.fullmatch(r'Acquire::(https?)::Proxy "(\S+)";', line)
        if match and match[2] != "DIRECT":
            found.setdefault(f"{match[1]}_proxy", match[2])
    return found


def _proxy_urls() -> dict[str, str]:
    """Return the URL of each proxy by its scheme, such as "https"."""
    named = {name.lower().removesuffix("_proxy"): url for name, url in proxies().items()}
    return {scheme: url for scheme, url in named.items() if url and scheme != "no"}


def apt_settings() -> list[str]:
    """Return apt's settings for reaching archives."""
    said = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    return [line for line in said.splitlines() if re.match(_APT_SETTINGS, line)]


def pip_settings() -> dict[str, str]:
    """Return pip's settings for reaching an index, without indexes in folders of this machine."""
    config = configparser.RawConfigParser()
    config_home = Path(os.environ.get("XDG_CONFIG_HOME", Path.home() / ".config"))
    files = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", config_home / "pip/pip.conf", Path.home() / ".pip/pip.conf")
    config.read([*files, os.environ.get("PIP_CONFIG_FILE", os.devnull)])
    found = {}
    for name in (*_PIP_SETTINGS, "cert"):
        value = config.get("global", name, fallback="")
        value = os.environ.get(f"PIP_{name.upper().replace('-', '_')}", value)
        words = [word for word in value.split() if not word.startswith(("file:", "/")) or name == "cert"]
        if words:
            found[name] = " ".join(words)
    return found


def copy_settings(root: Path, *, indexes: bool) -> None:
    """Copy this machine's network settings into a root. The root can reach only its archives if `indexes` is False."""
    _write(root, "etc/resolv.conf", Path("/etc/resolv.conf").read_text() if indexes else "")
    if not indexes:
        switch = root / "etc/nsswitch.conf"
        others = re.sub(r"^hosts:.*\n", "", switch.read_text() if switch.exists() else "", flags=re.MULTILINE)
        _write(root, "etc/nsswitch.conf", others + KNOWN_HOSTS_ONLY)
    known = "" if indexes else "".join(f"{address} {name}\n" for name, address in archive_hosts(root))
    _write(root, "etc/hosts", f"127.0.0.1 localhost bare\n::1 localhost ip6-localhost ip6-loopback\n{known}")
    _write(root, "etc/hostname", "bare\n")
    through = [f'Acquire::{scheme}::Proxy "{url}";' for scheme, url in _proxy_urls().items()]
    _write(root, "etc/apt/apt.conf.d/90host", "".join(f"{line}\n" for line in (*through, *apt_settings())))
    for certificate in Path("/", _LOCAL_CERTIFICATES).glob("**/*.crt"):
        _write(root, f"{_LOCAL_CERTIFICATES}/{certificate.name}", certificate.read_text())
    if indexes:
        settings = pip_settings()
        if "cert" in settings:
            _write(root, _PIP_CERTIFICATES, Path(settings["cert"]).read_text())
            settings["cert"] = f"/{_PIP_CERTIFICATES}"
        lines = "".join(f"{name} = {value}\n" for name, value in settings.items())
        _write(root, "etc/pip.conf", f"[global]\n{lines}")


def archive_hosts(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and an address of each host that apt needs in a root: archives and proxies."""
    sources = "".join(path.read_text() for path in sorted((root / "etc/apt").glob("sources.list*")) if path.is_file())
    urls = [*re.findall(r"https?://\S+", sources), *_proxy_urls().values()]
    for name in dict.fromkeys(urlsplit(url).hostname or "" for url in urls):
        with contextlib.suppress(socket.gaierror):
            yield name, str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])


def remove_settings(root: Path) -> None:
    """Remove the files that `copy_settings` wrote to a base root. Every `Root` writes them again."""
    for name in ("etc/resolv.conf", "etc/hosts", "etc/hostname", "etc/apt/apt.conf.d/90host", "etc/pip.conf"):
        (root / name).unlink(missing_ok=True)
    (root / _PIP_CERTIFICATES).unlink(missing_ok=True)
    shutil.rmtree(root / _LOCAL_CERTIFICATES, ignore_errors=True)


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # write_text would follow a link out of the root
    path.write_text(text)
    path.chmod(0o644)
