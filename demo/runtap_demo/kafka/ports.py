"""Free ports of 127.0.0.1."""

from __future__ import annotations

import random
import socket
from collections.abc import Collection

# Below the ports that systems give to outgoing connections (Linux: from 32768), so that nothing takes one between here
# and the server's start.
_CHOICE = range(20_000, 32_000)


def free_ports(count: int, besides: Collection[int] = ()) -> list[int]:
    """Ports on which nobody listens, and none of `besides`."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.SystemRandom().choice(_CHOICE)
        if port not in chosen and port not in besides and is_free(port):
            chosen.append(port)
    return chosen


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # Else a port on which only closed connections linger would count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
