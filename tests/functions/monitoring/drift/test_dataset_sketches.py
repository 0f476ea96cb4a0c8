"""What does not fit into memory is sketched in parts, to the same counts."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
import ray.data

from tests.functions.monitoring.conftest import ServedModel
from toque.functions.monitoring import watch_drift
from toque.functions.monitoring.drift import reference as large
from toque.functions.monitoring.drift import watch as watch_features
from toque.functions.monitoring.drift.monitor import DriftState
from toque.functions.monitoring.drift.reference import DatasetRows, sketch_rows
from toque.functions.monitoring.logged_features import sample_rows
from toque.functions.runtime import use_context
from toque.functions.stats.sketch import TableSketch
from toque.registry import Table, open_store


def table(folder: Path, parts: int, rows: int = 500) -> Table:
    """So many files of so many rows; the fifth has another order, nulls, infinities and a value of 1e30."""
    made, rng = Table(open_store(f"file://{folder}/store"), "rows"), np.random.default_rng(0)
    for part in range(parts):
        x = rng.standard_normal(rows) + part
        x[part::7] = [np.nan, np.inf, 1e30][part % 3]
        made.append(
            pa.table({"x": x, "word": rng.choice(["a", "b", f"only {part}"], rows), "part": [part] * rows})
        )
    return made


def counts(sketch: TableSketch) -> dict[str, tuple[Any, ...]]:
    return {name: (one.counts, one.nulls, one.moments.n) for name, one in sketch.columns.items()}


def test_a_table_sketched_in_parts_counts_as_if_it_were_read_at_once(tmp_path: Path) -> None:
    rows = table(tmp_path, 6)
    whole = rows.read(columns=["x", "word"])
    like = TableSketch.reference(whole)
    found = sketch_rows(DatasetRows(rows, rows.version(), ("x", "word")), like)
    assert counts(found) == counts(like.window(whole))
    assert found.columns["x"].moments.mean == pytest.approx(like.window(whole).columns["x"].moments.mean)
    some = DatasetRows(rows, rows.version(), ("x", "word"), pc.field("part") >= 9)
    assert counts(sketch_rows(some, like)) == counts(like.window(whole.slice(0, 0)))


@pytest.fixture
def cluster(shared_ray: Callable[[int], None]) -> None:
    shared_ray(4)  # as the modules of the functions' runtime, which come next
    ray.data.DataContext.get_current().enable_progress_bars = False


@pytest.mark.ray
@pytest.mark.slow
def test_ray_counts_the_same_a_file_or_a_block_a_task(tmp_path: Path, cluster: None) -> None:
    rows = table(tmp_path, 6)
    whole = rows.read(columns=["x", "word"])
    like = TableSketch.reference(whole)
    assert counts(sketch_rows(DatasetRows(rows, rows.version(), ("x", "word")), like)) == counts(
        like.window(whole)
    )
    dataset = ray.data.from_arrow([whole.slice(at, 700) for at in range(0, len(whole), 700)])
    assert counts(large.sketch_dataset(dataset, like)) == counts(like.window(whole))
    made = large.reference_of_dataset(dataset, sample_rows=1_000)
    assert {name: one.rows for name, one in made.columns.items()} == {"x": 3_000, "word": 3_000}
    shares = np.array(made.columns["x"].counts) / made.columns["x"].present
    assert shares.max() < 0.15  # bins of a sample's quantiles hold about as many of all rows each


def test_a_sample_of_a_table_is_the_one_of_its_rows_and_stays_the_same(tmp_path: Path) -> None:
    rows = table(tmp_path, 5)
    asked = DatasetRows(rows, rows.version(), ("x", "part"))
    assert asked.sample(5_000).num_rows == 2_500
    chosen = asked.sample(700)
    again = sample_rows(rows.read(columns=["x", "part"]), 700)
    assert chosen["part"].to_pylist() == again["part"].to_pylist()
    assert chosen.num_rows == 700


def test_a_large_window_is_judged_as_a_small_one(
    served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.register()
    served.serve(12)

    def watched() -> DriftState:
        served.store.delete("monitoring/late/state/drift.json")
        assert watch_drift("late").cohorts == 10
        return DriftState.model_validate_json(served.store.get("monitoring/late/state/drift.json"))

    with use_context(served.context()):
        served.now += timedelta(hours=2)
        at_once = watched()
        monkeypatch.setattr(watch_features, "LARGE_ROWS", 100)
        in_parts = watched()
    sketches = [[TableSketch.from_dict(one) for one in state.sketches] for state in (at_once, in_parts)]
    assert [*map(counts, sketches[0])] == [*map(counts, sketches[1])]
    assert at_once.flagged == in_parts.flagged


def test_what_cannot_be_sketched_is_refused_by_name(tmp_path: Path) -> None:
    like = TableSketch.reference(pa.table({"x": [1.0, 2.0]}))
    other = TableSketch.reference(pa.table({"x": [5.0, 6.0]}))
    with pytest.raises(ValueError, match="different bins"):
        TableSketch.total([like, other])
    with pytest.raises(ValueError, match="different columns"):
        TableSketch.total([like, TableSketch.reference(pa.table({"y": [1.0]}))])
    rows = table(tmp_path, 1)
    prepare = partial(pa.Table.rename_columns, names=["x"])
    found = sketch_rows(DatasetRows(rows, rows.version(), ("x",)), like, prepare=prepare)
    assert found.columns["x"].rows == 500
