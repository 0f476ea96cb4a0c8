"""What a submission brings beside the platform's own packages: what it declares, and what the profile lets it bring."""

from toque.functions.runtime.environments.environment import Environment
from toque.functions.runtime.environments.policy import EnvironmentPolicy, EnvironmentRefused
from toque.functions.runtime.environments.process import in_force

__all__ = ["Environment", "EnvironmentPolicy", "EnvironmentRefused", "in_force"]
