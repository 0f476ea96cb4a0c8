"""The prefilter keeps every row that is an answer by the definition, and few others."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.featurestore.oracle import Cases, features_of, store_of
from toque.featurestore.definitions.dtypes import TIMESTAMP
from toque.featurestore.definitions.encoding import microseconds
from toque.featurestore.offline import versions
from toque.featurestore.offline.partitioning import key_hashes
from toque.featurestore.offline.prefilter import Prefilter
from toque.featurestore.offline.retrieval import attach, stored_view, typed_keys
from toque.featurestore.rows import offline_schema

START = datetime(2013, 1, 1, tzinfo=UTC)
KEYS = ["plane", "place"]


def table(count: int, seed: int, *, keys: int, within_us: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    moments = rng.integers(0, within_us, (2, count)) + int(START.timestamp()) * 10**6
    return pa.table(
        {
            "plane": [f"N{n}" for n in rng.integers(0, keys, count)],
            "place": rng.integers(0, 2, count),
            "event_timestamp": pa.array(moments[0]).cast(TIMESTAMP),
            "created_timestamp": pa.array(moments[1]).cast(TIMESTAMP),
        }
    )


def prefilter_of(entities: pa.Table, hashes: Any = None) -> Prefilter:
    times = microseconds(entities["event_timestamp"])
    hashes = key_hashes(entities, KEYS) if hashes is None else hashes
    half = len(times) // 2
    pieces = [(hashes[:half], times[:half]), (hashes[half:], times[half:])]
    return Prefilter.of(pieces, rows=len(times), first_us=int(times.min()), last_us=int(times.max()))


def winners(entities: pa.Table, rows: pa.Table, *, ttl: timedelta | None, as_known: bool) -> set[int]:
    """Indices of the rows that are answers, with all rows that share both their times."""
    wanted: set[int] = set()
    candidates = rows.to_pylist()
    for entity in entities.to_pylist():
        t = entity["event_timestamp"]
        seen = [
            (row["event_timestamp"], row["created_timestamp"], number)
            for number, row in enumerate(candidates)
            if all(row[key] == entity[key] for key in KEYS)
            and row["event_timestamp"] <= t
            and (ttl is None or t - row["event_timestamp"] <= ttl)
            and (not as_known or row["created_timestamp"] <= t)
        ]
        wanted |= {number for event, created, number in seen if (event, created) == max(seen)[:2]}
    return wanted


@pytest.mark.parametrize("how", ["as_stored", "as_known"])
@pytest.mark.parametrize("ttl", [None, timedelta(microseconds=4), timedelta.max])
def test_keeps_every_answer_and_drops_most_other_rows(ttl: timedelta | None, how: str) -> None:
    kept, wanted = 0, 0
    for seed in range(12):
        keys = (1, 3, 20)[seed % 3]
        entities = table(40, seed, keys=keys, within_us=20)
        rows = table(200, seed + 100, keys=keys, within_us=30)
        got = prefilter_of(entities).candidates(
            rows, key_hashes(rows, KEYS), keys=KEYS, ttl=ttl, as_known=how == "as_known"
        )
        answers = winners(entities, rows, ttl=ttl, as_known=how == "as_known")
        assert answers <= set(got.tolist())
        assert got.tolist() == sorted(set(got.tolist()))
        kept, wanted = kept + len(got), wanted + len(answers)
    assert 0 < wanted <= kept < 12 * 200 / 2


@pytest.mark.parametrize("how", ["as_stored", "as_known"])
def test_keys_of_one_hash_never_replace_each_other(how: str) -> None:
    """Simulates hash collisions of keys: extra rows may be kept, and no answer is dropped."""
    entities, rows = table(60, 1, keys=4, within_us=20), table(300, 2, keys=4, within_us=30)
    same = np.zeros(60, dtype=np.uint64)
    got = prefilter_of(entities, same).candidates(
        rows, np.zeros(300, dtype=np.uint64), keys=KEYS, as_known=how == "as_known"
    )
    wanted = winners(entities, rows, ttl=None, as_known=how == "as_known")
    assert wanted <= set(got.tolist())


@pytest.mark.parametrize("how", ["as_stored", "as_known"])
def test_coarse_time_steps_over_years_drop_no_answer(how: str) -> None:
    years = 10 * 365 * 86_400 * 10**6
    entities, rows = table(400, 3, keys=40, within_us=years), table(4_000, 4, keys=40, within_us=years)
    prefilter = prefilter_of(entities)
    assert prefilter.shift > 0
    got = prefilter.candidates(
        rows, key_hashes(rows, KEYS), keys=KEYS, ttl=timedelta(days=30), as_known=how == "as_known"
    )
    wanted = winners(entities, rows, ttl=timedelta(days=30), as_known=how == "as_known")
    assert wanted <= set(got.tolist())
    assert len(got) <= len(wanted) + 2


def test_rows_within_an_entity_rows_time_step_do_not_replace_earlier_rows() -> None:
    """Ten years in 2^28 steps: an entity row a microsecond after one row and before the next, all three in one step."""
    starts = np.arange(0, 10 * 365 * 86_400, 9_000_000) * 10**6 + int(START.timestamp()) * 10**6

    def at(micros: Any) -> pa.Table:
        times = pa.array(micros).cast(TIMESTAMP)
        same = {"plane": ["N1"] * len(times), "place": [1] * len(times)}
        return pa.table(same | {"event_timestamp": times, "created_timestamp": times})

    rows = at(np.concatenate([starts, starts + 2]))
    got = prefilter_of(at(starts + 1)).candidates(rows, key_hashes(rows, KEYS), keys=KEYS)
    assert set(range(len(starts))) <= set(got.tolist())


def test_rows_of_other_keys_and_later_rows_are_dropped() -> None:
    entities = table(50, 5, keys=10, within_us=10)
    later = table(50, 6, keys=10, within_us=10)
    shifted = microseconds(later["event_timestamp"]) + 10**6
    later = later.set_column(2, "event_timestamp", pa.array(shifted).cast(TIMESTAMP))
    others = table(50, 7, keys=10, within_us=10)
    others = others.set_column(0, "plane", pa.array(["nobody"] * 50))
    for rows in (later, others, others.slice(0, 0)):
        got = prefilter_of(entities).candidates(rows, key_hashes(rows, KEYS), keys=KEYS)
        assert got.tolist() == []


@pytest.mark.parametrize("how", ["as_stored", "as_known"])
def test_five_hundred_cases_joined_after_the_prefilter_match_the_definition(how: str, tmp_path: Path) -> None:
    cases, as_known = Cases(), how == "as_known"
    fs = store_of(cases, tmp_path, files=5, seed=3)
    job = fs.get_historical_features(cases.entity_table(1), "all", as_known=as_known)
    out, kept, stored = job.entities, 0, 0
    for lookup in job.retrieval.lookups:
        view = stored_view(lookup)
        keys = [key.name for key in view.join_keys]
        prefilter = prefilter_of(
            job.entities, key_hashes(typed_keys(job.entities, lookup), lookup.key_columns)
        )
        version = fs.offline.version(view)
        assert version is not None
        files = [versions.scan(version, [file], offline_schema(view)) for file in version.files]
        assert len(files) >= 5
        found = [
            rows.take(
                prefilter.candidates(rows, key_hashes(rows, keys), keys=keys, ttl=view.ttl, as_known=as_known)
            )
            for rows in files
        ]
        out, _ = attach(out, pa.concat_tables(found), lookup, as_known=as_known)
        kept, stored = kept + sum(map(len, found)), stored + sum(map(len, files))
    assert (
        features_of(out.select([*job.entities.column_names, *job.retrieval.columns]))
        == cases.expected[as_known]
    )
    assert kept < stored * 0.75
