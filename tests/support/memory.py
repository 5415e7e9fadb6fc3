"""A search for secrets in the memory of a process: in all mappings that the process can write."""

from __future__ import annotations

from collections.abc import Iterable

PIECE = 8  # bytes: a partly overwritten secret is found by its other pieces


def pieces(secret: bytes) -> list[bytes]:
    """Return the consecutive pieces of `secret`, of PIECE bytes each, without a shorter rest."""
    return [secret[at : at + PIECE] for at in range(0, len(secret) - PIECE + 1, PIECE)]


def copies(pid: int, secrets: Iterable[bytes]) -> list[bytes]:
    """Return the pieces of `secrets` in the memory of process `pid`. The search requires permission for ptrace(2)."""
    sought = [piece for secret in secrets for piece in pieces(secret)]
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, mode, *_ = line.split()
            if not mode.startswith("rw"):
                continue
            start, end = (int(address, 16) for address in place.split("-"))
            memory.seek(start)
            content = memory.read(end - start)
            found += [piece for piece in sought if piece in content]
    return found
