"""Commands on a real terminal, and the QR codes that the commands draw on that terminal."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pexpect

from tests.support.site import PATIENCE, TREE, Site, without_log_warning

QUESTION = "Scan this with your authenticator app, then type the code it shows: "


def read_picture(picture: Path) -> str:
    """Return the text that zbar reads from a picture."""
    options = (
        "--quiet",
        "--raw",
        "-Sdisable",
        "-Sqrcode.enable",
    )  # QR codes only: zbar reads parts of some QR codes as bar codes
    done = subprocess.run(["zbarimg", *options, picture], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def png(rows: list[list[int]], scale: int = 6) -> bytes:
    """Return a greyscale PNG picture of the QR code's rows of modules. 1 is a dark module, `scale` pixels wide."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    lines = [
        b"\0" + b"".join(bytes([0 if dark else 255] * scale) for dark in row) for row in rows for _ in range(scale)
    ]
    size = (scale * len(rows[0])).to_bytes(4, "big") + (scale * len(rows)).to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", size + b"\x08\0\0\0\0"), chunk(b"IDAT", zlib.compress(b"".join(lines))), chunk(b"IEND", b""))
    )


def scanned(rows: list[list[int]], folder: Path) -> str:
    """Return the text that zbar reads from the QR code's rows of modules."""
    picture = folder / "screen.png"
    picture.write_bytes(png(rows))
    return read_picture(picture)


def drawn(screen: str) -> list[list[int]]:
    """Return the modules of a QR code in half blocks, without the text beside it. A blank is a dark module."""
    lines = [line for line in screen.splitlines() if "█" in line]
    width = len(lines[0].strip("\r"))  # the first line is a border without text
    rows: list[list[int]] = []
    for line in lines:
        rows.append([int(c in " ▄") for c in line[:width]])
        rows.append([int(c in " ▀") for c in line[:width]])
    return rows


def drawn_in_ascii(screen: str) -> list[list[int]]:
    """Return the modules of a QR code in ASCII, with two characters for each: blanks in two colours, or # and blank."""
    plain = screen.replace("\x1b[48;5;231m  ", "##").replace("\x1b[48;5;16m  ", "  ").replace("\x1b[0m", "")
    lines = [line for line in plain.splitlines() if line.startswith("####")]
    return [[int(pair == "  ") for pair in re.findall(r"##|  ", line)] for line in lines]


def groups_of_key(screen: str) -> list[str]:
    """Return the groups of four characters of the key, which can continue on the next line of the screen."""
    return re.findall(r"\b[A-Z2-7]{4}\b", screen.partition("key: ")[2].partition("otp,")[0])


def on_terminal(site: Site, *words: str, size: tuple[int, int] = (24, 80), **variables: str) -> pexpect.spawn[str]:
    """Start `pam-totp` on a terminal of `size` lines and columns. `variables` change the environment."""
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TERM": "xterm-256color", **variables}
    arguments = ["-m", "pam_totp.cli", words[0], "--store", str(site.store), *words[1:]]
    return pexpect.spawn(
        sys.executable,
        arguments,
        cwd=str(TREE),
        env=environment,
        encoding="latin-1" if "8859" in environment["LC_ALL"] else "utf-8",
        dimensions=size,
        timeout=PATIENCE,
    )


def output_on_terminal(site: Site, *words: str, size: tuple[int, int] = (24, 80), **variables: str) -> str:
    """Return the output of a command without a prompt, on a terminal."""
    child = on_terminal(site, *words, size=size, **variables)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0, child.before
    return without_log_warning(str(child.before))
