"""Applied definitions: recorded in a journal, compared before a change, and read back without their code."""

from toque.featurestore.applied.definitions import Definitions
from toque.featurestore.applied.plan import Change, Plan

__all__ = ["Change", "Definitions", "Plan"]
