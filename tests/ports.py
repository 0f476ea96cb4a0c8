"""Ports for servers that tests start: none that the kernel may give to a connection before they are listened on."""

from __future__ import annotations

import contextlib
import random
import socket

LOWEST, EPHEMERAL = 20_000, 32_768
"""Above those of Ray's workers, and the first that Linux gives to whoever asks for any."""


def free_port(*, below: int = EPHEMERAL) -> int:
    """One that nobody listens on now."""
    return free_ports(1, below=below)[0]


def free_ports(count: int, *, below: int = EPHEMERAL) -> list[int]:
    """Some that nobody listens on now."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", random.randrange(LOWEST, below)))
                found.append(probe.getsockname()[1])
    return found
