"""The metrics for the textfile collector of Prometheus' node_exporter.

Rules:
1. The file is replaced by one rename, so that node_exporter never reads half of it. The mode is 0644.
2. The file has no metric that distinguishes refusals (`metrics.counters`, rule 5), because every account may read it.
3. The file has only metrics of pam_totp, even if a service sends other metrics.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress

from pam_totp.cli.command_line import WRONG_USAGE, CommandError
from pam_totp.metrics.counters import AUTHORITY, SERVICE
from pam_totp.metrics.endpoint import fetch
from pam_totp.metrics.exposition import Metric, Sample, merged, text_of
from pam_totp.metrics.store_statistics import StoreStatistics
from pam_totp.pam.privileges import acting_as_root

EXAMPLE = "/var/lib/prometheus/node-exporter/pam_totp.prom"
SUFFIX = ".prom"  # node_exporter reads only files with this suffix
SOCKETS = {SERVICE: "/run/pam_totp/service/metrics", AUTHORITY: "/run/pam_totp/authority/metrics"}  # of the units
MODE = 0o644


def of_services(sockets: Mapping[str, str] = SOCKETS) -> dict[str, str | None]:
    """Return the metrics by role, for each service whose socket exists: None if the service did not answer."""
    found: dict[str, str | None] = {}
    for role, path in sockets.items():
        try:
            found[role] = merged([fetch(path, reasons=False)])
        except FileNotFoundError:  # the service is stopped, or this host lacks it
            continue
        except (OSError, ValueError):
            found[role] = None
    return found


def text(services: Mapping[str, str | None], store: StoreStatistics | None, *, is_expected: bool) -> str:
    """Return the metrics of the services and of the store. `is_expected` is True if this host should have a store."""
    up = tuple(Sample({"role": role}, found is not None) for role, found in services.items())
    own = [Metric("pam_totp_service_up", "gauge", "1 if the running service answers.", up)] if up else []
    if is_expected:
        is_up = (Sample({}, store is not None),)
        own.append(Metric("pam_totp_store_up", "gauge", "1 if the store can be read.", is_up))
    if store is not None:
        own += store.metrics()
    return merged([text_of(own), *(found for found in services.values() if found is not None)])


@contextmanager
def replaced(path: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that replaces the file at `path`. Open the folder now, with the present privileges."""
    folder, name = os.path.split(os.path.abspath(path))
    if not name.endswith(SUFFIX):
        raise CommandError(
            f"{path}: the name must end in {SUFFIX}, because node_exporter reads no other file", WRONG_USAGE
        )
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def write(content: str) -> None:
        with acting_as_root():
            _replace(opened, name, content)

    try:
        yield write
    finally:
        os.close(opened)


def _replace(folder: int, name: str, content: str) -> None:
    temporary = f".{name}.{secrets.token_hex(4)}"  # without the suffix
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, MODE, dir_fd=folder), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), MODE)  # independent of the umask
            file.write(content)
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
