"""Hook that `ray start` calls before it starts anything (`RAY_START_HOOK`); imports little, as it runs in Ray's process."""

from __future__ import annotations

from typing import Any


def without_client_server(parameters: Any, _head: bool) -> None:  # noqa: FBT001  # Ray calls it so
    """Disable the Ray Client server, which is not used and for which `ray start` has no flag."""
    parameters.ray_client_server_port = None
