"""Starts and stops the whole platform on this machine: `up`, `down` and `status` as functions.

`up` starts an embedded Redis, a Ray head and Serve's applications, all bound to loopback; `down` ends every process that
was started, whatever has been killed in between. The package knows processes, ports and files; it must not know models.
"""

import warnings
from typing import TYPE_CHECKING, Any

from ray_apps.local.errors import LocalError, NotRunning, PortTaken, StartFailed
from ray_apps.local.lifecycle import down, up
from ray_apps.local.settings import Settings
from ray_apps.local.state_file import RunningPlatform
from ray_apps.local.status import Status, status

__all__ = [
    "LocalError",
    "NotRunning",
    "PortTaken",
    "RunningPlatform",
    "Settings",
    "StartFailed",
    "Status",
    "down",
    "status",
    "up",
]

if not TYPE_CHECKING:  # a type checker refuses the old name

    def __getattr__(name: str) -> Any:
        if name != "Running":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        warnings.warn(
            "Running is now RunningPlatform; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return RunningPlatform
