"""Units counted once over a split: those that met it, for the sample-ratio test, and those that met an event in each arm."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from toque.functions.evaluation.realised_loss import Scored
from toque.functions.rollout.evidence.sums import UnitCounts
from toque.functions.rollout.state import RolloutState
from toque.kernels.hashing import hash_strings

SETTLE_US = (
    10_000_000  # until every replica has followed the traffic change, the split is not the declared one
)
MAX_UNITS = 200_000  # a split that is off by 1 % of itself is found by then, and the test stays valid


class AssignedUnits(BaseModel):
    """Units counted so far in each arm. begun: the challenger has answered. seen: sorted int64 hashes of the units that are counted, or not
    to be; little-endian.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    counts: UnitCounts = UnitCounts()
    begun: bool = False
    seen: bytes = b""


class EventUnits(BaseModel):
    """Units that met an event, such as an error, in each arm of a split: one that comes back and meets it again counts once.

    champion, challenger: sorted int64 hashes, little-endian. No more are counted once there are `MAX_UNITS`.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    champion: bytes = b""
    challenger: bytes = b""

    @property
    def counts(self) -> tuple[int, int]:
        """Number of units of the champion and of the challenger."""
        return len(self.champion) // 8, len(self.challenger) // 8

    def plus(self, champion: Scored, challenger: Scored) -> Self:
        """Add the units of the rows that met the event."""
        if sum(self.counts) >= MAX_UNITS or not len(champion) + len(challenger):
            return self
        return self.model_copy(
            update={
                name: np.union1d(np.frombuffer(before, dtype="<i8"), _hashes(rows)).astype("<i8").tobytes()
                for name, before, rows in (
                    ("champion", self.champion, champion),
                    ("challenger", self.challenger, challenger),
                )
            }
        )


def count_assigned(rows: Scored, state: RolloutState, before: AssignedUnits) -> AssignedUnits:
    """Count the units of `rows` (in order of time) that were not counted before.

    Counting begins right after the challenger's first answer that comes ten seconds into the canary or later: replicas take
    a moment to follow the traffic, and units that the champion alone answered meanwhile are no evidence on the split. That
    answer is a stopping time, so each unit after it is on the canary with the declared chance. The rows of a request without
    a unit were assigned together, and count once.
    """
    rows = _of_the_split(rows, state)
    seen = np.frombuffer(before.seen, dtype="<i8")
    if not before.begun:
        answers = np.flatnonzero(rows.version == state.challenger)
        if not len(answers):
            return before
        seen = _hashes(rows.where(answers[:1]))
        rows = rows.where(np.arange(len(rows)) > answers[0])
    units, first = np.unique(_hashes(rows), return_index=True)
    new = ~np.isin(units, seen)
    room = max(0, MAX_UNITS - before.counts.champion - before.counts.challenger)
    index = np.sort(first[new])[:room]
    challengers = int((rows.version[index] == state.challenger).sum())
    counts = UnitCounts(
        champion=before.counts.champion + len(index) - challengers,
        challenger=before.counts.challenger + challengers,
    )
    known = np.union1d(seen, _hashes(rows.where(index))).astype("<i8")
    return AssignedUnits(counts=counts, begun=True, seen=known.tobytes())


def _of_the_split(rows: Scored, state: RolloutState) -> Scored:
    """Select what champion and canary answered since the canary began."""
    if state.canary_since is None:
        return rows.where(np.zeros(len(rows), dtype=bool))
    since = int(state.split_since.timestamp() * 1_000_000) + SETTLE_US
    arms = (rows.version == state.champion) | (rows.version == state.challenger)
    return rows.where(arms & ~rows.shadow & ~rows.outside & (rows.at >= since))


def _hashes(rows: Scored) -> npt.NDArray[np.int64]:
    return hash_strings(rows.unit)
