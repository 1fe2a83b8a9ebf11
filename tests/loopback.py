"""Which loopback addresses this machine has."""

from __future__ import annotations

import socket


def has_version_6() -> bool:
    """Whether `::1` can be listened on: containers often have no IPv6, whatever Python was built with."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
