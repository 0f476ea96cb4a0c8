"""Export of what the streams hold and no table does yet, for the tables of a restored store.

An export is taken before the store is copied. What is drained in between is then in both, and is added once: a table knows
the number of each writer's last record in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from toque.clusters.redis_clients import open_redis
from toque.functions.prediction_log.errors import PredictionLogError
from toque.functions.prediction_log.frames import Frame, encode_frame, read_frames
from toque.functions.prediction_log.writing.adoption import KINDS
from toque.functions.prediction_log.writing.drain import DrainResult, add_records
from toque.functions.prediction_log.writing.stream import Stream
from toque.registry.errors import NewerFormat
from toque.registry.store import ObjectStore

__all__ = ["WriterExport", "add_exports", "export_streams"]

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class WriterExport:
    """Records of one writer that were in its stream and in no table."""

    kind: str
    workspace: str
    writer: str
    frames: tuple[Frame, ...]

    def to_bytes(self) -> bytes:
        """Write as a line of JSON and the frames."""
        head = {"format": _FORMAT, "kind": self.kind, "workspace": self.workspace, "writer": self.writer}
        line = json.dumps(head | {"records": len(self.frames)})
        return b"\n".join(
            (line.encode(), b"".join(encode_frame(frame.number, frame.payload) for frame in self.frames))
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str) -> WriterExport:
        """Read an export that `to_bytes` wrote. Raises: NewerFormat; PredictionLogError if it is damaged."""
        line, _, body = data.partition(b"\n")
        try:
            head: dict[str, Any] = json.loads(line)
            found = head["format"]
            if found > _FORMAT:
                raise NewerFormat(where, found, _FORMAT)
            frames = tuple(read_frames(body))
            whole = len(frames) == head["records"]
            export = cls(head["kind"], head["workspace"], head["writer"], frames)
        except (ValueError, KeyError, TypeError) as error:
            raise PredictionLogError(f"{where} is no export of a stream: {error!r}") from error
        if not whole:
            raise PredictionLogError(
                f"{where} holds {len(frames)} whole records of {head['records']}: it is damaged"
            )
        return export


def export_streams(redis_url: str, workspaces: Iterable[str]) -> Iterator[WriterExport]:
    """Read the records that no table has yet, writer by writer; nothing is removed.

    Raises: redis.RedisError; PredictionLogError if a stream is damaged.
    """
    client = open_redis(redis_url, timeout_s=30.0)
    try:
        for workspace in workspaces:
            for stream in (Stream(client, kind, workspace=workspace) for kind in KINDS):
                for writer in stream.writers():
                    frames = tuple(stream.read(writer, max_bytes=1 << 62))
                    yield WriterExport(stream.kind, workspace, writer, frames)
    finally:
        client.close()


def add_exports(store_of: Callable[[str], ObjectStore], exports: Iterable[WriterExport]) -> DrainResult:
    """Append exported records to the tables that lack them; may be killed and repeated, and exports may overlap.

    store_of: opens the store of a workspace. Raises: PredictionLogError; registry's Unavailable.
    """
    total = DrainResult()
    for export in exports:
        if export.frames:
            total += add_records(store_of(export.workspace), export.kind, {export.writer: [*export.frames]})
    return total
