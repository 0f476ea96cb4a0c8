"""Model versions, runs, lineage and access tokens, kept in nothing but an object store.

It knows objects, journals and tables. It must not know features, functions, Ray or HTTP.
"""

from registry import renamed as _renamed  # noqa: F401  # old module paths stay importable for one release
from registry.access.tokens import Access, Principal, Role, TokenRecord
from registry.errors import (
    AlreadyExists,
    Damaged,
    Forbidden,
    GivenUp,
    InvalidInput,
    NotFound,
    Refused,
    RegistryError,
    Stale,
    Unavailable,
)
from registry.journal import Conflict, Entry, Fold, Journal
from registry.models.layers import Claim
from registry.models.lineage import Dependent, Lineage
from registry.models.signature import Signature, TensorSpec
from registry.models.state import ModelState
from registry.models.traffic import Arm, Holdout, LayerPart, LayerShare, Traffic
from registry.models.traffic_rules import Condition, TrafficRule
from registry.models.versions import (
    Approval,
    GateOutcome,
    ModelPolicy,
    ModelVersion,
    Override,
    SignatureMark,
)
from registry.registry import Registry
from registry.runs.experiments import Experiment
from registry.runs.record import Point, RunRecord, Segment
from registry.runs.remote_run import RunLog
from registry.runs.run import Run
from registry.store import Blob, ObjectStore, Table, TableSnapshot, open_store
from registry.times import Clock, as_utc, utc_now

__all__ = [
    "Access",
    "AlreadyExists",
    "Approval",
    "Arm",
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
    "GateOutcome",
    "GivenUp",
    "Holdout",
    "InvalidInput",
    "Journal",
    "LayerPart",
    "LayerShare",
    "Lineage",
    "ModelPolicy",
    "ModelState",
    "ModelVersion",
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
    "as_utc",
    "open_store",
    "utc_now",
]
