"""Model versions with their files, lineage, approvals, aliases and traffic, and the rules for each."""

from registry.models.layers import Claim
from registry.models.lineage import Dependent, Lineage
from registry.models.policy import AutomaticApproval, GateData, GateDemand, ModelPolicy
from registry.models.signature import Signature, TensorSpec
from registry.models.state import ModelState
from registry.models.traffic import Arm, Condition, Holdout, LayerPart, LayerShare, Traffic, TrafficRule
from registry.models.versions import Approval, GateOutcome, ModelVersion, Override, SignatureMark

__all__ = [
    "Approval",
    "Arm",
    "AutomaticApproval",
    "Claim",
    "Condition",
    "Dependent",
    "GateData",
    "GateDemand",
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
