"""Free ports for servers that tests start, outside the range that the kernel gives to connections."""

from __future__ import annotations

import contextlib
import random
import socket

LOWEST, EPHEMERAL = 20_000, 32_768
"""Above the ports of Ray's workers, and below the first ephemeral port of Linux."""


def free_port(*, below: int = EPHEMERAL) -> int:
    """Find one port that no process listens on now."""
    return free_ports(1, below=below)[0]


def free_ports(count: int, *, below: int = EPHEMERAL) -> list[int]:
    """Find several ports that no process listens on now."""
    found: list[int] = []
    with contextlib.ExitStack() as probes:
        while len(found) < count:
            probe = probes.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", random.randrange(LOWEST, below)))
                found.append(probe.getsockname()[1])
    return found
