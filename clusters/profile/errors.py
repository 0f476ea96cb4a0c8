"""Error of the deployment profile, and of a process that lacks one of its settings."""


class ProfileError(ValueError):
    """Raised for a profile that cannot be read, and for a process that lacks a setting, by name."""
