from types import SimpleNamespace

import numpy as np
import pytest
import torch

import toque.functions.evaluation.batch_inference as batch
from tests.functions.training.tabular_setup import FAST, NAMES, examples
from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.runtime.errors import InvalidArguments
from toque.functions.training import TrainingDataError, train_tabular
from toque.registry import InvalidInput, Table, open_store


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    url = f"file://{tmp_path_factory.mktemp('batch')}"
    context = Context(store=open_store(url), store_url=url, actor="ada")
    with use_context(context):
        snapshot = Table(context.store, "training").append(examples())
        train_tabular("late", snapshot, **NAMES, params=FAST)
        context.registry().set_alias("late", "champion", 1)
    return context, snapshot


@pytest.fixture
def scored(trained):
    with use_context(trained[0]):
        yield trained


def test_every_row_is_scored_once_and_carries_where_it_came_from(scored):
    context, snapshot = scored
    done = predict_batch(
        "late", snapshot, keep=["event_timestamp", "carrier"], shard_rows=999, output="out-a"
    )
    assert (done.rows, done.rows_scored, done.version, done.where) == (4_000, 4_000, 1, "here")
    out = Table(context.store, "out-a").read().sort_by("row")
    assert out["row"].to_pylist() == list(range(4_000))
    assert out["carrier"].equals(examples()["carrier"])
    assert set(out["source"].to_pylist()) == {str(snapshot)}
    assert set(out["model_version"].to_pylist()) == {1}
    probability = out["probability"].to_numpy()
    assert ((probability > 0) & (probability < 1)).all()
    assert (
        probability[examples()["carrier"].to_numpy(zero_copy_only=False) == "DL"].mean() > probability.mean()
    )


def test_a_scorer_is_given_few_bytes_at_once_whatever_a_shard_has(scored, monkeypatch):
    context, snapshot = scored
    whole = predict_batch("late", snapshot, keep=["carrier"], output="out-whole")
    score, given = batch.ShardScorer.__call__, []
    monkeypatch.setattr(batch, "_PIECE_BYTES", 20_000)
    monkeypatch.setattr(
        batch.ShardScorer, "__call__", lambda self, rows: given.append(rows.num_rows) or score(self, rows)
    )
    pieces = predict_batch("late", snapshot, keep=["carrier"], shard_rows=999, output="out-pieces")
    assert max(given) < 500
    assert sum(given) == 4_000
    names = ("out-whole", "out-pieces")
    first, second = (Table(context.store, name).read().sort_by("row") for name in names)
    assert second.drop_columns("probability").equals(first.drop_columns("probability"))
    np.testing.assert_allclose(second["probability"], first["probability"], atol=1e-6)
    assert pieces.rows_scored == whole.rows_scored
    assert len(Table(context.store, "out-pieces").dataset().files) == 5


def test_a_second_run_adds_nothing(scored):
    context, snapshot = scored
    first = predict_batch("late", snapshot, shard_rows=1_500, output="out-b")
    second = predict_batch("late", snapshot, shard_rows=1_500, output="out-b")
    assert second.rows_scored == 0
    assert second.table == first.table
    assert Table(context.store, "out-b").read().num_rows == 4_000


def test_a_killed_batch_inference_resumes_where_it_stopped(scored, monkeypatch):
    context, snapshot = scored
    score, calls = batch.ShardScorer.__call__, []

    def dies_at_the_third(self, shard):
        calls.append(shard)
        if len(calls) == 3:
            raise MemoryError
        return score(self, shard)

    with monkeypatch.context() as patch:
        patch.setattr(batch.ShardScorer, "__call__", dies_at_the_third)
        with pytest.raises(MemoryError):
            predict_batch("late", snapshot, shard_rows=1_000, output="out-c")
    assert Table(context.store, "out-c").read().num_rows == 2_000
    again = predict_batch("late", snapshot, shard_rows=1_000, output="out-c")
    assert again.rows_scored == 2_000
    rows = Table(context.store, "out-c").read()["row"].to_numpy()
    np.testing.assert_array_equal(np.sort(rows), np.arange(4_000))


def test_a_new_version_scores_the_same_snapshot_anew(scored):
    context, snapshot = scored
    predict_batch("late", snapshot, output="out-d")
    two = train_tabular("late", snapshot, **NAMES, params=FAST).version
    assert predict_batch("late", snapshot, version=two, output="out-d").rows_scored == 4_000
    assert Table(context.store, "out-d").read().num_rows == 8_000


def test_what_does_not_fit_the_signature_is_named(scored):
    context, _ = scored
    bare = Table(context.store, "bare").append(examples(10).drop_columns(["wind"]))
    with pytest.raises(TrainingDataError, match=r"lacks columns \['wind'\]"):
        predict_batch("late", bare, output="out-e")


def test_the_output_is_no_table_of_the_platform(scored):
    context, snapshot = scored
    with pytest.raises(InvalidInput, match=r"output='predictions/late': .* are the platform's own"):
        predict_batch("late", snapshot, output="predictions/late")
    assert not Table(context.store, "predictions/late").exists()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_scorer_computes_with_as_many_threads_as_it_has_cpus(scored, monkeypatch, threads):
    _, snapshot = scored
    load, used, before = batch.load_version, set(), torch.get_num_threads()

    def counted(registry, version):
        model = load(registry, version)
        predict = model.predict_table
        return SimpleNamespace(
            signature=model.signature,
            predict_table=lambda rows: used.add(torch.get_num_threads()) or predict(rows),
        )

    monkeypatch.setattr(batch, "load_version", counted)
    predict_batch("late", snapshot, version=1, threads=threads, output=f"out-threads-{threads}")
    assert used == {threads}
    assert torch.get_num_threads() == before


def test_no_scorer_has_no_thread(scored):
    with pytest.raises(InvalidArguments, match="threads"):
        predict_batch("late", scored[1], threads=0)
