"""Files of a trained tabular model, and the signature that callers see."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from toque.functions.model_formats.load import DESCRIPTION_FILE, PROGRAM_FILE, ScoringModel, load
from toque.functions.model_formats.program import export_program, save_program
from toque.functions.training.errors import TrainingError
from toque.functions.training.params import TabularParams
from toque.functions.training.tabular.columns import Columns
from toque.functions.training.tabular.fitting import Fitted
from toque.functions.training.tabular.target import Target
from toque.registry.models import Signature, TensorSpec

EXAMPLE_ROWS = 2
_PARITY_ATOL = 1e-5


def tabular_signature(columns: Columns, table: pa.Table, target: Target) -> Signature:
    """Make the signature of a model: numbers and texts by column in, answers out; the example is `table`'s first rows."""
    rows = table.slice(0, EXAMPLE_ROWS)
    numbers = [[_number(value) for value in row] for row in _rows(rows, columns.numeric)]
    texts = [[_text(value) for value in row] for row in _rows(rows, columns.categorical)]
    return Signature(
        inputs=[
            TensorSpec(
                name="numeric",
                datatype="FP32",
                shape=[-1, len(columns.numeric)],
                columns=list(columns.numeric),
            ),
            TensorSpec(
                name="categorical",
                datatype="BYTES",
                shape=[-1, len(columns.categorical)],
                columns=list(columns.categorical),
            ),
        ],
        outputs=[target.spec],
        example={"numeric": numbers, "categorical": texts},
    )


def write_artifact(
    folder: Path, fitted: Fitted, *, signature: Signature, columns: Columns, params: TabularParams
) -> ScoringModel:
    """Write `model.pt2` and `model.json`, read them back, and compare with the model in memory.

    Returns: the model as it was read back.
    Raises: TrainingError if what was read back answers otherwise.
    """
    sample = fitted.sample
    program = export_program(fitted.scorer, {"numeric": sample.numeric, "categorical": sample.categorical})
    save_program(program, folder / PROGRAM_FILE)
    description = _description(fitted, signature=signature, columns=columns, params=params)
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1))
    loaded = load(folder)
    _check_read_back(fitted, loaded)
    return loaded


def _description(
    fitted: Fitted, *, signature: Signature, columns: Columns, params: TabularParams
) -> dict[str, Any]:
    return {
        "kind": "tabular",
        "format": 1,
        "signature": signature.model_dump(mode="json"),
        "task": params.task,
        "target": asdict(fitted.scorer.target),
        "label": columns.label,
        "params": params.model_dump(mode="json"),
        "inverse_temperature": fitted.inverse_temperature,
        "rows": {"train": fitted.rows_train, "valid": fitted.rows_valid},
        "validation": fitted.metrics,
        "best_epoch": fitted.best_epoch,
        "made_with": {"torch": torch.__version__, "python": platform.python_version()},
    }


def _check_read_back(fitted: Fitted, loaded: ScoringModel) -> None:
    sample = fitted.sample
    for rows in (1, len(sample)):
        part = sample.take(torch.arange(rows))
        with torch.inference_mode():
            wanted = fitted.scorer(part.numeric, part.categorical).numpy()
        got = loaded.predict({"numeric": part.numeric.numpy(), "categorical": part.categorical.numpy()})
        gap = float(np.abs(wanted - next(iter(got.values()))).max())
        if not gap <= _PARITY_ATOL * max(1.0, float(np.abs(wanted).max())):
            raise TrainingError(
                f"the saved model answers {rows} rows otherwise than the one in memory, by {gap:.3g}: not registered"
            )


def _rows(table: pa.Table, columns: Any) -> list[tuple[Any, ...]]:
    lists = [table.column(name).to_pylist() for name in columns]
    return list(zip(*lists, strict=True)) if lists else [() for _ in range(table.num_rows)]


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _text(value: Any) -> str:
    """Text of a category as `category_matrix` has it; a missing one is empty, since an example has no null."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
