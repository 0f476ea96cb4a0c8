"""The HTTP API: functions, invocations, models, feedback, features, schedules, health and metrics.

The gateway validates, authorises and passes on; every decision is made in the packages that it calls. `toque.ray_apps.gateway.app.build_app`
makes the application without Ray; `application` deploys it.
"""

from toque.ray_apps.gateway.deployment import application

__all__ = ["application"]
