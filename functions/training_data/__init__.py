"""Training data as sharded sets of samples in the store, read as shuffled streams by any number of workers.

The package knows the store and numpy. It must not know what is learnt from the samples, nor torch or Ray.
"""

from toque.functions.training_data.cache import ShardCache
from toque.functions.training_data.decode import DecodeImages
from toque.functions.training_data.errors import SampleSetError
from toque.functions.training_data.index import SetIndex, SetRef, Shard, ShardFormat, read_index, versions
from toque.functions.training_data.order import Shuffle, batch_variance_ratio
from toque.functions.training_data.rows import OpenSet, SampleRows
from toque.functions.training_data.source import Mixture, SampleSource, SetSource
from toque.functions.training_data.stream import Batch, Reading, SampleStream, Share
from toque.functions.training_data.writer import write_samples, write_table

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
