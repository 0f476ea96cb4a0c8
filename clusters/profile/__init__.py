"""Reads the deployment profile: one YAML file that says what every process of a cluster must know.

The file is named by `TOQUE_PROFILE`. Each field stands for one environment variable, which the rest of the platform
reads; a variable that is set takes precedence over the file. `apply_profile` puts the file's values under the
environment of a process, and again when the process starts anew, so that a changed file counts without a new node.
"""

from toque.clusters.profile.errors import ProfileError
from toque.clusters.profile.sections import Placement, Ports, Profile, Variable
from toque.clusters.profile.settings import (
    Setting,
    apply_profile,
    effective_profile,
    missing_settings,
    profile_of,
    read_profile,
    require_settings,
    settings_of,
)

__all__ = [
    "Placement",
    "Ports",
    "Profile",
    "ProfileError",
    "Setting",
    "Variable",
    "apply_profile",
    "effective_profile",
    "missing_settings",
    "profile_of",
    "read_profile",
    "require_settings",
    "settings_of",
]
