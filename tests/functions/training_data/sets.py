"""Sets that tests read: numbered samples with numbers, vectors, texts and bytes."""

import numpy as np
import pyarrow as pa

from toque.functions.training_data import OpenSet, Shuffle, write_samples
from toque.functions.training_data.formats import KEY


def samples(rows: int, *, first: int = 0) -> pa.Table:
    """Samples whose fields all follow from their number."""
    numbers = np.arange(first, first + rows)
    flat = pa.array(np.repeat(numbers, 3).astype(np.int32))
    return pa.table(
        {
            "number": numbers,
            "vector": pa.FixedSizeListArray.from_arrays(flat, 3),
            "text": [f"sample {number}" for number in numbers],
            "data": pa.array([bytes([number % 251]) * (number % 7) for number in numbers], pa.binary()),
        }
    )


def text_samples(rows: int) -> pa.Table:
    """The fields of the samples that a tar can hold, with a key."""
    made = samples(rows)
    keys = pa.array([f"a/{number:05d}" for number in range(rows)])
    return made.select(["text", "data"]).append_column(KEY, keys)


def opened(store, name: str, rows: int, *, shards: int = 5, first: int = 0, shuffle: Shuffle | None = None):
    """A set of so many samples in about so many shards."""
    made = samples(rows, first=first)
    ref = write_samples(store, name, [made], shard_bytes=max(1, made.nbytes // shards))
    return OpenSet.of(store, ref, shuffle=shuffle)
