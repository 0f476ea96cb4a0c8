"""Rows in a file instead of in memory: to the last bit the same, for as many readers as come, and gone after them."""

import gc
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.functions.training.recipes import FAST as RECIPE
from tests.functions.training.recipes import SumRecipe, Sums, trainer
from tests.functions.training.tabular_setup import COLUMNS, FAST, NAMES, examples
from toque.functions.training import TrainingDataError, train_tabular
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.tabular import out_of_core
from toque.functions.training.tabular.fitting import Prepared, fit, prepare
from toque.functions.training.tabular.out_of_core import MmapRows, prepare_on_disk
from toque.functions.training.trainer import Epoch
from toque.registry import Table, TableSnapshot

ROWS = 1_000
SHORT = FAST.model_copy(update={"epochs": 3, "batch_size": 128})


@pytest.fixture(autouse=True)
def disk(tmp_path, monkeypatch):
    """Where the files are."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def in_files(context) -> TableSnapshot:
    """A snapshot of several files, after which others came."""
    table, rows = Table(context.store, "training"), examples(ROWS)
    for begin in range(0, ROWS, 300):
        snapshot = table.append(rows.slice(begin, 300))
    table.append(rows.slice(0, 50))
    return snapshot


def parts():
    for begin in (0, 3):
        yield {
            "x": np.arange(begin, begin + 3, dtype=np.float32)[:, None] * [1, 10],
            "y": np.arange(begin, begin + 3),
        }


def test_any_rows_are_read_in_any_order_any_number_of_times(disk):
    rows = MmapRows.of("n", parts)
    assert len(rows) == 6
    found = rows.take(torch.tensor([5, 0, 3, 0]))
    assert found["y"].tolist() == [5, 0, 3, 0]
    assert found["x"].tolist() == [[5, 50], [0, 0], [3, 30], [0, 0]]
    assert found["x"].dtype == torch.float64


def folders(disk):
    return list(disk.rglob("toque-rows-*"))


def test_the_file_is_written_once_and_removed_with_its_last_reader(disk):
    def never():
        raise AssertionError("written again")

    one, other = MmapRows.of("n", parts), MmapRows.of("n", never)
    del one
    gc.collect()
    assert len(folders(disk)) == 1
    assert other.take(torch.tensor([4]))["y"].tolist() == [4]
    del other
    gc.collect()
    assert folders(disk) == []


def test_a_half_written_file_is_written_again_and_no_rows_are_refused(disk):
    def full():
        yield from parts()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        MmapRows.of("n", full)
    assert MmapRows.of("n", parts).take(torch.tensor([1]))["y"].tolist() == [1]
    with pytest.raises(ValueError, match="there are no rows"):
        MmapRows.of("empty", list)


def test_the_file_of_a_killed_reader_is_used_by_the_next(disk):
    code = (
        "import os, signal, pathlib\n"
        "from toque.functions.training.tabular.out_of_core import MmapRows\n"
        "from tests.functions.training.loop.test_mmap_rows import parts\n"
        f"kept = MmapRows.of('n', parts, within=pathlib.Path({str(disk)!r}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(folders(disk)) == 1

    def never():
        raise AssertionError("written again")

    found = MmapRows.of("n", never, within=disk)
    assert found.take(torch.tensor([2]))["y"].tolist() == [2]
    del found
    gc.collect()
    assert folders(disk) == []


def prepared_both(context, snapshot) -> tuple[Prepared, Prepared]:
    table = Table(context.store, snapshot.name)
    return (
        prepare(COLUMNS.read(table, snapshot), COLUMNS, SHORT),
        prepare_on_disk(table, snapshot, COLUMNS, SHORT),
    )


def test_training_from_disk_equals_training_from_memory_though_interrupted(context, in_files, monkeypatch):
    memory, disk = prepared_both(context, in_files)
    assert torch.equal(memory.sample.numeric.nan_to_num(-1), disk.sample.numeric.nan_to_num(-1))
    monkeypatch.setattr(out_of_core, "_MEMORY_PART", 0.0)  # as if the file were larger than memory
    wanted = fit(memory, SHORT)
    checkpoints = Checkpoints.of(context.store, {"rows": "disk"})

    def cut(epoch: Epoch) -> None:
        if epoch.number == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(disk, SHORT, on_epoch=cut, keeper=Keeper(SingleProcess(), checkpoints))
    found = fit(disk, SHORT, keeper=Keeper(SingleProcess(), checkpoints))
    state = wanted.scorer.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.scorer.state_dict().items())
    assert found.metrics == wanted.metrics
    assert all(0 < epoch.busy <= 1 for epoch in found.epochs)


def test_beyond_the_sample_size_preprocessing_is_learnt_from_the_sample(context, in_files):
    table = Table(context.store, in_files.name)
    few = prepare_on_disk(table, in_files, COLUMNS, SHORT, sample_rows=100)
    memory, _ = prepared_both(context, in_files)
    assert len(few.train) == len(memory.train)
    assert few.preprocessing.center == pytest.approx(memory.preprocessing.center, rel=0.2)
    assert not torch.equal(few.preprocessing.center, memory.preprocessing.center)


def test_a_training_from_disk_is_registered_and_leaves_no_file(context, in_files, disk):
    trained = train_tabular("late", in_files, **NAMES, params=SHORT.model_copy(update={"rows_in": "disk"}))
    memory = train_tabular("late", in_files, **NAMES, params=SHORT)
    assert trained.metrics == memory.metrics
    assert trained.rows == ROWS
    run = context.registry().get_run(trained.run_id)
    assert 0 < run.record().metrics["busy"] <= 1
    gc.collect()
    assert folders(disk) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": "late", "numeric": ["wnd"], "categorical": []}, "column 'wnd' is not in the table"),
        ({"label": "lte", "numeric": ["wind"], "categorical": []}, "column 'lte' is not in the table"),
        ({"label": "late", "numeric": [], "categorical": []}, "no feature columns were named"),
    ],
)
def test_bad_columns_are_named(context, in_files, change, says):
    with pytest.raises(TrainingDataError, match=says):
        train_tabular("late", in_files, **change, params=SHORT.model_copy(update={"rows_in": "disk"}))


def test_a_table_without_rows_is_refused(context):
    empty = Table(context.store, "empty").append(examples(10).slice(0, 0).cast(examples(10).schema))
    with pytest.raises(TrainingDataError, match="no rows"):
        train_tabular("late", empty, **NAMES, params=SHORT.model_copy(update={"rows_in": "disk"}))
    assert isinstance(examples(1), pa.Table)


class SumsOnDisk(Sums):
    """A recipe's lesson whose rows are in a file."""

    def __init__(self) -> None:
        super().__init__(1.0)
        x = self._rows(0)
        self.file_rows = MmapRows.of(
            "sums", lambda: ({"x": part.numpy(), "y": part[:, :2].sum(1).numpy()} for part in x.split(90))
        )
        self.foretold = 0

    def prefetch(self, rows):
        self.foretold += len(rows)
        self.file_rows.prefetch(rows)

    def train_batch(self, rows):
        found = self.file_rows.take(rows)
        return found["x"], found["y"]


def test_a_recipes_task_may_keep_its_rows_in_a_file(monkeypatch):
    monkeypatch.setattr(out_of_core, "_MEMORY_PART", 0.0)
    task, memory = SumsOnDisk(), trainer()
    torch.manual_seed(0)
    disk = Trainer(SumRecipe().network(), task, RECIPE)
    for _ in range(2):
        assert disk.run_epoch().valid_loss == memory.run_epoch().valid_loss
    assert task.foretold == 2 * 350  # all steps' but the first's
