"""Starts and stops the whole platform on this machine: `up`, `down` and `status` as functions.

`up` starts an embedded Redis, a Ray head and Serve's applications, all bound to loopback; `down` ends every process that
was started, whatever has been killed in between. The package knows processes, ports and files; it must not know models.
"""

from toque.ray_apps.local.errors import LocalError, NotRunning, PortTaken, StartFailed
from toque.ray_apps.local.lifecycle import down, up
from toque.ray_apps.local.settings import Settings
from toque.ray_apps.local.state_file import RunningPlatform
from toque.ray_apps.local.status import Status, status

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
