"""Admission of requests at every door, before a byte of the body is read: token, workspace, role, limits.

Gateway, MLflow's protocol, the predictor and its gRPC proxy share it. It knows nothing of what a route does.
"""

from toque.ray_apps.admission.admission import (
    ANY_MODEL,
    Admission,
    Admitted,
    NotAdmitted,
    Rule,
    open_admission,
)
from toque.ray_apps.admission.guarded_route import OPEN, BodyLimit, GuardedRoute, admitted_of, allowed
from toque.ray_apps.admission.refusals import RefusalLog, flush_refusals, write_refusals_at_end
from toque.ray_apps.admission.request_limits import RequestLimits

__all__ = [
    "ANY_MODEL",
    "OPEN",
    "Admission",
    "Admitted",
    "BodyLimit",
    "GuardedRoute",
    "NotAdmitted",
    "RefusalLog",
    "RequestLimits",
    "Rule",
    "admitted_of",
    "allowed",
    "flush_refusals",
    "open_admission",
    "write_refusals_at_end",
]
