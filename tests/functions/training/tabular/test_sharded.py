"""Training from shards: the steps of a training from memory in the same order, whatever interrupts it, in little memory."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.functions.training.tabular_setup import COLUMNS, FAST, NAMES, examples
from tests.memory import own_memory
from toque.functions.training import TrainingDataError, train_tabular
from toque.functions.training.checkpoints.saved import Checkpoints
from toque.functions.training.loop import task as sample_rows
from toque.functions.training.loop.keeping import Keeper
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.splits import held_out_rows, streamed_split
from toque.functions.training.tabular import sharded
from toque.functions.training.tabular.fitting import fit, prepare
from toque.functions.training.tabular.network import LabelledRows
from toque.functions.training.tabular.preprocessing import labels_of
from toque.functions.training.tabular.sharded import LabelSummary, prepare_in_shards
from toque.functions.training.tabular.target import target_of
from toque.functions.training_data import ShardCache, versions
from toque.registry import Table

SHORT = FAST.model_copy(update={"epochs": 2, "accumulate": 2, "rows_in": "shards"})


@dataclass(frozen=True, slots=True)
class InShardsOrder(LabelledRows):
    """Rows in memory that are learnt from in the order of shards."""

    shards: object = None

    def order(self, seed, epoch):
        return self.shards.order(seed, epoch)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(sharded, "_SHARD_BYTES", 8_000)
    monkeypatch.setattr(sample_rows, "_FETCHED_AHEAD", 700)


def opened(context, snapshot, tmp_path, params=SHORT):
    sets = prepare_in_shards(Table(context.store, snapshot.name), snapshot, COLUMNS, params)
    cache = ShardCache(tmp_path / "cache", most_bytes=60_000)
    return sets, sets.opened(seed=params.seed, warm_start=None, cache=cache)


@pytest.mark.usefixtures("small_shards")
def test_training_from_shards_is_training_from_memory_in_their_order_though_interrupted(
    context, training_set, tmp_path
):
    sets, shards = opened(context, training_set, tmp_path)
    memory = prepare(COLUMNS.read(Table(context.store, training_set.name), training_set), COLUMNS, SHORT)
    assert len(list(sets.store.list("samples/"))) > 8
    assert (len(shards.train), len(shards.valid)) == (len(memory.train), len(memory.valid))
    assert torch.equal(shards.label, memory.label)
    train = InShardsOrder(memory.train.rows, memory.train.label, shards.train)
    wanted = fit(replace(memory, train=train), SHORT)
    checkpoints = Checkpoints.of(context.store, {"rows": "shards"})

    def cut(epoch):
        if epoch.number == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(shards, SHORT, on_epoch=cut, keeper=Keeper(SingleProcess(), checkpoints))
    _, again = opened(context, training_set, tmp_path)
    found = fit(again, SHORT, keeper=Keeper(SingleProcess(), checkpoints))
    state = wanted.scorer.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.scorer.state_dict().items())
    assert found.metrics == wanted.metrics


def test_a_training_from_shards_is_registered_and_its_sets_are_found_again(context, training_set):
    trained = train_tabular("late", training_set, **NAMES, params=SHORT)
    memory = train_tabular(
        "late", training_set, **NAMES, params=SHORT.model_copy(update={"rows_in": "memory"})
    )
    assert trained.metrics["log_loss"] == pytest.approx(memory.metrics["log_loss"], rel=0.2)
    assert trained.rows == 4_000
    before = list(context.store.list("samples/"))
    train_tabular("late", training_set, **NAMES, params=SHORT.model_copy(update={"lr": 1e-3}))
    assert list(context.store.list("samples/")) == before
    assert versions(context.store, "/".join(before[0].split("/")[1:4])) == [1]


@pytest.mark.parametrize("by", ["days", "time"])
def test_the_rows_held_out_are_those_of_a_training_from_memory(by):
    rows = examples(3_000, seed=3).take(pa.array(np.random.default_rng(0).permutation(3_000)))
    for seed, fraction in ((0, 0.1), (1, 0.35), (2, 0.02)):
        parts = [rows.slice(at, 700) for at in range(0, 3_000, 700)]
        held_out = streamed_split(lambda: iter(parts), valid_fraction=fraction, by=by, seed=seed)  # noqa: B023
        found = np.concatenate([held_out(part, 700 * at) for at, part in enumerate(parts)])
        assert np.array_equal(found, held_out_rows(rows, valid_fraction=fraction, by=by, seed=seed))


def test_of_single_rows_about_the_share_is_held_out_wherever_batches_end():
    rows = examples(10_000)
    held_out = streamed_split(lambda: iter([rows]), valid_fraction=0.2, by="random", seed=5)
    whole = held_out(rows, 0)
    assert np.array_equal(held_out(rows.slice(1_234, 50), 1_234), whole[1_234:1_284])
    assert whole.mean() == pytest.approx(0.2, abs=0.016)  # four standard errors


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_target_is_that_of_a_training_from_memory(task):
    rows = examples(1_000)
    label = {"binary": "late", "multiclass": "carrier", "regression": "wind"}[task]
    parts = [rows.slice(at, 300) for at in range(0, 1_000, 300)]
    held_out = streamed_split(lambda: iter(parts), valid_fraction=0.3, by="days", seed=0)
    summary = LabelSummary.of(iter(parts), held_out, label=label, task=task)
    mask = held_out(rows, 0)
    classes, labels = labels_of(rows, label, task)
    train, valid = (
        sharded.TabularData(torch.empty(0), torch.empty(0), labels[torch.from_numpy(part)], classes)
        for part in (~mask, mask)
    )
    wanted, found = target_of(task, train, valid), summary.target()
    assert type(found) is type(wanted)
    if task == "regression":
        assert (found.center, found.scale) == pytest.approx((wanted.center, wanted.scale), rel=1e-9)
    assert (summary.rows_train, summary.rows_valid) == (int((~mask).sum()), int(mask.sum()))
    assert summary.values(rows).to_pylist() == labels.tolist()


@pytest.mark.parametrize(
    ("column", "value", "task", "says"),
    [
        ("late", 2.0, "binary", "must hold 0 and 1 only"),
        ("late", None, "binary", "null"),
        ("wind", float("inf"), "regression", "no finite number"),
        ("carrier", None, "multiclass", "has 4000 nulls"),
    ],
)
def test_labels_that_do_not_fit_are_refused(context, column, value, task, says):
    rows = examples()
    wrong = pa.array([value] * rows.num_rows, rows.schema.field(column).type)
    rows = rows.set_column(rows.column_names.index(column), column, wrong)
    snapshot = Table(context.store, "wrong").append(rows)
    params = SHORT.model_copy(update={"task": task})
    names = NAMES | {"label": column, "numeric": ["load"], "categorical": ["route"]}
    with pytest.raises(TrainingDataError, match=says):
        train_tabular("late", snapshot, **names, params=params)


def test_a_split_that_leaves_nothing_and_a_table_without_rows_are_refused(context):
    few = Table(context.store, "few").append(examples(50, days=1))
    with pytest.raises(TrainingDataError, match="leaves 0 to train and 50 to validate"):
        train_tabular("late", few, **NAMES, params=SHORT)
    empty = Table(context.store, "empty").append(examples(10).slice(0, 0))
    with pytest.raises(TrainingDataError, match="empty@1 has no rows"):
        train_tabular("late", empty, **NAMES, params=SHORT)


def test_preparing_does_not_hold_the_rows(context, monkeypatch):
    monkeypatch.setattr(sharded, "SAMPLE_ROWS", 10_000)
    monkeypatch.setattr(sharded, "VALID_ROWS", 5_000)
    monkeypatch.setattr(sharded, "_SHARD_BYTES", 1 << 20)
    grown = []
    for rows in (20_000, 60_000, 400_000):  # the first warms up
        table = Table(context.store, f"rows-{rows}-{len(grown)}")
        for at in range(0, rows, 20_000):
            snapshot = table.append(examples(20_000, seed=at))
        with own_memory() as peak:
            prepare_in_shards(table, snapshot, COLUMNS, SHORT)
        grown.append(max(peak))
    assert grown[2] - grown[1] < 340_000 * 7 * 8, grown  # held whole it is several times those bytes
