"""Makes a version of model files that were logged to the platform: those of a run, of a logged model, of another version."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from toque.functions.model_formats.errors import ArtifactRefused
from toque.functions.model_formats.flavors import SKOPS_FILE, untrusted_types
from toque.functions.model_formats.mlflow_files import name_as_served
from toque.ray_apps.mlflow.files import ArtifactLocation, locate_source, named_code
from toque.ray_apps.mlflow.signature import signature_in
from toque.registry import InvalidInput, Lineage, ModelVersion, NotFound, Refused, Registry, RunRecord


class NeedsAcceptance(Refused):
    """Files that can execute code were not named by the one who registers them."""


def register_source(
    registry: Registry,
    model: str,
    source: str,
    *,
    run_id: str = "",
    tags: Mapping[str, str],
    own_tags: Mapping[str, str] = {},
    description: str = "",
) -> ModelVersion:
    """Create a version of the files at `source`, an address such as `runs:/ID/PATH`, with the metrics of their run.

    tags: given by the caller, `toque.allow_code` among them; own_tags: of the platform, empty ones left out.
    Raises: NotFound; InvalidInput; NeedsAcceptance for code that the tags do not name; Refused.
    """
    found = locate_source(registry, source)
    with tempfile.TemporaryDirectory(prefix="toque-version-") as folder:
        lineage, metrics = _origin(registry, found, run_id)
        found.fetch_all(registry, Path(folder))
        try:
            name_as_served(Path(folder))
            require_trusted(registry, model, Path(folder))
            signature = signature_in(Path(folder))
        except ArtifactRefused as refused:
            raise InvalidInput(str(refused)) from refused
        try:
            return registry.create_version(
                model,
                folder,
                signature=signature,
                metrics=metrics,
                tags={**tags, **{name: value for name, value in own_tags.items() if value}},
                lineage=lineage,
                description=description,
                allow_code=named_code(tags),
            )
        except Refused as refused:
            raise NeedsAcceptance(str(refused)) from refused


def _origin(registry: Registry, found: ArtifactLocation, run_id: str) -> tuple[Lineage, dict[str, float]]:
    """Find the lineage of a version of these files, and its metrics: its own over those of the run that made it."""
    owner = found.owner
    if not isinstance(owner, RunRecord):
        return owner.lineage.model_copy(update={"parent": None}), dict(owner.metrics)
    trained = registry.get_record(run_id or str(owner.facts.get("parent") or owner.id))
    lineage = Lineage(run=trained.id, datasets=list(trained.datasets), code=trained.facts.get("code"))
    return lineage, {**trained.metrics, **owner.metrics}


def require_trusted(registry: Registry, model: str, folder: Path) -> None:
    """Check that a file of skops names only types that are safe or that the model's policy trusts. Raises: InvalidInput."""
    path = folder / SKOPS_FILE
    if not path.is_file():
        return
    try:
        trusted = registry.get_model(model).policy.trusted_types
    except NotFound:
        trusted = frozenset()
    with suppress(ImportError):  # without skops nobody serves it here either
        unknown = untrusted_types(path, trusted)
        if unknown:
            raise InvalidInput(
                f"{SKOPS_FILE} holds {unknown}, which skops does not know to be safe, so it could not be served: if you trust "
                f"whoever trained it, have an admin name them in the model's policy, ModelPolicy(trusted_types={unknown}), and "
                "register it again; or let a class in the project's SCORERS load it"
            )
