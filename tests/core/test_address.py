"""Tests of addresses: the spellings of one address compare equal, and other text is refused."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from pam_totp.core.address import host_and_port, is_remote, networks, parse, parse_hop


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("::1", "0:0:0:0:0:0:0:1"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::FFFF:c000:207", "192.0.2.7"),
        ("fe80::1%eth0", "FE80:0::1%eth0"),
    ],
)
def test_spellings_of_one_address_are_equal(one: str, other: str) -> None:
    assert parse(one) == parse(other) is not None


@pytest.mark.parametrize(("one", "other"), [("fe80::1%eth0", "fe80::1%eth1"), ("::1", "127.0.0.1")])
def test_two_hosts_are_not_equal(one: str, other: str) -> None:
    assert parse(one) != parse(other)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "192.0.2",
        "192.0.2.07",
        " 192.0.2.7",
        "192.0.2.7\n",
        "3221225991",
        "[::1]",
        "::1/64",
        "192.0.2.7:1",
    ],
)
def test_other_text_is_no_address(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        (" 192.0.2.7 ", "192.0.2.7"),
        ("192.0.2.7:4711", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[::ffff:192.0.2.7]:65535", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_a_hop_of_a_proxy_header_is_an_address_with_or_without_a_port(hop: str, address: str) -> None:
    assert parse_hop(hop) == ip_address(address)


@pytest.mark.parametrize(
    "hop",
    [
        *(
            "",
            " ",
            '"',
            '""',
            ":",
            ":1",
            "unknown",
            "_hidden",
            "unix:",
            "192.0.2.7:",
            "192.0.2.7:x",
            "192.0.2.7:123456",
        ),
        *("[2001:db8::1", "2001:db8::1]", "[2001:db8::1]1", "[2001:db8::1]:", "[2001:db8::1]:x", "[]", "192.0.2.7:²"),
    ],
)
def test_a_hop_without_an_address_is_read_as_none(hop: str) -> None:
    assert parse_hop(hop) is None


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        *((text, True) for text in ("192.0.2.7", "10.0.0.1", "2001:db8::1", "fd00::1", "::ffff:192.0.2.7")),
        *((text, False) for text in ("127.0.0.1", "127.255.255.255", "::1", "::ffff:127.0.0.1")),
        *((text, False) for text in ("169.254.0.1", "fe80::1", "fe80::1%eth0", "2001:db8::1%eth0", "::")),
    ],
)
def test_an_address_is_remote_if_it_identifies_another_host(text: str, remote: bool) -> None:
    address = parse(text)
    assert address is not None
    assert is_remote(address) is remote


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.77", ("192.0.2.77/32", "192.0.2.64/28", "192.0.2.0/24")),
        ("::ffff:192.0.2.77", ("192.0.2.77/32", "192.0.2.64/28", "192.0.2.0/24")),
        ("2001:db8:1:2345:6::7", ("2001:db8:1:2345::/64", "2001:db8:1:2300::/56", "2001:db8:1::/48")),
        ("fe80::1%eth0", ("fe80::/64", "fe80::/56", "fe80::/48")),
        ("::1", ("::/64", "::/56", "::/48")),
    ],
)
def test_an_address_is_in_networks_of_three_sizes(text: str, expected: tuple[str, ...]) -> None:
    address = parse(text)
    assert address is not None
    assert networks(address) == expected


def test_an_ipv4_host_behind_a_translator_is_in_its_ipv4_networks() -> None:
    """RFC 6052 2.1: the well-known prefix of NAT64."""
    translated = parse("64:ff9b::192.0.2.7")
    assert translated is not None
    assert networks(translated) == networks(ip_address("192.0.2.7"))
    other = parse("64:ff9b:1::192.0.2.7")
    assert other is not None
    assert networks(other)[0] == "64:ff9b:1::/64"


def test_an_address_of_a_server_is_a_host_and_a_port() -> None:
    assert host_and_port("otp1.example.org:8443") == ("otp1.example.org", 8443)
    assert host_and_port("192.0.2.7:1") == ("192.0.2.7", 1)
    assert host_and_port("[2001:db8::1]:65535") == ("2001:db8::1", 65535)
    bad = (
        "",
        "host",
        "host:",
        ":1",
        "::1:1",
        "[host]:1",
        "[]:1",
        "a:0",
        "a:65536",
        "a:123456",
        "a:١",
        "a b:1",
        "a_b:1",
    )
    assert [text for text in (*bad, "a" * 254 + ":1") if host_and_port(text) is not None] == []
