"""Batches and training sets that are killed, and asked for again after an erasure or with other shards: each row once."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.featurestore.killed_build import END, START
from tests.functions.training.tabular_setup import FAST, NAMES, examples
from toque.featurestore import InvalidRows
from toque.functions import Context, use_context
from toque.functions.evaluation.batch_inference import predict_batch
from toque.functions.evaluation.batch_shards import ShardWork
from toque.functions.features import jobs, large_training_sets
from toque.functions.features.jobs import build_training_set
from toque.functions.features.large_training_sets import BuildRecord
from toque.functions.maintenance.erasure.jobs import UnfinishedErasureError, erase_subject
from toque.functions.training import train_tabular
from toque.registry import InvalidInput, Table, TableSnapshot, open_store

ROWS, SHARD = 30, 10
SUBJECTS = {"none": [], "first": [0], "middle": [14], "last": [29], "shard": [*range(10, 20)]}
WHEN = {"before": 0, "between": 1, "after": 3}
"""Shards that were written before the kill."""
runs = count(1_000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Context:
    url = f"file://{tmp_path_factory.mktemp('shards')}"
    context = Context(store=open_store(url), store_url=url, actor="ada")
    with use_context(context):
        train_tabular("late", Table(context.store, "training").append(examples()), **NAMES, params=FAST)
    return context


@pytest.fixture
def context(trained: Context) -> Iterator[Context]:
    with use_context(trained):
        yield trained


def users(subjects: str) -> tuple[str, list[str]]:
    """Name a subject who has the rows, among bystanders whose names begin with the subject's."""
    subject = f"user-{next(runs)}"
    return subject, [subject if row in SUBJECTS[subjects] else f"{subject}{row:02d}" for row in range(ROWS)]


def erase(subjects: str, subject: str) -> None:
    if subjects != "none":
        with suppress(UnfinishedErasureError):  # files of the killed call wait for their commit
            erase_subject(entity={"user": subject})


class Killed(BaseException):
    pass


def killed_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, number: int) -> None:
    calls, call = count(), getattr(owner, name)

    def dying(*arguments: object, **options: object) -> object:
        if next(calls) == number:
            raise Killed
        return call(*arguments, **options)

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize("again", [SHARD, 7, 12])
@pytest.mark.parametrize("when", list(WHEN))
@pytest.mark.parametrize("subjects", list(SUBJECTS))
def test_every_bystander_is_answered_once(context, monkeypatch, subjects, when, again):
    subject, names = users(subjects)
    rows = examples(ROWS).append_column("user", pa.array(names))
    dataset = Table(context.store, f"rows/{subject}").append(rows)
    output = f"batch/{subject}"
    options = {"version": 1, "keep": ["user"], "output": output}
    other = Table(context.store, f"rows/{subject}-other").append(
        examples(5).append_column("user", pa.array([f"{subject}-x"] * 5))
    )
    predict_batch("late", other, **options)
    with monkeypatch.context() as patch, suppress(Killed):
        killed_at(patch, ShardWork, "append", WHEN[when])
        predict_batch("late", dataset, shard_rows=SHARD, **options)
    erase(subjects, subject)
    done = predict_batch("late", dataset, shard_rows=again, **options)
    out = Table(context.store, output).read(where=[("source", "==", str(dataset))]).sort_by("row")
    assert out["user"].to_pylist() == [name for name in names if name != subject]
    if when != "after":
        assert out["row"].to_pylist() == list(range(out.num_rows))
    assert Table(context.store, output).read().num_rows == out.num_rows + 5
    if subjects == "none" or when == "after":
        assert done.rows_scored == ROWS - SHARD * WHEN[when]
    assert predict_batch("late", dataset, shard_rows=again, **options).rows_scored == 0


def test_other_columns_to_keep_are_refused_for_the_same_output(context):
    subject, names = users("none")
    rows = examples(ROWS).append_column("user", pa.array(names))
    dataset = Table(context.store, f"rows/{subject}").append(rows)
    output = f"batch/{subject}"
    predict_batch("late", dataset, version=1, keep=["user"], output=output)
    with pytest.raises(InvalidInput, match=rf"keep=\['carrier'\]: output='{output}' .* name another output"):
        predict_batch("late", dataset, version=1, keep=["carrier"], output=output)
    whole = predict_batch("late", dataset, version=1, keep=["carrier"], output=f"{output}-b")
    assert whole.rows_scored == ROWS


def entity_rows(context: Context, subject: str, names: list[str]) -> TableSnapshot:
    times = pa.array([START + timedelta(minutes=row) for row in range(ROWS)], pa.timestamp("us", "UTC"))
    columns = {"user": names, "event_timestamp": times, "label": np.arange(ROWS) * 1.0}
    return Table(context.store, f"entities/{subject}").append(pa.table(columns))


def build(context: Context, entities: TableSnapshot, name: str) -> TableSnapshot:
    small = Context(context.store, context.store_url, clock=lambda: END, memory_share=1e-9)
    with use_context(small):
        return build_training_set(None, entities, "label", START, END, name=name)


@pytest.mark.parametrize("again", [SHARD, 7])
@pytest.mark.parametrize("when", list(WHEN))
@pytest.mark.parametrize("subjects", list(SUBJECTS))
def test_every_bystander_is_once_in_a_training_set(tmp_path: Path, monkeypatch, subjects, when, again):
    url = f"file://{tmp_path}"
    context = Context(store=open_store(url), store_url=url, actor="ada")
    subject, names = users(subjects)
    entities = entity_rows(context, subject, names)
    monkeypatch.setattr(large_training_sets, "_FEWEST_ROWS", SHARD)
    with monkeypatch.context() as patch:
        if when == "after":
            killed_at(patch, jobs, "overwrite_with_parts", 0)
        else:
            killed_at(patch, BuildRecord, "find", WHEN[when])
        with pytest.raises(Killed):
            build(context, entities, "training/late")
    with use_context(context):
        erase(subjects, subject)
    monkeypatch.setattr(large_training_sets, "_FEWEST_ROWS", again)
    made = build(context, entities, "training/late")
    read = Table(context.store, made.name).read(version=made.version)
    assert read["user"].to_pylist() == [name for name in names if name != subject]


@pytest.mark.parametrize("subjects", [name for name in SUBJECTS if name != "none"])
def test_an_erasure_beside_a_build_ends_it_and_the_next_is_whole(tmp_path: Path, monkeypatch, subjects):
    url = f"file://{tmp_path}"
    context = Context(store=open_store(url), store_url=url, actor="ada")
    subject, names = users(subjects)
    entities = entity_rows(context, subject, names)
    monkeypatch.setattr(large_training_sets, "_FEWEST_ROWS", SHARD)
    find = BuildRecord.find

    def erasing(record, plan, shard):
        if shard == 1:
            with use_context(context):
                erase(subjects, subject)
        return find(record, plan, shard)

    with monkeypatch.context() as patch:
        patch.setattr(BuildRecord, "find", erasing)
        with pytest.raises(InvalidRows, match=r"entities=.* make the call again"):
            build(context, entities, "training/late")
    made = build(context, entities, "training/late")
    read = Table(context.store, made.name).read(version=made.version)
    assert read["user"].to_pylist() == [name for name in names if name != subject]
