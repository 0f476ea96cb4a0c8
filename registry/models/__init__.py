"""Model versions with their files, lineage, approvals, aliases and traffic, and the rules for each."""

from toque.registry.models.layers import Claim
from toque.registry.models.policy import AutomaticApproval, GateData, GateDemand, ModelPolicy
from toque.registry.models.state import ModelState
from toque.registry.models.traffic import Arm, Condition, Holdout, LayerPart, LayerShare, Traffic, TrafficRule
from toque.registry.models.versions import (
    Approval,
    Dependent,
    GateOutcome,
    Lineage,
    ModelVersion,
    Override,
    Signature,
    SignatureMark,
    TensorSpec,
)

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
