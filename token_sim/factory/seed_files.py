"""Seed files of RFC 6030 (PSKC), like those of vendors: without encryption, or with AES under a transport key.

Rules:
- The file of encrypted seeds never contains the transport key.
"""

from __future__ import annotations

import io
import secrets
from typing import Any

from token_sim.extras import missing
from token_sim.factory.manufacture import MAKER, NewToken

URN = "urn:ietf:params:xml:ns:keyprov:pskc:"
AES = "http://www.w3.org/2001/04/xmlenc#aes128-cbc"  # RFC 6030 §6.1
TRANSPORT_KEY_BYTES = 16
KEY_NAME = "transport-key"


class MissingPskc(Exception):
    """The error if python-pskc is not installed."""


def transport_key() -> bytes:
    return secrets.token_bytes(TRANSPORT_KEY_BYTES)


def pskc_seeds(tokens: list[NewToken], key: bytes | None = None) -> bytes:
    """Return the PSKC document. Raise MissingPskc if python-pskc is not installed.

    Encrypt the seeds, and authenticate them with HMAC-SHA1, if `key` is given (RFC 6030 §6.1.1).
    """
    try:
        from pskc import PSKC  # python-pskc is optional, and slow to load
    except ImportError:
        raise MissingPskc(missing("python-pskc")) from None
    document: Any = PSKC()
    for token in tokens:
        slot = token.slot
        moving = {"counter": token.counter} if slot.kind == "hotp" else {"time_interval": slot.period, "time_offset": 0}
        suite = {} if slot.algorithm == "SHA1" else {"algorithm_suite": f"HMAC-{slot.algorithm}"}
        document.add_key(
            id=token.serial,
            manufacturer=MAKER,
            serial=token.serial,
            issuer="token_sim",
            algorithm=URN + slot.kind,
            response_encoding="DECIMAL",
            response_length=slot.digits,
            secret=slot.key,
            **moving,
            **suite,
        )
    if key is not None:
        document.encryption.setup_preshared_key(key=key, key_name=KEY_NAME, algorithm=AES)
    stream = io.BytesIO()
    document.write(stream)
    return stream.getvalue()
