"""The recipe book and its store: versions, runs, lineage and access on nothing but an object store.

It knows objects, journals and tables. It must not know features, functions, Ray or HTTP.
"""

from registry.access import Access, Principal, Role, TokenRecord
from registry.entry import Entry
from registry.errors import (
    AlreadyExists,
    Conflict,
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
from registry.experiments import Experiment
from registry.fold import Fold
from registry.journal import Journal
from registry.layers import Claim
from registry.lineage import Dependent, Lineage
from registry.matching import Condition, TrafficRule
from registry.model_state import ModelState
from registry.registry import Registry
from registry.run import Run
from registry.run_log import RunLog
from registry.run_record import Point, RunRecord, Segment
from registry.signature import Signature, TensorSpec
from registry.store import ObjectStore, open_store
from registry.tables import Table, TableSnapshot
from registry.times import Clock, as_utc, utc_now
from registry.traffic import Arm, Holdout, LayerPart, LayerShare, Traffic
from registry.versions import Approval, Blob, GateOutcome, ModelPolicy, ModelVersion, Override, SignatureMark

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
