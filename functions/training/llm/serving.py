"""The function that takes a fine-tune to the door of language models, as an adapter of a version there or as whole weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from toque.functions.generative import (
    ADAPTER,
    ADAPTER_FOLDER,
    CHAT_TEMPLATE,
    PROMPT,
    SETTINGS,
    WEIGHTS,
    WEIGHTS_FOLDER,
    is_generative,
    read_prompt,
    read_settings,
    register_generative,
    weights_in,
)
from toque.functions.generative.version_files import CONFIG as ADAPTER_CONFIG
from toque.functions.runtime.context import context
from toque.functions.runtime.declaration import Resources
from toque.functions.runtime.function import function
from toque.functions.training.errors import TrainingDataError
from toque.registry import Lineage, ModelVersion, Registry

__all__ = ["serve_fine_tune"]

_WEIGHTS: Final = ".safetensors"


@function(http=True, resources=Resources(num_cpus=1), timeout_s=3_600)
def serve_fine_tune(
    model: Annotated[str, Field(description="Name of the language model that gets the next version.")],
    base: Annotated[
        int,
        Field(
            ge=1,
            le=1_000_000_000,
            description=(
                "Version of `model` with the weights that the fine-tune began with, as GGUF or as a folder."
            ),
        ),
    ],
    tuned: Annotated[str, Field(description="Name of the model that `fine_tune` registered.")],
    tuned_version: Annotated[
        int, Field(ge=1, le=1_000_000_000, description="Version of `tuned` that is taken.")
    ],
    form: Annotated[
        Literal["adapter", "weights"],
        Field(
            description=(
                '"adapter" keeps the weights of `base`, which engines share; "weights" has the whole model, '
                "also one without adapters."
            )
        ),
    ] = "adapter",
    description: Annotated[
        str,
        Field(description="What the version is, for those who read; it names the fine-tune unless given."),
    ] = "",
) -> ModelVersion:
    """Register a fine-tune as the next version of a language model, with all else of its version `base`.

    Where `base` has GGUF, what was learnt is converted to it. It takes no traffic by that. The lineage names the
    fine-tune's run and rows.
    Raises: NotFound; TrainingDataError if they do not fit; GenerativeError for an adapter that the version's engine has no room for.
    """
    registry = context().registry()
    kept = registry.get_version(model, base)
    learnt = registry.get_version(tuned, tuned_version)
    kind = weights_in(kept.files)
    if not is_generative(kept) or kind is None:
        raise TrainingDataError(f"base={base}: {model}@{base} is no version of a language model")
    if form == "adapter" and ADAPTER_CONFIG not in learnt.files:
        raise TrainingDataError(
            f"tuned={tuned}@{tuned_version} has no adapter: it learnt all weights, so say form='weights'"
        )
    if form == "weights" and kept.files.keys() & {ADAPTER, ADAPTER_CONFIG}:
        raise TrainingDataError(
            f"base={base}: it has an adapter, which fits its own weights; name one without"
        )
    lineage = Lineage(
        run=learnt.lineage.run, datasets=learnt.lineage.datasets, code=learnt.lineage.code, parent=base
    )
    with tempfile.TemporaryDirectory(prefix="toque-fine-tune-") as place:
        folder = registry.download(tuned, tuned_version, to=Path(place) / "tuned")
        given: dict[str, Any] = {"keep": base}
        if kind == WEIGHTS:
            given[form] = _as_gguf(registry, kept, folder, form)
        elif form == "adapter":
            _check_same_weights(registry, kept, learnt)
            given["adapter"] = folder / ADAPTER_FOLDER
        else:
            given = {"weights": folder, **_kept_beside_weights(registry, kept, Path(place) / "base")}
        return register_generative(
            registry, model, **given, description=description or f"fine-tune {tuned}@{tuned_version}",
            tags={"fine_tune": f"{tuned}@{tuned_version}"},
            lineage=lineage,
        )  # fmt: skip


def _as_gguf(registry: Registry, kept: ModelVersion, folder: Path, form: str) -> Path:
    """Convert what was learnt, in `folder`, for the weights of a version."""
    from toque.functions.training.llm.gguf_files import write_adapter, write_weights  # late: torch

    weights = registry.download(kept.model, kept.version, to=folder / "base", paths=[WEIGHTS]) / WEIGHTS
    made = folder / "made.gguf"
    (write_adapter if form == "adapter" else write_weights)(folder, weights, made)
    return made


def _check_same_weights(registry: Registry, kept: ModelVersion, learnt: ModelVersion) -> None:
    """Refuse an adapter for a folder of weights that it did not begin with, by the digests of their files."""
    name, _, version = learnt.tags["base"].rpartition("@")
    began = registry.get_version(name, int(version))
    folders = ((began.files, ""), (kept.files, f"{WEIGHTS_FOLDER}/"))
    theirs, ours = [
        {blob.sha256 for file, blob in files.items() if file.startswith(start) and file.endswith(_WEIGHTS)}
        for files, start in folders
    ]
    if theirs != ours:
        raise TrainingDataError(
            f"base={kept.version}: its weights are not those of {name}@{version}, which the fine-tune began with; name a version "
            "that has them"
        )


def _kept_beside_weights(registry: Registry, kept: ModelVersion, to: Path) -> dict[str, Any]:
    """All that a version has beside its folder of weights, whose files may have other names than the fine-tune's."""
    names = [name for name in (PROMPT, SETTINGS, CHAT_TEMPLATE) if name in kept.files]
    folder = registry.download(kept.model, kept.version, to=to, paths=names)
    template = folder / CHAT_TEMPLATE
    return {
        "prompt": read_prompt(folder),
        "settings": read_settings(folder),
        "chat_template": template.read_text() if template.is_file() else None,
    }
