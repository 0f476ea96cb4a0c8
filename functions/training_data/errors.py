"""Errors of sharded sets of samples."""

from toque.registry import RegistryError


class SampleSetError(RegistryError, ValueError):
    """A sample set that cannot be written or read as asked."""
