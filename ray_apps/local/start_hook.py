"""What `ray start` calls before it starts anything (`RAY_START_HOOK`). Light: it runs in Ray's own process."""

from __future__ import annotations

from typing import Any


def without_client_server(parameters: Any, _head: bool) -> None:  # noqa: FBT001  # Ray calls it so
    """Leave out the Ray Client server, which `ray start` gives no flag to leave out: nobody connects to it."""
    parameters.ray_client_server_port = None
