"""Writers that died: any process that shares the disk adopts their write-ahead files, or losses are written off.

A folder is an orphan if its lock can be taken. It is removed once its records are in the table. A writer tells Redis with each
shipment which record it may have answered by the next one. If it is silent for long, and nobody who shares its disk has adopted
its files, what Redis lacks is written off: an event, and an entry in the journal `prediction-log/losses`. That takes nothing
away: if the node comes back, its records arrive once each, and the loss is taken back.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from toque.functions.prediction_log.frames import Frame, encode_frame
from toque.functions.prediction_log.writing.stream import Stream, WriterState
from toque.functions.prediction_log.writing.wal import (
    CHUNK_BYTES,
    claim,
    intact_records,
    is_writers_folder,
    recover,
    roots_beside,
    segments_of,
)
from toque.functions.runtime.context import Context
from toque.functions.runtime.triggers import events
from toque.registry import Entry, Fold
from toque.registry.journal.journal import Journal

_log = logging.getLogger(__name__)
KINDS = ("predictions", "labels")
LOSS_TOPIC = "prediction-log-loss"
SILENT_FOR = timedelta(minutes=5)
_WATCH_GAP_S = 60.0
_MAX_STANDING = 512


def adopt_all(root: Path, client: Any, *, workspace: str) -> int:
    """Adopt the orphans of all workspaces and kinds of the platform whose folder of one workspace is `root`.

    Returns how many folders were claimed.
    """
    return sum(
        adopt_orphans(folder, Stream(client, kind, workspace=name))
        for name, folder in roots_beside(root, workspace)
        for kind in KINDS
    )


def adopt_orphans(root: Path, stream: Stream) -> int:
    """Ship the files of dead writers found under `root`, and remove those that are drained.

    A folder that holds anything but a writer's lock and segments is left alone.
    Returns how many folders were claimed.
    """
    claimed = 0
    for folder in _orphans(root / stream.kind):
        _adopt(folder, stream)
        claimed += 1
    return claimed


def _orphans(kind: Path) -> Iterator[Path]:
    """Yield the folders of dead writers, each locked for as long as it is looked at."""
    with contextlib.suppress(FileNotFoundError):
        for folder in sorted(kind.iterdir()):
            lock = claim(folder) if is_writers_folder(folder) else None
            if lock is None:
                continue
            try:
                yield folder
            finally:
                os.close(lock)


def _adopt(folder: Path, stream: Stream) -> None:
    writer, last, node = folder.name, recover(folder), os.uname().nodename
    state = _report_damaged(folder, stream, last)
    if next(intact_records(folder, state.drained), None) is None:
        if state.lost_ms or state.damaged > state.damaged_told:
            # forgotten once its loss is taken back, and its damaged records are reported
            stream.report_alive(writer, node=node, reserved=last)
            return
        for _, segment in segments_of(folder):
            segment.unlink()
        (folder / "lock").unlink()
        folder.rmdir()
        stream.forget(writer)
        return
    position = stream.report_alive(writer, node=node, reserved=last)
    for frames, end in _chunks(intact_records(folder, position)):
        answer = stream.append(writer, frames, after=position, last=end, node=node, reserved=last)
        if not answer.added:
            return  # Redis lost or has got some meanwhile; the next round goes on from there
        position = end


def _report_damaged(folder: Path, stream: Stream, last: int) -> WriterState:
    """Tell Redis how many records up to `last` are damaged; returns what is known of the writer.

    It is told before any is shipped: whoever goes on after a crash sees no gap before what Redis has.
    """
    state = stream.state(folder.name)
    position = state.shipped or state.drained
    if position >= last:
        return state
    damaged = last - position - sum(1 for _ in intact_records(folder, position))
    if damaged <= state.damaged:
        return state
    _log.error("%s: %d records are damaged and lost; look at the disk", folder, damaged)
    stream.report_alive(folder.name, node=os.uname().nodename, reserved=last)
    stream.mark_damaged(folder.name, damaged, told=state.damaged_told)
    return stream.state(folder.name)


def _chunks(records: Iterator[Frame]) -> Iterator[tuple[bytes, int]]:
    """Join records to chunks, each with the number of its last."""
    chunk, last = bytearray(), 0
    for record in records:
        chunk += encode_frame(record.number, record.payload)
        last = record.number
        if len(chunk) >= CHUNK_BYTES:
            yield bytes(chunk), last
            chunk.clear()
    if chunk:
        yield bytes(chunk), last


class Loss(BaseModel):
    """Loss of one writer's records.

    node: where it ran. last_alive: when Redis last heard of it. requests_at_most: requests whose rows may be missing, of
    those answered until then and in the shipping interval after it; what the node answered later, while it was cut off from
    Redis, is not counted. back: the writer's files were found after all, and nothing is missing. damaged: they were found, and so
    many records in them could not be read.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    writer: str
    node: str
    last_alive: AwareDatetime
    requests_at_most: int
    back: bool = False
    damaged: bool = False

    @property
    def name(self) -> str:
        """Name under which the loss stands: records that are damaged are lost for good, whether or not the writer comes back."""
        return f"{self.kind}/{self.writer}{'/damaged' if self.damaged else ''}"

    @property
    def text(self) -> str:
        """Sentence about the loss, for people to read."""
        what = f"{self.kind} writer {self.writer} on node {self.node}"
        if self.damaged:
            return f"{what} left {self.requests_at_most} damaged records in its files; look at the disk there"
        if self.back:
            return f"{what} is back; its records are in the log"
        return (
            f"{what} vanished, last heard of at {self.last_alive.isoformat(timespec='seconds')}; "
            f"at most {self.requests_at_most} requests are not accounted for"
        )


class LossState(BaseModel):
    """State folded from the losses of a workspace: counts of all time, and the last ones that stand, by writer.

    requests_at_most: of those that were not taken back.
    """

    model_config = ConfigDict(frozen=True)

    writers: int = 0
    requests_at_most: int = 0
    standing: dict[str, Loss] = {}


def losses_of(used: Context) -> Fold[LossState]:
    """Open the losses of a workspace."""
    return Fold(
        Journal(used.store, "prediction-log/losses", actor=used.actor, clock=used.clock),
        LossState(),
        _step,
        encode=lambda state: state.model_dump(mode="json"),
        decode=LossState.model_validate,
    )


def report_losses(used: Context, client: Any, *, silent_for: timedelta = SILENT_FOR) -> list[Loss]:
    """Write off the writers of a workspace that have been silent for long, and take back those that came back.

    Nobody is written off before Redis was reachable from here for as long, since until then a silence says nothing.
    """
    found: list[Loss] = []
    for kind in KINDS:
        stream = Stream(client, kind, workspace=used.workspace)
        now_ms, watched_ms = stream.watched_ms(patience_s=_WATCH_GAP_S)
        for state in stream.states():
            loss = decide(kind, state, now_ms=now_ms, watched_ms=watched_ms, silent_for=silent_for)
            if loss is not None:
                _record(used, loss)
                if loss.damaged:
                    stream.mark_damaged(state.writer, state.damaged, told=state.damaged)
                else:
                    stream.mark_lost(state.writer, 0 if loss.back else now_ms)
                found.append(loss)
    return found


def decide(
    kind: str, state: WriterState, *, now_ms: int, watched_ms: int, silent_for: timedelta
) -> Loss | None:
    """Decide whether a writer is to be written off, is back, or has damaged records that nobody was told of; None: none of these."""
    silence_ms = silent_for.total_seconds() * 1e3
    missing = state.reserved - max(state.shipped, state.drained)
    back = bool(state.lost_ms) and (missing <= 0 or state.alive_ms > state.lost_ms)
    silent = min(now_ms - state.alive_ms, watched_ms) > silence_ms
    untold = state.damaged - state.damaged_told
    if not back and (state.lost_ms or missing <= 0 or not silent):
        if untold <= 0:
            return None
        return _loss(kind, state, untold, damaged=True)
    return _loss(kind, state, max(0, missing), back=back)


def _loss(kind: str, state: WriterState, requests: int, *, back: bool = False, damaged: bool = False) -> Loss:
    return Loss(
        kind=kind,
        writer=state.writer,
        node=state.node,
        last_alive=datetime.fromtimestamp(state.alive_ms / 1e3, UTC),
        requests_at_most=requests,
        back=back,
        damaged=damaged,
    )


def _record(used: Context, loss: Loss) -> None:
    """Publish a loss and record it, each once however often this is repeated after a crash."""
    body: dict[str, Any] = loss.model_dump(mode="json")
    stands = loss.name
    moment = f"{loss.last_alive.timestamp():.3f}"
    key = (
        f"{stands}/{loss.requests_at_most}"
        if loss.damaged
        else f"{stands}/{'back' if loss.back else 'lost'}/{moment}"
    )
    events.publish(LOSS_TOPIC, body | {"text": loss.text}, key=key, used=used)
    losses_of(used).transact(lambda state: body if (stands in state.standing) == loss.back else None)


def _step(state: LossState, entry: Entry) -> LossState:
    loss = Loss.model_validate(entry.body)
    name = loss.name
    standing = dict(state.standing)
    was = standing.pop(name, None)
    if loss.back:
        less = 0 if was is None else was.requests_at_most
        return state.model_copy(
            update={"standing": standing, "requests_at_most": state.requests_at_most - less}
        )
    standing[name] = loss
    return LossState(
        writers=state.writers + 1,
        requests_at_most=state.requests_at_most + loss.requests_at_most,
        standing=dict(list(standing.items())[-_MAX_STANDING:]),
    )


__all__ = [
    "KINDS",
    "LOSS_TOPIC",
    "SILENT_FOR",
    "Loss",
    "LossState",
    "adopt_all",
    "adopt_orphans",
    "losses_of",
    "report_losses",
]
