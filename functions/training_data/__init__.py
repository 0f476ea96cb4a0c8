"""Training data as sharded sets of samples in the store, read as shuffled streams by any number of workers.

The package knows the store and numpy. It must not know what is learnt from the samples, nor torch or Ray.
"""

from functions.training_data.cache import ShardCache
from functions.training_data.decode import DecodeImages
from functions.training_data.errors import SampleSetError
from functions.training_data.index import SetIndex, SetRef, Shard, ShardFormat, read_index, versions
from functions.training_data.order import Shuffle, batch_variance_ratio
from functions.training_data.rows import OpenSet, SampleRows
from functions.training_data.source import Mixture, SampleSource, SetSource
from functions.training_data.stream import Batch, Reading, SampleStream, Share
from functions.training_data.writer import write_samples, write_table

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
