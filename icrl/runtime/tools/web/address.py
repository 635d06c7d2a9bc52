"""The gate at the socket: which addresses may be dialled."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

__all__ = ["AddressGate", "AddressRefused", "IPAddress", "is_public"]

IPAddress = IPv4Address | IPv6Address

# Special purposes that some versions of `ipaddress` take for global: protocol assignments, and relays of 6to4.
_SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_DOCUMENTATION = IPv6Network("3fff::/20")


class AddressRefused(OSError):
    """An address may not be dialled; an `OSError`, so that a connector tries a host's next address."""


def is_public(address: IPAddress) -> bool:
    """Whether an address belongs to the public internet, as far as an address can tell.

    IPv6 addresses that carry an IPv4 address (mapped, 6to4 and NAT64 of RFC 6052) are judged by both. Of IPv6, only
    2000::/3 is in use for the public; so local-use NAT64 (64:ff9b:1::/48), Teredo, site-local and IPv4-compatible
    addresses are refused, as is everything in the registries of special purpose.

    Example:
        >>> [is_public(ip_address(text)) for text in ("8.8.8.8", "::ffff:127.0.0.1", "64:ff9b::a00:1", "100.64.0.1")]
        [True, False, False, False]
    """
    if isinstance(address, IPv4Address):
        special = address.is_multicast or address.is_reserved or any(address in network for network in _SPECIAL)
        return address.is_global and not special
    if address.scope_id is not None:
        return False
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    if address.sixtofour is not None and not is_public(address.sixtofour):
        return False
    if address.teredo is not None or address in _DOCUMENTATION or address not in _GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast


class AddressGate:
    """Makes sockets for an `aiohttp.TCPConnector`, for allowed addresses only.

    It is the last to see the address before it is dialled: whatever a name resolved to, when and how often, and
    whichever redirect led there.

    Args:
        ports: Ports that may be dialled.
        allow_address: Decides on an address. Anything but `is_public` opens the network this machine is in.

    Example:
        >>> gate = AddressGate(ports={443})
        >>> gate((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("169.254.169.254", 443)))
        Traceback (most recent call last):
        icrl.runtime.tools.web.address.AddressRefused: not a public address
    """

    def __init__(self, *, ports: Collection[int], allow_address: Callable[[IPAddress], bool] = is_public) -> None:
        self._ports = frozenset(ports)
        self._allow_address = allow_address

    def __call__(self, info: tuple[int, int, int, str, tuple[Any, ...]]) -> socket.socket:
        """Make a socket for one entry of what `getaddrinfo` returns.

        Raises:
            AddressRefused: The address or its port is not allowed. The message does not show what a name stands for.
        """
        family, kind, protocol, _, address = info
        if family not in (socket.AF_INET, socket.AF_INET6) or kind != socket.SOCK_STREAM:
            raise AddressRefused("not an internet address")
        if not self.allows(str(address[0]), int(address[1])):
            raise AddressRefused("not a public address")
        return socket.socket(family, kind, protocol)

    def allows(self, address: str, port: int) -> bool:
        """Whether an address, as text, may be dialled at a port."""
        try:
            return port in self._ports and self._allow_address(ip_address(address))
        except ValueError:
            return False
