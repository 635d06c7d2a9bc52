from __future__ import annotations

import socket
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrl.runtime.tools.web.address import AddressGate, AddressRefused, is_public

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "193.0.2.1",
    "2606:4700:4700::1111",
    "2001:4860:4860::8888",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]
NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.254",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::127.0.0.1",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:0:7f00:1::",
    "2001:0:808:808:0:0:80ff:fffe",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::1",
    "2002:a00:1::",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public(text):
    assert is_public(ip_address(text))


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_not_public(text):
    assert not is_public(ip_address(text))
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    for port in (80, 443):
        with pytest.raises(AddressRefused, match=r"^not a public address$"):
            AddressGate(ports={80, 443})((family, socket.SOCK_STREAM, 6, "", (text, port)))


@given(st.integers(0, 2**32 - 1))
def test_wrapping_an_address_never_makes_it_public(number):
    address = ip_address(number)
    mapped = ip_address(0xFFFF << 32 | number)
    nat64 = ip_address(0x64FF9B << 96 | number)
    six_to_four = ip_address(0x2002 << 112 | number << 80)
    assert is_public(mapped) == is_public(nat64) == is_public(address)
    assert is_public(six_to_four) <= is_public(address)
    assert not is_public(ip_address(0x64FF9B0001 << 88 | number))
    assert not is_public(ip_address(0x20010000 << 96 | number))


def test_gate_lets_public_addresses_through():
    with AddressGate(ports={443})((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 443))) as opened:
        assert opened.family == socket.AF_INET


@pytest.mark.parametrize(
    "info",
    [
        (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", ("/run/docker.sock",)),
        (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", "/run/docker.sock"),
        (socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("8.8.8.8", 443)),
        (socket.AF_INET, socket.SOCK_RAW, 6, "", ("8.8.8.8", 443)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 22)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("localhost", 443)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("2130706433", 443)),
    ],
)
def test_gate_refuses_what_is_no_public_internet_address(info):
    with pytest.raises(AddressRefused):
        AddressGate(ports={443})(info)
