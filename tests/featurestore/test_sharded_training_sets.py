"""Training sets made shard by shard in one process: the rows of the small way, in little memory, whoever is killed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.featurestore import killed_build
from tests.featurestore.killed_build import END, START, built
from tests.featurestore.oracle import Cases, features_of, store_of
from tests.memory import own_memory
from toque.featurestore import Entity, FeatureService, FeatureView, Field, Float64, InvalidRows, String
from toque.featurestore.offline.prefilter import join_in_steps
from toque.functions import Context, use_context
from toque.functions.features import large_training_sets
from toque.functions.features.jobs import build_training_set, training_set_lineage
from toque.functions.features.large_training_sets import BuildPlan, BuildRecord
from toque.registry import Table, TableSnapshot, open_store

plane = Entity("plane", join_keys=[Field("tailnum", String)])
history = FeatureView(
    "history", [plane], [Field("delay", Float64), Field("seats", Float64)], ttl=timedelta(days=3)
)


def events(rows: int, *, seed: int, names: tuple[str, str] = ("delay", "seats")) -> pa.Table:
    rng = np.random.default_rng(seed)
    at = START.timestamp() * 1e6 + rng.integers(0, 30 * 86_400_000_000, rows)
    return pa.table(
        {
            "tailnum": pa.array([f"N{key}" for key in rng.integers(0, 300, rows)]),
            "event_timestamp": pa.array(at.astype(np.int64)).cast(pa.timestamp("us", "UTC")),
            names[0]: rng.normal(size=rows),
            names[1]: rng.normal(size=rows),
            "label": pa.array(rng.random(rows), mask=rng.random(rows) < 0.1),
        }
    )


@pytest.fixture
def context(tmp_path: Path) -> Iterator[Context]:
    url = f"file://{tmp_path}/store"
    made = Context(open_store(url), url, clock=lambda: END, actor="ada")
    with use_context(made):
        made.features().apply([plane, history, FeatureService("late", [history])])
        made.features().write_offline(history, events(6_000, seed=1).drop_columns(["label"]))
        yield made


def entities(context: Context, rows: int, *, name: str = "entities") -> TableSnapshot:
    return Table(context.store, name).append(events(rows, seed=7, names=("distance", "wind")))


def rows_of(context: Context, made: TableSnapshot) -> pa.Table:
    return Table(context.store, made.name).read(version=made.version)


def record_keys(context: Context) -> list[str]:
    return list(context.store.list("training_builds/"))


def test_shards_are_the_rows_of_the_small_way_in_their_order(context, monkeypatch):
    monkeypatch.setattr(large_training_sets, "_FEWEST_ROWS", 700)
    asked = entities(context, 5_000)
    small = built(context.store_url, asked, share=1.0, name="training/small")
    large = built(context.store_url, asked, share=1e-9, name="training/large")
    assert len(Table(context.store, large.name).dataset().files) == 8
    assert rows_of(context, large).equals(rows_of(context, small))
    assert training_set_lineage(large) == training_set_lineage(small)
    assert record_keys(context) == []


def test_a_set_without_a_service_is_made_in_shards_too(context, monkeypatch):
    monkeypatch.setattr(large_training_sets, "_FEWEST_ROWS", 700)
    asked = entities(context, 3_000)
    found = []
    for share in (1.0, 1e-9):
        with use_context(Context(context.store, context.store_url, clock=lambda: END, memory_share=share)):
            made = build_training_set(None, asked, "label", START, END, name=f"training/own-{share}")
        found.append(rows_of(context, made))
    assert len(Table(context.store, "training/own-1e-09").dataset().files) == 5
    assert found[0].equals(found[1])


def test_a_set_without_rows_is_refused_in_shards_too(context):
    asked = entities(context, 50)
    with use_context(Context(context.store, context.store_url, clock=lambda: END, memory_share=1e-9)):
        for service in (None, "late"):
            with pytest.raises(InvalidRows, match=r"entities@1 has no rows with 'label' known by"):
                build_training_set(service, asked, "label", START - timedelta(days=9), START)
    assert record_keys(context) == []


@pytest.mark.parametrize(
    ("when", "number", "left"), [("add", 3, 2), ("find", 5, 4), ("commit", 1, 8), ("end", 1, 8)]
)
def test_a_killed_build_is_taken_up_after_its_last_shard(context, monkeypatch, when, number, left):
    asked = entities(context, 5_000)
    victim = subprocess.run(
        [sys.executable, str(Path(killed_build.__file__)), context.store_url, when, str(number)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
        timeout=200,
    )
    assert victim.returncode == -signal.SIGKILL
    assert len(record_keys(context)) == 1 + left
    monkeypatch.setattr(large_training_sets, "_FEWEST_ROWS", 4_000)  # the shards are those of the plan
    joined = []
    join = large_training_sets.join_in_steps
    monkeypatch.setattr(large_training_sets, "join_in_steps", lambda job: joined.append(1) or join(job))
    large = built(context.store_url, asked, share=1e-9, name="training/killed")
    assert len(joined) == 8 - left
    assert Table(context.store, large.name).version() == large.version == 1
    small = built(context.store_url, asked, share=1.0, name="training/small")
    assert rows_of(context, large).equals(rows_of(context, small))
    assert record_keys(context) == []


def test_an_old_plan_is_not_taken_up(context):
    record = BuildRecord(context.store, "key")
    old = BuildPlan(made_at=START, known_by=START, tables={}, shard_rows=5)
    assert record.begin(old) == old
    record.add(old, 0, [])
    hour = old.model_copy(update={"id": "later", "made_at": START + timedelta(hours=1)})
    assert record.begin(hour) == old
    next_day = old.model_copy(update={"id": "new", "made_at": START + timedelta(days=1)})
    assert record.begin(next_day) == next_day
    assert record.find(next_day, 0) is None
    assert len(record_keys(context)) == 1


def test_what_is_held_does_not_grow_with_the_rows(context, monkeypatch):
    monkeypatch.setattr(large_training_sets, "_FEWEST_ROWS", 10_000)
    built(context.store_url, entities(context, 20_000, name="warm"), share=1e-9, name="training/warm")
    grown = []
    for rows in (20_000, 320_000):
        asked = TableSnapshot(name="none", version=0)
        for _ in range(0, rows, 20_000):
            asked = entities(context, 20_000, name=f"rows-{rows}")
        with own_memory() as peak:
            built(context.store_url, asked, share=1e-9, name=f"training/{rows}")
        grown.append(max(peak))
    more_bytes = 300_000 * 7 * 8
    assert grown[1] - grown[0] < more_bytes / 2, grown  # held whole it is several times those bytes


@pytest.mark.parametrize("how", ["as_stored", "as_known"])
def test_five_hundred_cases_joined_in_steps_match_the_definition(how: str, tmp_path: Path) -> None:
    cases, as_known = Cases(), how == "as_known"
    fs = store_of(cases, tmp_path, files=5, seed=3)
    job = fs.get_historical_features(cases.entity_table(1), "all", as_known=as_known)
    for step_rows in (7, 100):
        out = join_in_steps(job, step_rows=step_rows)
        assert features_of(out) == cases.expected[as_known]
        assert out.equals(job.to_arrow())
