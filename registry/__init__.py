"""Model versions, runs, lineage and access tokens, kept in nothing but an object store.

It knows objects, journals and tables. It must not know features, functions, Ray or HTTP. `Table` is imported when it is first asked
for, as it brings Arrow and Delta.
"""

from typing import TYPE_CHECKING

from toque.registry.access import (
    DEFAULT_WORKSPACE,
    EVERY_WORKSPACE,
    SERVICE_TIERS,
    Access,
    Grant,
    Limits,
    Principal,
    Role,
    ServiceTier,
    TokenRecord,
    Workspace,
    split_workspace_url,
    workspace_store,
    workspace_url,
)
from toque.registry.errors import (
    AlreadyExists,
    Damaged,
    Forbidden,
    GivenUp,
    InvalidInput,
    NewerFormat,
    NotFound,
    Refused,
    RegistryError,
    Stale,
    Unavailable,
)
from toque.registry.journal import Conflict, Entry, Fold, Journal
from toque.registry.models import (
    Approval,
    Arm,
    AutomaticApproval,
    Claim,
    Condition,
    Dependent,
    GateData,
    GateDemand,
    GateOutcome,
    Holdout,
    LayerPart,
    LayerShare,
    Lineage,
    ModelPolicy,
    ModelState,
    ModelVersion,
    Override,
    Signature,
    SignatureMark,
    TensorSpec,
    Traffic,
    TrafficRule,
)
from toque.registry.registry import Registry
from toque.registry.runs import Experiment, Point, Run, RunLog, RunRecord, Segment
from toque.registry.store import Blob, ObjectStore, TableSnapshot, open_store
from toque.registry.times import Clock, as_utc, utc_now

if TYPE_CHECKING:
    from toque.registry.store import Table

__all__ = [
    "DEFAULT_WORKSPACE",
    "EVERY_WORKSPACE",
    "SERVICE_TIERS",
    "Access",
    "AlreadyExists",
    "Approval",
    "Arm",
    "AutomaticApproval",
    "Blob",
    "Claim",
    "Clock",
    "Condition",
    "Conflict",
    "Damaged",
    "Dependent",
    "Entry",
    "Experiment",
    "Fold",
    "Forbidden",
    "GateData",
    "GateDemand",
    "GateOutcome",
    "GivenUp",
    "Grant",
    "Holdout",
    "InvalidInput",
    "Journal",
    "LayerPart",
    "LayerShare",
    "Limits",
    "Lineage",
    "ModelPolicy",
    "ModelState",
    "ModelVersion",
    "NewerFormat",
    "NotFound",
    "ObjectStore",
    "Override",
    "Point",
    "Principal",
    "Refused",
    "Registry",
    "RegistryError",
    "Role",
    "Run",
    "RunLog",
    "RunRecord",
    "Segment",
    "ServiceTier",
    "Signature",
    "SignatureMark",
    "Stale",
    "Table",
    "TableSnapshot",
    "TensorSpec",
    "TokenRecord",
    "Traffic",
    "TrafficRule",
    "Unavailable",
    "Workspace",
    "as_utc",
    "open_store",
    "split_workspace_url",
    "utc_now",
    "workspace_store",
    "workspace_url",
]


def __getattr__(name: str) -> object:
    """Import `Table` when it is first asked for."""
    if name != "Table":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from toque.registry.store.tables.table import Table  # late: it brings Arrow and Delta

    globals()[name] = Table
    return Table


if __name__ != "toque.registry":  # under a second name, each class would be there twice
    raise ImportError(f"{__name__} is imported as toque.registry")
