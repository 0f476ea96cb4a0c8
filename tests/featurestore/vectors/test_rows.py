"""Rows whose vectors lie in a file: they are those that are held in memory, and a file is never short."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from toque.featurestore import Entity, FeatureView, Field, String, Vector
from toque.featurestore.rows import offline_schema
from toque.featurestore.vectors.rows import VectorRows, write_vectors

LENGTH = 3
view = FeatureView("docs", [Entity("doc", dtype=String)], [Field("v", Vector(LENGTH)), Field("lang", String)])


def drawn(seed: int, count: int) -> pa.Table:
    """Rows of few keys and times, some of which have no vector, and some nothing but another vector or text."""
    rng = random.Random(seed)
    start = datetime(2024, 1, 1, tzinfo=UTC)
    rows = [
        {
            "doc": rng.choice("abcd"),
            "v": rng.choice([None, [1.0, 0.0, 0.0], [0.0, 1.0, -2.0], [0.5, 0.5, 0.5]]),
            "lang": rng.choice([None, "de", "en"]),
            "event_timestamp": start + timedelta(seconds=rng.randrange(3)),
            "created_timestamp": start + timedelta(seconds=rng.randrange(3)),
        }
        for _ in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=offline_schema(view))


def same(one: VectorRows, other: VectorRows) -> None:
    everything = np.arange(len(one))
    assert one.taken(everything).equals(other.taken(everything))
    for name in ("ids", "present", "hashes", "since", "until", "vectors", "norms"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("seed", range(20))
def test_rows_in_a_file_are_those_in_memory(seed: int, tmp_path: Path) -> None:
    rows = drawn(seed, 60)
    parts = [rows.slice(0, 25), rows.slice(25, 0), rows.slice(25, 35)]
    held = VectorRows.of(view, "v", rows)
    written = VectorRows.in_file(view, "v", tmp_path / "all.npy", iter(parts), count=60)
    same(held, written)
    assert isinstance(written.vectors, np.memmap)
    before = VectorRows.in_file(view, "v", tmp_path / "first.npy", iter(parts[:1]), count=25)
    same(
        held,
        VectorRows.in_file(view, "v", tmp_path / "rest.npy", iter(parts[1:]), count=35, before=before),
    )


def test_no_rows_are_a_file_of_none(tmp_path: Path) -> None:
    found = VectorRows.in_file(view, "v", tmp_path / "none.npy", iter([]), count=0)
    assert (len(found), found.vectors.shape) == (0, (0, LENGTH))


def test_a_file_with_other_rows_than_were_counted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 vectors were written where 3 were counted"):
        write_vectors(tmp_path / "short.npy", [np.zeros((2, LENGTH), np.float32)], (3, LENGTH))


def test_a_full_disk_is_an_error() -> None:
    vectors = np.zeros((2, LENGTH), np.float32)
    with pytest.raises(OSError, match="No space left on device"):
        write_vectors(Path("/dev/full"), [vectors], vectors.shape)
