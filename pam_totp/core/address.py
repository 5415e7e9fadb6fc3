"""IP addresses as values.

Rules:
- Callers compare and count addresses as values of this module, because two texts can represent the same address.
- The IPv4-mapped IPv6 address `::ffff:192.0.2.7` is parsed as the IPv4 address `192.0.2.7`.
- A zone id is part of the address: `fe80::1%eth0` and `fe80::1%eth1` are different addresses.
- `parse` accepts an address only. `parse` returns None for a host name, leading zeros or white space, for example.

`ipaddress` is imported at the first call, because its import takes milliseconds and most logins use no address.
"""

from __future__ import annotations

from pam_totp.core.lean import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    Address = IPv4Address | IPv6Address

# The prefix lengths of networks that can belong to one person, from the smallest network to the largest, by IP version.
# For IPv6: one link, a home, a site (RFC 6177). For IPv4: one host, and two sizes of rented networks.
PREFIXES = {4: (32, 28, 24), 6: (64, 56, 48)}
_MAX_HOST = 253  # characters of a DNS name (RFC 1035 2.3.4, as text)
_NAT64 = 0x64FF9B << 96  # 64:ff9b::/96


def parse(text: str) -> Address | None:
    """Return the address in `text`, or None."""
    import ipaddress

    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped if address.version == 6 else None) or address


def parse_hop(text: str) -> Address | None:
    """Return the address of a proxy header, such as `192.0.2.7:4711` or `[2001:db8::1]:4711` (RFC 7239 6), or None."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        return parse(host) if bracket and (not port or _is_port(port)) else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return parse(host) if _is_port(f":{port}") else None
    return parse(text)


def host_and_port(text: str) -> tuple[str, int] | None:
    """Return the parts of HOST:PORT, or None. HOST is a DNS name, an IPv4 address, or an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        is_host = ":" in host and not host.strip("0123456789abcdefABCDEF:.")
    else:
        is_host = host != "" and not host.strip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
    if not is_host or len(host) > _MAX_HOST or not _is_port(f":{port}") or not 0 < int(port) < 65536:
        return None
    return host, int(port)


def _is_port(text: str) -> bool:
    """Return True if `text` is a colon and a port (RFC 7239 6.2: one to five digits)."""
    return text[0] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


def is_remote(address: Address) -> bool:
    """Return True if `address` identifies the same remote host on every interface.

    Return False for a loopback, link-local or unspecified address, and for an address with a zone id.
    """
    return not (address.is_loopback or address.is_link_local or address.is_unspecified or "%" in str(address))


def networks(address: Address) -> tuple[str, ...]:
    """Return the networks that contain `address`, with the prefixes of PREFIXES, from the smallest to the largest.

    Return the networks of the IPv4 address for an IPv4 host behind NAT64 (the prefix of RFC 6052 2.1).
    """
    import ipaddress

    if address.version == 6 and int(address) >> 32 == _NAT64 >> 32:
        address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    network = ipaddress.IPv4Network if address.version == 4 else ipaddress.IPv6Network
    # int() drops the zone id, which a network cannot have.
    return tuple(str(network((int(address), prefix), strict=False)) for prefix in PREFIXES[address.version])
