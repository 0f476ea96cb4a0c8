"""The function that takes a fine-tune to the door of language models, as an adapter of a version there or as whole weights."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Literal

from functions.generative import ADAPTER, WEIGHTS, is_generative, register_generative
from functions.runtime.context import context
from functions.runtime.declaration import Resources
from functions.runtime.function import function
from functions.training.errors import TrainingDataError
from registry import Lineage, ModelVersion

__all__ = ["serve_fine_tune"]


@function(http=True, resources=Resources(num_cpus=1), timeout_s=3_600)
def serve_fine_tune(
    model: str,
    base: int,
    tuned: str,
    tuned_version: int,
    form: Literal["adapter", "weights"] = "adapter",
    description: str = "",
) -> ModelVersion:
    """Register a fine-tune as the next version of a language model, with all else of its version `base`.

    base: a version whose weights, as GGUF, are those that the fine-tune began with. tuned, tuned_version: what `fine_tune`
    registered. form: `adapter` keeps the weights of `base`, which engines share; `weights` converts the whole folder, and is all
    that there is of a fine-tune without adapters. It takes no traffic by that. The lineage names the fine-tune's run and rows.
    Raises: NotFound; TrainingDataError if they do not fit.
    """
    from functions.training.llm.gguf_files import (  # late: torch
        ADAPTER_CONFIG,
        write_adapter,
        write_weights,
    )

    registry = context().registry()
    kept = registry.get_version(model, base)
    learnt = registry.get_version(tuned, tuned_version)
    if not is_generative(kept) or WEIGHTS not in kept.files:
        raise TrainingDataError(f"base={base}: {model}@{base} is no version of a language model")
    if form == "adapter" and ADAPTER_CONFIG not in learnt.files:
        raise TrainingDataError(
            f"tuned={tuned}@{tuned_version} has no adapter: it learnt all weights, so say form='weights'"
        )
    if form == "weights" and ADAPTER in kept.files:
        raise TrainingDataError(
            f"base={base}: it has an adapter, which fits its own weights; name one without"
        )
    lineage = Lineage(
        run=learnt.lineage.run, datasets=learnt.lineage.datasets, code=learnt.lineage.code, parent=base
    )
    with tempfile.TemporaryDirectory(prefix="toque-fine-tune-") as place:
        folder, made = Path(place) / "tuned", Path(place) / "made.gguf"
        registry.download(tuned, tuned_version, to=folder)
        weights = registry.download(model, base, to=Path(place) / "base", paths=[WEIGHTS]) / WEIGHTS
        (write_adapter if form == "adapter" else write_weights)(folder, weights, made)
        return register_generative(
            registry, model, weights=made if form == "weights" else None,
            adapter=made if form == "adapter" else None, keep=base, lineage=lineage,
            description=description or f"fine-tune {tuned}@{tuned_version}", tags={"fine_tune": f"{tuned}@{tuned_version}"},
        )  # fmt: skip
