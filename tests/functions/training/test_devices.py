"""A training takes place on the device of its process group, to its end, and leaves nothing there."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from tests.conditions.devices import card, fake_group, recorded_moves
from tests.functions.training.recipes import FAST as FAST_SUMS
from tests.functions.training.recipes import trainer
from tests.functions.training.tabular_setup import COLUMNS, FAST, examples
from toque.functions.training.loop.process_group import ShardedGroup, SingleProcess
from toque.functions.training.tabular.fitting import fit, prepare
from toque.functions.training.tabular.job import EXAMPLE_ROWS, tabular_signature, write_artifact
from toque.functions.training.trainer import Epoch


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


@pytest.mark.parametrize("shape", [(2,), (4,), (2, 2)])
@pytest.mark.parametrize("rows", [8, 5, 1])  # even, uneven, and fewer than workers
def test_best_weights_of_a_shard_stay_in_host_memory_when_they_are_saved(
    shape: tuple[int, ...], rows: int
) -> None:
    group: ShardedGroup = object.__new__(ShardedGroup)  # the real one asks its card for streams
    with fake_group(math.prod(shape)), recorded_moves() as moved:
        mesh = init_device_mesh("cuda", shape)
        size, own = torch.Size([rows, 8]), torch.empty(-(-rows // math.prod(shape)), 8)
        split = {"run_check": False, "shape": size, "stride": (8, 1)}
        weight = DTensor.from_local(own, mesh, [Shard(0)] * len(shape), **split)
        moved.clear()
        best = group.from_local(own, weight)
        assert not [where for where in moved if "cuda" in where]
        assert (best.device_mesh.device_type, best.shape) == ("cpu", size)
        assert group.local_part(best).data_ptr() == own.data_ptr()
        assert group.held(best) == group.held(weight)


def test_a_training_on_a_card_saves_and_reads_its_best_weights_in_host_memory() -> None:
    with card() as device:
        first, second = (trainer(FAST_SUMS, SingleProcess(device)) for _ in range(2))
        first.run_epoch()
        tensors, facts = first.state()
        room = second.room_for({name: (value.shape, value.dtype) for name, value in tensors.items()})
        assert room.keys() == tensors.keys()
        for name, value in room.items():
            if not name.endswith(".step"):
                assert (
                    value.device.type == tensors[name].device.type == ("cpu" if "best." in name else "cuda")
                )
            value.detach().copy_(tensors[name])
        second.resume(room, facts)
        assert second.run_epoch().valid_loss == first.run_epoch().valid_loss


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_products_in_float32_may_be_tf32_on_cards_and_are_exact_on_processors(precision: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    trainer(FAST_SUMS.model_copy(update={"precision": precision}))
    assert torch.backends.cuda.matmul.allow_tf32  # as cards are planned: CARDS has their peak in TF32
    assert torch.backends.mkldnn.matmul.fp32_precision != "tf32"  # type: ignore[attr-defined]  # torch leaves it untyped
