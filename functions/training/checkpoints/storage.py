"""Storage of torch's distributed checkpoints in the object store: a file for each worker, read by the ranges needed.

A client of S3 runs much Python, in threads that wait for the interpreter as the steps do: a step beside an upload within the
process took up to 1.6 times as long. So a large part goes through a process of its own, which reads it from a pipe, hashes and
sends it. The pipe is filled no faster than the checkpoint has to be there: its work is spread over a part of the interval.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    WriteItem,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from toque.functions.training.checkpoints.saved import Index, Piece, place
from toque.functions.training.checkpoints.uploader import BLOCK_BYTES, Digests, digests_of, upload_pieces
from toque.functions.training.errors import TrainingError
from toque.registry import ObjectStore, Unavailable

_READERS = 8  # requests of a worker at a time
Commit = Callable[[Index], None]
APART_FROM_BYTES = 64 << 20
"""Size from which a part is worth a process, which takes a second or two of a processor to start."""
_PROGRAM = Path(__file__).with_name("uploader.py")
_SENT_BYTES = 1 << 20  # at a time


class CheckpointDamaged(TrainingError):  # noqa: N818 - as in `toque.registry.errors`
    """Bytes of a checkpoint are absent or not those that were written: the one before it is used."""


class StoreWriter(StorageWriter):
    """Writes each worker's part as one object below `folder`; the first worker then commits the index of all parts.

    facts: of the training, as JSON; commit: called with the index once all parts are in the store; pace: of a worker's bytes.
    """

    def __init__(
        self, store: ObjectStore, folder: str, facts: dict[str, Any], commit: Commit, pace: Pace
    ) -> None:
        super().__init__()
        self._store, self._folder, self._facts, self._commit, self._pace = store, folder, facts, commit, pace

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing, since a writer writes one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:  # noqa: FBT001 - torch's signature
        """Do nothing, since objects need no folder."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Keep the plan of a worker."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Keep the plans of all workers."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Upload the tensors of a plan, one after the other, as one object. Raises: RegistryError."""
        done: Future[list[WriteResult]] = Future()
        key = f"{self._folder}{uuid.uuid4().hex}.bin"
        pieces = [_bytes_of(planner, item) for item in plan.items]
        digests = upload(self._store, key, pieces, self._pace) if pieces else []
        starts = list(accumulate(map(len, pieces), initial=0))[:-1]
        results = [
            WriteResult(item.index, len(data), Piece(key, start, len(data), found))
            for item, data, start, found in zip(plan.items, pieces, starts, digests, strict=True)
        ]
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Commit the checkpoint by its index."""
        self._commit(Index.of(metadata, (each for worker in results for each in worker), self._facts))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003 - torch's signature
        """Whether an id names a checkpoint; none does, since writers are made for one."""
        return False


class StoreReader(StorageReader):
    """Reads what a worker needs of a checkpoint: of each part only the rows that are its own now, verified."""

    def __init__(self, store: ObjectStore, index: Index) -> None:
        super().__init__()
        self._store, self._index = store, index
        self._sizes = {
            (name, tuple(chunk.offsets)): chunk.sizes
            for name, found in index.metadata.state_dict_metadata.items()
            for chunk in found.chunks  # type: ignore[union-attr]  # an index has tensors only
        }

    def reset(self, checkpoint_id: Any = None) -> None:
        """Do nothing, since a reader reads one checkpoint."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """Return torch's metadata of the checkpoint."""
        return self._index.metadata

    def set_up_storage_reader(self, *_: Any, **__: Any) -> None:
        """Do nothing, since the index was read before."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Keep the plan of a worker."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Keep the plans of all workers."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read the parts of a plan into its tensors. Raises: CheckpointDamaged."""
        with ThreadPoolExecutor(_READERS, thread_name_prefix="toque-checkpoint") as pool:
            for start in range(0, len(plan.items), _READERS):  # no more of them wait in memory
                items = plan.items[start : start + _READERS]
                for item, found in zip(items, pool.map(self._read, items), strict=True):
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(found)
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:  # noqa: ARG003 - torch's signature
        """Whether an id names a checkpoint; none does, since readers are made for one."""
        return False

    def _read(self, item: ReadItem) -> Tensor:
        """Read the box of a part that an item wants: its rows from the store, and of these what it needs."""
        where = place(item.storage_index)
        piece, sizes = self._index.pieces[where], self._sizes[where]
        dtype = self._index.shapes[where[0]][1]
        if not sizes:
            return _as_tensor(self._bytes(piece, 0, piece.size_bytes), dtype, torch.Size())
        row_bytes = piece.size_bytes // sizes[0] if sizes[0] else 0
        first, count = item.storage_offsets[0], item.lengths[0]
        data = self._bytes(piece, first * row_bytes, count * row_bytes)
        found = _as_tensor(data, dtype, torch.Size([count, *sizes[1:]]))
        for dim in range(1, len(sizes)):
            found = found.narrow(dim, item.storage_offsets[dim], item.lengths[dim])
        return found

    def _bytes(self, piece: Piece, start: int, size_bytes: int) -> bytearray:
        """Read some bytes of a piece, by whole blocks, whose digests are compared. Raises: CheckpointDamaged."""
        if not size_bytes:
            return bytearray()
        block, stop = (
            start // BLOCK_BYTES,
            min(piece.size_bytes, -(-(start + size_bytes) // BLOCK_BYTES) * BLOCK_BYTES),
        )
        begin = block * BLOCK_BYTES
        data = self._store.find_range(piece.file, piece.start + begin, stop - begin)
        wanted = piece.digests[block : -(-stop // BLOCK_BYTES)]
        if data is None or len(data) != stop - begin or digests_of(memoryview(data)) != wanted:
            raise CheckpointDamaged(
                f"{piece.file} bytes {begin} to {stop} are absent or not those that were written"
            )
        return bytearray(memoryview(data)[start - begin : start - begin + size_bytes])


def _bytes_of(planner: SavePlanner, item: WriteItem) -> memoryview:
    """Bytes of a tensor that is to be saved."""
    tensor = planner.resolve_data(item)
    if not isinstance(tensor, Tensor):
        raise TrainingError(f"{item.index.fqn} is no tensor: checkpoints hold tensors, and facts as JSON")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")


def _as_tensor(data: bytearray, dtype: torch.dtype, size: torch.Size) -> Tensor:
    return torch.frombuffer(data, dtype=dtype).reshape(size) if data else torch.empty(size, dtype=dtype)


class Pace:
    """Time over which a part is sent evenly, `seconds` from the first byte, until it is to hurry."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._began: float | None = None
        self._hurry = threading.Event()

    def hurry(self) -> None:
        """Let what is left be sent as fast as it can be."""
        self._hurry.set()

    def wait(self, share: float) -> None:
        """Wait until it is time for what comes after this share of the bytes."""
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        ahead_s = self._began + share * self._seconds - now
        if ahead_s > 0:
            self._hurry.wait(ahead_s)


def upload(store: ObjectStore, key: str, pieces: Sequence[memoryview], pace: Pace) -> list[Digests]:
    """Store the pieces as one object, large ones through a process of its own; returns their digests.

    Raises: what the store's own `upload` does.
    """
    if sum(map(len, pieces)) < APART_FROM_BYTES:
        return upload_pieces(store, key, io.BytesIO(b"".join(pieces)), [len(each) for each in pieces])
    return upload_apart(store, key, pieces, pace)


def upload_apart(store: ObjectStore, key: str, pieces: Sequence[memoryview], pace: Pace) -> list[Digests]:
    """Store the pieces as one object through a process of its own, which ends with this thread; returns their digests.

    Raises: what the store's own `upload` does; Unavailable if the process was killed.
    """
    paths = os.pathsep.join(dict.fromkeys(os.path.abspath(each) for each in sys.path))  # noqa: PTH100 - "" too
    with subprocess.Popen(  # noqa: S603 - our own interpreter
        [sys.executable, "-P", _PROGRAM, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
    ) as process:
        assert process.stdin is not None  # noqa: S101 - a pipe, as asked for
        assert process.stdout is not None  # noqa: S101 - the same
        with suppress(BrokenPipeError), process.stdin as sink:  # it says why it reads no further
            sink.write(pickle.dumps((store, key, [len(each) for each in pieces])))
            _send(sink, pieces, pace)
        answered = process.stdout.read()
    if process.returncode != 0:
        raise Unavailable(
            f"{key}: the process that uploads it ended with code {process.returncode}; is the machine out of memory?"
        )
    answer: list[Digests] | Exception = pickle.loads(answered)  # noqa: S301 - of our own process
    if isinstance(answer, Exception):
        raise answer
    return answer


def _send(sink: IO[bytes], pieces: Sequence[memoryview], pace: Pace) -> None:
    size_bytes, sent = sum(map(len, pieces)), 0
    for piece in pieces:
        for start in range(0, len(piece), _SENT_BYTES):
            pace.wait(sent / size_bytes)
            sent += sink.write(piece[start : start + _SENT_BYTES])
