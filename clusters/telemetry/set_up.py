"""Sets up what is seen of this process, once, where it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toque.clusters.profile import apply_profile
from toque.clusters.telemetry.logs import AccessLog, LogSettings, Mask, set_up_logs
from toque.clusters.telemetry.tracing import TraceSettings, set_up_tracing

__all__ = ["set_up"]

_roles: list[str] = []


def set_up(role: str, environment: Mapping[str, str], *, masks: Sequence[Mask] = ()) -> None:
    """Set up this process's log lines and traces, as its profile and environment say; later calls change nothing.

    role: what the process is, as in "gateway" or "predictor/late". masks: see `toque.clusters.telemetry.logs.redact`.
    Raises: ProfileError or ValueError, naming the variable that is wrong.
    """
    if _roles:
        return
    _roles.append(role)
    settings = dict(environment)
    apply_profile(settings)
    lines = LogSettings.of(settings)
    set_up_logs(role, lines, masks)
    access = AccessLog(lines.access) if lines.access > 0 else None
    cluster = settings.get("TOQUE_CLUSTER_NAME") or "toque"
    set_up_tracing(role, TraceSettings.of(settings), access=access, cluster=cluster)
