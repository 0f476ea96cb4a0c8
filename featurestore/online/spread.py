"""Materialization of a large view in tasks on all nodes of a Ray cluster."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
import ray.data

from toque.featurestore.offline.distributed import file_shares
from toque.featurestore.offline.versions import File
from toque.featurestore.online.materialize import FileShare, FilesWritten


def spread_files(share: FileShare, files: Sequence[File]) -> Iterator[FilesWritten]:
    """Write a share of a view's files online in tasks on all nodes; the caller handles numbers and names of files."""
    tasks = [{"paths": [files[number].path for number in numbers]} for numbers in file_shares(files)]
    written = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        partial(_write_files, share=share), batch_format="pyarrow", batch_size=1, num_cpus=1
    )
    for row in written.iter_rows():
        yield FilesWritten(int(row["rows"]), int(row["written"]), tuple(row["ended"]))


def _write_files(task: pa.Table, *, share: FileShare) -> pa.Table:
    paths = tuple(path for paths in task.column("paths").to_pylist() for path in paths)
    done = list(replace(share, paths=paths).written())
    ended = [path for each in done for path in each.ended]
    return pa.table(
        {
            "rows": [sum(each.rows for each in done)],
            "written": [sum(each.written for each in done)],
            "ended": pa.array([ended], pa.list_(pa.string())),
        }
    )
