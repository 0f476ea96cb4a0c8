"""The whole platform on this machine: `up`, `down` and `status` as functions.

It starts an embedded Redis, a Ray head and Serve's applications, all bound to loopback, and can end every process
it started, whatever has been killed in between. It knows processes, ports and files; it must not know models.
"""

from ray_apps.local.errors import LocalError, NotRunning, PortTaken, StartFailed
from ray_apps.local.lifecycle import down, up
from ray_apps.local.running import Running
from ray_apps.local.settings import Settings
from ray_apps.local.status import Status, status

__all__ = [
    "LocalError",
    "NotRunning",
    "PortTaken",
    "Running",
    "Settings",
    "StartFailed",
    "Status",
    "down",
    "status",
    "up",
]
