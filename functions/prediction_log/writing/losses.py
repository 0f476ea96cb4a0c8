"""Losses of the log: writers that vanished with records that Redis does not have, written off by name and count.

A writer tells Redis with each shipment which record it may have answered by the next one. If it is silent for long, and
nobody who shares its disk has adopted its files, what Redis lacks is written off: an event, and an entry in the journal
`prediction-log/losses`. That takes nothing away: if the node comes back, its records arrive once each, and the loss is
taken back.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import AwareDatetime, BaseModel, ConfigDict

from toque.functions.prediction_log.writing.adoption import KINDS
from toque.functions.prediction_log.writing.stream import Stream, WriterState
from toque.functions.runtime.context import Context
from toque.functions.runtime.triggers import events
from toque.registry import Entry, Fold
from toque.registry.journal.journal import Journal

__all__ = ["LOSS_TOPIC", "SILENT_FOR", "Loss", "LossState", "losses_of", "report_losses"]

LOSS_TOPIC = "prediction-log-loss"
SILENT_FOR = timedelta(minutes=5)
_WATCH_GAP_S = 60.0
_MAX_STANDING = 512


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
