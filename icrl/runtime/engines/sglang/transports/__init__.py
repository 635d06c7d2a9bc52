"""Ways for weights to reach a server: through files, through shared memory, through a process group.

All of them need torch; nothing outside imports this package before an update is sent.
"""

from __future__ import annotations

from icrl.runtime.engines.sglang.transports.disk import DiskTransport
from icrl.runtime.engines.sglang.transports.group import GroupTransport
from icrl.runtime.engines.sglang.transports.link import Link, Transport
from icrl.runtime.engines.sglang.transports.tensor import TensorTransport

__all__ = ["DiskTransport", "GroupTransport", "Link", "TensorTransport", "Transport", "open_transport"]


def open_transport(link: Link) -> Transport:
    """Make the transport that the link names."""
    kinds: dict[str, type[Transport]] = {
        "disk": DiskTransport,
        "tensor": TensorTransport,
        "distributed": GroupTransport,
    }
    return kinds[link.transport](link)
