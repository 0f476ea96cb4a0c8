"""Training data as sharded sets of samples in the store, read as shuffled streams by any number of workers.

The package knows the store and numpy. It must not know what is learnt from the samples, nor torch or Ray.
"""

from toque.functions.training_data.formats import (
    SampleSetError,
    SetIndex,
    SetRef,
    Shard,
    ShardFormat,
    read_index,
    versions,
)
from toque.functions.training_data.jobs import write_samples, write_table
from toque.functions.training_data.order import Shuffle, batch_variance_ratio
from toque.functions.training_data.rows import OpenSet, SampleRows, ShardCache
from toque.functions.training_data.stream import (
    Batch,
    DecodeImages,
    Mixture,
    Reading,
    SampleSource,
    SampleStream,
    SetSource,
    Share,
)

__all__ = [
    "Batch",
    "DecodeImages",
    "Mixture",
    "OpenSet",
    "Reading",
    "SampleRows",
    "SampleSetError",
    "SampleSource",
    "SampleStream",
    "SetIndex",
    "SetRef",
    "SetSource",
    "Shard",
    "ShardCache",
    "ShardFormat",
    "Share",
    "Shuffle",
    "batch_variance_ratio",
    "read_index",
    "versions",
    "write_samples",
    "write_table",
]
