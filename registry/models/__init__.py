"""Model versions with their files, lineage, approvals, aliases and traffic, and the rules for each."""

from registry.models.layers import Claim
from registry.models.lineage import Dependent, Lineage
from registry.models.signature import Signature, TensorSpec
from registry.models.state import ModelState
from registry.models.traffic import Arm, Holdout, LayerPart, LayerShare, Traffic
from registry.models.traffic_rules import Condition, TrafficRule
from registry.models.versions import Approval, GateOutcome, ModelPolicy, ModelVersion, Override, SignatureMark

__all__ = [
    "Approval",
    "Arm",
    "Claim",
    "Condition",
    "Dependent",
    "GateOutcome",
    "Holdout",
    "LayerPart",
    "LayerShare",
    "Lineage",
    "ModelPolicy",
    "ModelState",
    "ModelVersion",
    "Override",
    "Signature",
    "SignatureMark",
    "TensorSpec",
    "Traffic",
    "TrafficRule",
]
