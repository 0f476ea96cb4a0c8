"""A training takes place on the device of its process group, to its end, and leaves nothing there."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from functions.training.loop.epoch import Epoch
from functions.training.loop.process_groups.process_group import SingleProcess
from functions.training.tabular.artifact import EXAMPLE_ROWS, tabular_signature, write_artifact
from functions.training.tabular.fitting import fit, prepare
from tests.conditions.devices import card
from tests.functions.training.tabular_setup import COLUMNS, FAST, examples


def table_of(task: str) -> pa.Table:
    """Examples whose label is what the task learns."""
    table = examples(400)
    label = table.column("late").to_numpy()
    if task == "regression":
        label = label * 3.0 + np.arange(len(label)) % 7
    elif task == "multiclass":
        label = np.where(np.arange(len(label)) % 3 == 0, 2.0, label).astype(np.int64)
    return table.set_column(table.column_names.index("late"), "late", pa.array(label))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_tabular_network_is_trained_scored_and_written_on_a_card_as_on_the_host(
    tmp_path: Path, task: str
) -> None:
    table, params = table_of(task), FAST.model_copy(update={"task": task, "epochs": 2})
    prepared = prepare(table, COLUMNS, params)
    host = fit(prepared, params)
    seen: list[Epoch] = []
    with card() as device:
        fitted = fit(prepared, params, group=SingleProcess(device), on_epoch=seen.append)
    assert [epoch.valid_loss for epoch in seen] == pytest.approx([epoch.valid_loss for epoch in host.epochs])
    assert fitted.metrics == pytest.approx(host.metrics, rel=1e-4)
    assert {value.device for value in fitted.scorer.state_dict().values()} == {torch.device("cpu")}
    signature = tabular_signature(COLUMNS, table.slice(0, EXAMPLE_ROWS), fitted.scorer.target)
    write_artifact(tmp_path, fitted, signature=signature, columns=COLUMNS, params=params)


def test_a_simulated_card_refuses_tensors_of_the_host() -> None:
    with card() as device:
        there = torch.ones(2, 2, device=device)
        assert (there + there).cpu().sum() == 8.0
        with pytest.raises(RuntimeError, match="same device, but found cuda:0 and cpu"):
            there + torch.ones(2, 2)
