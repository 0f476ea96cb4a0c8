"""Loading of a registered version, with the types that its model's policy trusts."""

from __future__ import annotations

import tempfile

from toque.functions.model_formats.load import ScoringModel, load
from toque.registry import ModelVersion, Registry


def load_version(registry: Registry, version: ModelVersion) -> ScoringModel:
    """Download a version, verify and load it. Raises: ArtifactRefused; what the registry raises for damaged files."""
    trusted = registry.get_model(version.model).policy.trusted_types
    with tempfile.TemporaryDirectory(prefix="toque-model-") as folder:
        registry.download(version.model, version.version, to=folder)
        return load(folder, signature=version.signature, trusted_types=trusted)
